"""Triton's kernels without a GPU: interpreted against the oracle, and compiled ahead of time for chips."""

import itertools
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import pytest
import torch

from esl_sparse.ops._library import raw
from esl_sparse.ops._triton import products
from esl_sparse.ops.block_score import triton as block_score
from esl_sparse.ops.linear import triton as launch
from esl_sparse.ops.linear.op import Call

from .linear_cases import Case, Problem
from .triton_builds import CHIPS, capture, check_usage, interpret

triton_kernels = pytest.importorskip("esl_sparse.ops.linear.triton_kernels")
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("this process interprets", allow_module_level=True)


@pytest.mark.parametrize(
    "selection",
    [
        "test_agrees and (16x16-two-steps or float32 and (binary-panels or float-rows)) or test_nan",
        pytest.param("not threads", marks=pytest.mark.slow),
    ],
    ids=["some", "all"],
)
def test_interpreted(selection):
    """The tests of linear once more."""
    interpret("test_linear.py", "-k", selection)


@pytest.mark.parametrize(
    "selection",
    [
        "test_agrees and (4x4-overhang or three-calls) and (packed or float)",
        pytest.param("not threads", marks=pytest.mark.slow),
    ],
    ids=["some", "all"],
)
def test_block_score_interpreted(selection):
    interpret("test_block_score.py", "-k", selection)


def test_triton_is_imported_at_the_first_launch():
    code = "import sys, esl_sparse; sys.exit('triton' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_precision(monkeypatch):
    """Full float32 unless asked for; on ROCm no TF32, which Triton refuses there even for narrow operands."""
    precision = {dtype: products(dtype)["PRECISION"] for dtype in (torch.float32, torch.bfloat16)}
    assert precision == {torch.float32: "ieee", torch.bfloat16: "tf32"}
    monkeypatch.setattr(torch.version, "hip", "7.0")
    assert {products(dtype)["PRECISION"] for dtype in precision} == {"ieee"}


def test_nothing_is_timed_while_a_graph_is_captured(monkeypatch):
    shared = pytest.importorskip("esl_sparse.ops._triton_kernels")
    configs, options = triton_kernels.forward.configs, {"PRECISION": "tf32"}
    assert shared._affordable(configs, {}, **options) == configs and len(configs) > 1
    monkeypatch.setattr(shared, "_capturing", lambda: True)
    assert shared._affordable(configs, {}, **options) == configs[:1]
    assert shared._time(lambda: pytest.fail("waits for the GPU"), (0.5, 0.2)) == [0.0, 0.0]
    assert triton_kernels.forward.do_bench is shared._time


def test_nothing_is_timed_where_bits_must_not_depend_on_it():
    shared = pytest.importorskip("esl_sparse.ops._triton_kernels")
    configs = triton_kernels.forward.configs
    torch.use_deterministic_algorithms(True)
    try:
        assert shared._affordable(configs, {}, PRECISION="tf32") == configs[:1]
    finally:
        torch.use_deterministic_algorithms(False)


def test_full_float32_takes_small_tiles():
    shared = pytest.importorskip("esl_sparse.ops._triton_kernels")
    configs = triton_kernels.forward.configs
    for dtypes, expected in ([torch.float32] * 2, configs[:1]), ([torch.float32, torch.bfloat16], configs):
        arguments = {str(i): torch.empty(0, dtype=dtype) for i, dtype in enumerate(dtypes)} | {"rows": 3}
        assert shared._affordable(configs, arguments, PRECISION="ieee") == expected


def test_without_memory_to_time_the_first_is_taken(monkeypatch):
    shared = pytest.importorskip("esl_sparse.ops._triton_kernels")

    def no_memory(*args, **kwargs):
        raise torch.OutOfMemoryError("no memory")

    monkeypatch.setattr(shared, "do_bench", no_memory)
    assert shared._time(lambda: None, (0.5, 0.2, 0.8)) == [float("inf")] * 3


