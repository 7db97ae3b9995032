"""conv2d's Triton kernels without a GPU: interpreted against torch's convolution, and compiled ahead of time."""

import itertools
import os

import pytest

from esl_sparse.ops.conv2d import triton as launch

from .conv2d_cases import Case, Problem
from .triton_builds import CHIPS, capture, check_usage, interpret

triton_kernels = pytest.importorskip("esl_sparse.ops.conv2d.triton_kernels")
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("this process interprets", allow_module_level=True)


@pytest.mark.parametrize(
    "selection",
    [
        "test_tuning or test_agrees_with_torch and binary-panels and (16x16-strided or groups-16x16) and not precision",
        pytest.param("test_agrees_with_torch", marks=pytest.mark.slow),
    ],
    ids=["some", "all"],
)
def test_interpreted(selection):
    interpret("test_conv2d.py", "-k", selection)


# Bytes of a thread's stack that are a few scalars, not the accumulator.
STACK = {"bfloat16": 64, "float16": 64, "float32": 128}
KERNELS = {"forward": 0, "grad_input": 1, "grad_values": 2}
# chip, kernel, kind of x, dtype, block, configuration
SOME = [
    ("sm_90", "forward", "binary", "bfloat16", (16, 16), 1),
    ("sm_90", "grad_input", "binary", "bfloat16", (16, 16), 2),
    ("sm_90", "grad_values", "binary", "bfloat16", (16, 16), 1),
    # The worst case for the first configuration, which has to fit everywhere.
    ("sm_86", "forward", "float", "float32", (128, 128), 0),
    ("sm_86", "grad_input", "binary", "float32", (128, 128), 0),
    ("sm_86", "grad_values", "levels4", "bfloat16", (128, 128), 0),
]
ALL = [
    build
    for chip, kernel, kind, (dtype, config), block in itertools.product(
        CHIPS,
        KERNELS,
        ("binary", "float"),
        [("float32", 0), *(("bfloat16", config) for config in range(4))],
        ((16, 16), (64, 64), (128, 128)),
    )
    if (build := (chip, kernel, kind, dtype, block, config)) not in SOME
]


def compile_for(chip, kernel, kind, dtype, block, config, monkeypatch):
    """What the launch code has compiled, with the arguments and attributes of a real call."""
    tuned = getattr(triton_kernels, kernel)
    compiled = capture(monkeypatch, chip, tuned, tuned.configs[config].all_kwargs())
    launch_kernel(kernel, Problem(Case(128, 128, (3, 3), (4, 4), block, padding=(1, 1), B=64), kind, dtype))
    return compiled[0]


def launch_kernel(kernel, p):
    rows, cols = p.topology.layout.rows, p.topology.layout.cols
    x = p.packed().words if p.planes else p.panels(p.x).to(p.grad.dtype)
    index, lanes = p.topology.index_tensors(), (1, 64)
    rest = (index, p.geometry, rows, cols, *lanes, p.planes, p.scale)
    values, bias = p.values.detach(), p.bias.detach()
    if kernel == "forward":
        launch.forward(x, values, bias, *rest, True)
    else:
        launch.backward(p.panels(p.grad).to(p.grad.dtype), x, values, *rest, KERNELS[kernel])


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("kind", ["binary", "float"])
def test_compiles_where_every_size_is_1(kernel, kind, monkeypatch):
    """Triton makes a constant of an argument that is 1, unless told not to; its interpreter never does."""
    tuned = getattr(triton_kernels, kernel)
    compiled = capture(monkeypatch, "sm_80", tuned, tuned.configs[0].all_kwargs())
    launch_kernel(kernel, Problem(Case(1, 1, (1, 1), (1, 1), (16, 16), B=1, density=1.0), kind, "bfloat16"))
    assert len(compiled) == 1


@pytest.mark.parametrize(
    "build",
    [*SOME, *(pytest.param(build, marks=pytest.mark.slow) for build in ALL)],
    ids=lambda build: "-".join(map(str, build)),
)
def test_compiles_ahead_of_time(build, monkeypatch, tmp_path):
    chip, _, _, dtype, _, config = build
    compiled = compile_for(*build, monkeypatch)
    if config == 0:
        assert compiled.metadata.shared <= CHIPS["sm_86"].shared_memory
    if compiled.metadata.shared > CHIPS[chip].shared_memory:
        assert config > 0
        pytest.skip("the autotuner passes over it on this chip")
    ptx = compiled.asm["ptx"]
    if dtype == "float32":
        assert "mma" not in ptx, "TF32 without being asked for"
    else:
        assert CHIPS[chip].instruction in ptx
    check_usage(compiled, tmp_path, stack=STACK[dtype])
