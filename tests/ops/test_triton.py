"""Triton's kernels without a GPU: interpreted against the oracle, and compiled ahead of time for chips."""

import itertools
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

triton = pytest.importorskip("triton")
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
    """The tests of linear once more, in a process whose Triton interprets; that is fixed at its import."""
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-k", selection]
    done = subprocess.run(
        [*command, Path(__file__).with_name("test_linear.py")],
        env={**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    if "only 0-dimensional arrays can be converted" in done.stdout:
        pytest.skip("the interpreter of Triton 3.6 needs NumPy before 2.4")
    assert done.returncode == 0, done.stdout


def test_triton_is_imported_at_the_first_launch():
    code = "import sys, esl_sparse; sys.exit('triton' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


class Chip(NamedTuple):
    capability: int
    shared_memory: int  # bytes that a block may have
    instruction: str  # what a narrow product must compile to


CHIPS = {
    "sm_80": Chip(80, 163 * 1024, "mma.sync"),
    "sm_86": Chip(86, 99 * 1024, "mma.sync"),
    "sm_90": Chip(90, 227 * 1024, "wgmma.mma_async"),
}


class Build(NamedTuple):
    chip: str
    kernel: str
    operand: str  # words or float
    panels: bool
    dtype: str
    block: tuple[int, int]
    config: int


SOME = [
    Build("sm_90", "forward", "words", True, "bf16", (16, 16), 1),
    Build("sm_90", "forward", "float", False, "fp16", (64, 32), 2),
    Build("sm_90", "grad_input", "float", True, "bf16", (16, 64), 2),
    Build("sm_90", "grad_values", "words", False, "bf16", (16, 16), 1),
    Build("sm_90", "grad_values", "float", True, "bf16", (64, 64), 2),
    # The worst case for the first configuration, which has to fit everywhere.
    Build("sm_86", "forward", "float", False, "fp32", (128, 128), 0),
    Build("sm_86", "grad_input", "float", False, "fp32", (128, 128), 0),
    Build("sm_86", "grad_values", "float", False, "fp32", (128, 128), 0),
    Build("sm_86", "grad_values", "words", True, "bf16", (128, 128), 0),
    Build("sm_80", "forward", "words", False, "bf16", (32, 64), 1),
]
ALL = [
    Build(chip, kernel, operand, True, dtype, block, config)
    for chip, (kernel, operand), (dtype, config), block in itertools.product(
        CHIPS,
        [("grad_input", "float"), *itertools.product(("forward", "grad_values"), ("words", "float"))],
        [("fp32", 0), *(("bf16", config) for config in range(4))],
        ((16, 16), (128, 16), (128, 128)),
    )
]


def compile_for(build: Build):
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from esl_sparse.ops.linear import triton_kernels

    tuned = getattr(triton_kernels, build.kernel)
    config = tuned.configs[build.config]
    constants = {
        "BM": build.block[0],
        "BN": build.block[1],
        "PLANES": int(build.operand == "words"),
        "PANELS": build.panels,
        "X_PANELS": build.panels,
        "BIAS": True,
        "PRECISION": "ieee" if build.dtype == "fp32" else "tf32",
        **config.kwargs,
    }
    pointers = dict.fromkeys(("crow", "col", "ccol", "row_t", "offset_t"), "*i32")
    pointers |= dict.fromkeys(("x", "values", "bias", "y", "grad", "grad_x", "grad_w"), f"*{build.dtype}")
    if build.operand == "words":
        pointers["x"] = "*i64"
    names = tuned.fn.arg_names
    constants = {name: value for name, value in constants.items() if name in names}
    signature = {name: pointers.get(name, "fp32" if name == "scale" else "i32") for name in names}
    signature |= dict.fromkeys(constants, "constexpr")
    # What a launch says of torch's allocations and of common sizes; without it there would be no cp.async.
    divisible = {*pointers, "rows", "cols"}
    attributes = {(i,): [["tt.divisibility", 16]] for i, name in enumerate(names) if name in divisible}
    return triton.compile(
        ASTSource(fn=tuned.fn, signature=signature, constexprs=constants, attrs=attributes),
        target=GPUTarget("cuda", CHIPS[build.chip].capability, 32),
        options={
            "num_warps": config.num_warps,
            "num_stages": config.num_stages,
            "enable_fp_fusion": True,
        },
    )


# Bytes of a thread's stack that are a few scalars, not the accumulator.
STACK = {"bf16": 32, "fp16": 32, "fp32": 128}


def stack_bytes(cubin: bytes, folder: Path) -> int:
    """Bytes of stack a thread uses."""
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    if not tool.exists():
        pytest.skip("this Triton brings no cuobjdump")
    path = folder / "kernel.cubin"
    path.write_bytes(cubin)
    usage = subprocess.run([tool, "-res-usage", path], capture_output=True, text=True, check=True).stdout
    return int(re.search(r"STACK:(\d+)", usage)[1])


SPILLS = pytest.mark.xfail(reason="ptxas spills full float32 products of 128 rows here, as on no other chip")


def marks(build: Build):
    spills = build[:2] == ("sm_80", "grad_values") and build.dtype == "fp32" and build.block[0] == 128
    return [pytest.mark.slow, SPILLS] if spills else [pytest.mark.slow]


@pytest.mark.parametrize(
    "build",
    [*SOME, *(pytest.param(build, marks=marks(build)) for build in ALL if build not in SOME)],
    ids=lambda build: "-".join(map(str, build)),
)
def test_compiles_ahead_of_time(build, tmp_path):
    chip = CHIPS[build.chip]
    compiled = compile_for(build)
    ptx = compiled.asm["ptx"]
    if build.config == 0:
        assert compiled.metadata.shared <= CHIPS["sm_86"].shared_memory
    if compiled.metadata.shared > chip.shared_memory:
        assert build.config > 0
        pytest.skip("the autotuner passes over it on this chip")
    assert "cp.async" in ptx
    if build.dtype == "fp32":
        assert "mma" not in ptx, "TF32 without being asked for"
    else:
        assert chip.instruction in ptx
    assert stack_bytes(compiled.asm["cubin"], tmp_path) <= STACK[build.dtype]