def test_tuned_kernels_take_turns_and_choose_for_each_kind_of_gpu(monkeypatch):
    """The autotuner keeps the arguments of a call in itself: two at a time would mix theirs."""
    shared = pytest.importorskip("esl_sparse.ops._triton_kernels")

    class Tuner:
        argument = None

        def run(self, argument):
            assert self.argument is None
            self.argument = argument
            time.sleep(0.002)
            assert self.argument == argument
            self.argument = None
            self.cache[argument] = True

    capability = (8, 0)
    monkeypatch.setattr(shared, "_capability", lambda: capability)
    tuner = shared._one_at_a_time(Tuner())
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(tuner.run, range(40)))
    first = tuner.cache
    assert first.keys() == set(range(40))
    capability = (9, 0)
    tuner.run(40)
    assert tuner.cache.keys() == {40}
    capability = (8, 0)
    tuner.run(40)
    assert tuner.cache is first and len(first) == 41


class Build(NamedTuple):
    chip: str
    kernel: str
    kind: str
    form: str
    dtype: str
    block: tuple[int, int]
    config: int


SOME = [
    Build("sm_90", "forward", "binary", "panels", "bfloat16", (16, 16), 1),
    Build("sm_90", "forward", "float", "rows", "float16", (64, 32), 2),
    Build("sm_90", "grad_input", "binary", "panels", "bfloat16", (16, 64), 2),
    Build("sm_90", "grad_values", "binary", "rows", "bfloat16", (16, 16), 1),
    Build("sm_90", "grad_values", "float", "rows", "bfloat16", (64, 64), 2),
    # The worst case for the first configuration, which has to fit everywhere.
    Build("sm_86", "forward", "float", "rows", "float32", (128, 128), 0),
    Build("sm_86", "grad_input", "binary", "panels", "float32", (128, 128), 0),
    Build("sm_86", "grad_values", "float", "rows", "float32", (128, 128), 0),
    Build("sm_86", "grad_values", "levels4", "panels", "bfloat16", (128, 128), 0),
    Build("sm_80", "forward", "binary", "rows", "bfloat16", (32, 64), 1),
]
ALL = [
    Build(*build)
    for chip, kernel, (kind, form), (dtype, config), block in itertools.product(
        CHIPS,
        ("forward", "grad_input", "grad_values"),
        [("binary", "panels"), ("binary", "rows"), ("float", "rows")],
        [("float32", 0), *(("bfloat16", config) for config in range(4))],
        ((16, 16), (128, 16), (128, 128)),
    )
    if (build := (chip, kernel, kind, form, dtype, block, config)) not in SOME
]


def compile_for(build: Build, monkeypatch):
    """What the launch code has compiled, with the arguments and attributes of a real call."""
    tuned = getattr(triton_kernels, build.kernel)
    compiled = capture(monkeypatch, build.chip, tuned, tuned.configs[build.config].all_kwargs())
    launch_kernel(build, Problem(Case(256, 256, build.block, T=2, B=64), build.kind, build.dtype))
    return compiled[0]


def launch_kernel(build: Build, p: Problem):
    panels, case = build.form == "panels", p.case
    call = Call(case.rows, case.cols, case.T, case.B, p.planes, p.scale, panels)
    x, values, bias = p.packed().words if p.planes else p.x.detach(), p.values.detach(), p.bias.detach()
    if build.kernel == "forward":
        launch.forward(x, values, bias, p.topology, call, p.x.dtype)
    else:
        grad = raw.to_panels(p.grad.view(case.T, case.B, -1)) if panels else p.grad
        needs = {"grad_input": 1, "grad_values": 2}[build.kernel]
        launch.backward(grad, x, values, p.topology, call, panels, needs)


@pytest.mark.parametrize("kernel", ["forward", "grad_input", "grad_values"])
@pytest.mark.parametrize("kind, form", [("binary", "panels"), ("binary", "rows"), ("float", "rows")])
def test_compiles_where_every_size_is_1(kernel, kind, form, monkeypatch):
    """Triton makes a constant of an argument that is 1, unless told not to; its interpreter never does."""
    tuned = getattr(triton_kernels, kernel)
    compiled = capture(monkeypatch, "sm_80", tuned, tuned.configs[0].all_kwargs())
    build = Build("sm_80", kernel, kind, form, "bfloat16", (16, 16), 0)
    launch_kernel(build, Problem(Case(1, 1, build.block, T=1, B=1, density=1.0), kind, build.dtype))
    assert len(compiled) == 1


@pytest.mark.parametrize("kind", ["binary", "float"])
def test_block_score_compiles_where_every_size_is_1(kind, monkeypatch):
    kernels = pytest.importorskip("esl_sparse.ops.block_score.triton_kernels")
    p = Problem(Case(1, 1, (16, 16), T=1, B=1, density=1.0), kind, "bfloat16")
    x = p.packed().words if p.planes else p.x.detach()
    compiled = capture(monkeypatch, "sm_80", kernels.block_score, kernels.block_score.configs[0].all_kwargs())
    block_score.block_score([x], [p.grad], [1], [1], [1.0], 1, 1, 1, 1, 0, 1)
    assert len(compiled) == 1


# Bytes of a thread's stack that are a few scalars, not the accumulator.
STACK = {"bfloat16": 64, "float16": 64, "float32": 128}


SPILLS = pytest.mark.xfail(reason="ptxas spills full float32 products of 128 rows here, as on no other chip")


def marks(build: Build):
    spills = build[:2] == ("sm_80", "grad_values") and build.dtype == "float32" and build.block[0] == 128
    return [pytest.mark.slow, SPILLS] if spills else [pytest.mark.slow]


@pytest.mark.parametrize(
    "build",
    [*SOME, *(pytest.param(build, marks=marks(build)) for build in ALL)],
    ids=lambda build: "-".join(map(str, build)),
)
def test_compiles_ahead_of_time(build, monkeypatch, tmp_path):
    chip = CHIPS[build.chip]
    compiled = compile_for(build, monkeypatch)
    ptx = compiled.asm["ptx"]
    if build.config == 0:
        assert compiled.metadata.shared <= CHIPS["sm_86"].shared_memory
    if compiled.metadata.shared > chip.shared_memory:
        assert build.config > 0
        pytest.skip("the autotuner passes over it on this chip")
    assert "cp.async" in ptx
    if build.dtype == "float32":
        assert "mma" not in ptx, "TF32 without being asked for"
    else:
        assert chip.instruction in ptx
    check_usage(compiled, tmp_path, stack=STACK[build.dtype])


SCORE_BLOCKS = ((1, 1), (4, 4), (16, 16), (128, 128))
# chip, kind of x, dtype, block, configuration
SOME_SCORES = [
    ("sm_90", "binary", "bfloat16", (4, 4), 1),
    ("sm_80", "float", "float16", (1, 1), 2),
    # The worst case for the first configuration, which has to fit everywhere.
    ("sm_86", "float", "float32", (128, 128), 0),
]
ALL_SCORES = [
    build
    for chip, kind, (dtype, config), block in itertools.product(
        CHIPS,
        ("binary", "float"),
        [("float32", 0), *(("bfloat16", config) for config in range(3))],
        SCORE_BLOCKS,
    )
    if (build := (chip, kind, dtype, block, config)) not in SOME_SCORES
]


@pytest.mark.parametrize(
    "build",
    [*SOME_SCORES, *(pytest.param(build, marks=pytest.mark.slow) for build in ALL_SCORES)],
    ids=lambda build: "-".join(map(str, build)),
)
def test_block_score_compiles_ahead_of_time(build, monkeypatch, tmp_path):
    chip, kind, dtype, block, config = build
    kernels = pytest.importorskip("esl_sparse.ops.block_score.triton_kernels")
    p = Problem(Case(256, 256, (16, 16), T=2, B=64), kind, dtype)
    x = p.packed().words if p.planes else p.x.detach()
    tuned = kernels.block_score
    compiled = capture(monkeypatch, chip, tuned, tuned.configs[config].all_kwargs())
    block_score.block_score([x], [p.grad], [2], [64], [1.0], 256, 256, *block, 0, 256 // block[0])
    (made,) = compiled
    assert made.metadata.shared <= CHIPS["sm_86" if config == 0 else chip].shared_memory
    ptx = made.asm["ptx"]
    if dtype == "float32":
        assert "mma" not in ptx, "TF32 without being asked for"
    else:
        assert CHIPS[chip].instruction in ptx
    # Two accumulators of 128 x 128, and no tensor cores to take them: ptxas spills, and that is slow, not wrong.
    spills = dtype == "float32" and block == (128, 128)
    check_usage(made, tmp_path, stack=1024 if spills else STACK[dtype])
