"""The CUDA kernels without a GPU: emulated against the oracles (see tests/emulation), and compiled by nvcc."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from .. import emulation

ROOT = Path(__file__).parents[2]
SOURCES = sorted((ROOT / "csrc" / "cuda").glob("*.cu"))
if emulation.ENABLED:
    pytest.skip("this process emulates", allow_module_level=True)

OPS = ("pack", "select", "linear", "conv2d", "lif", "norm_lif", "panel_stats", "pool")
# Every case once, in one precision; the rest of the table is slow.
SOME = (
    "not threads and not opcheck and not gradcheck and not stripes"
    " and (not test_agrees or float32 or bfloat16 and (16x16 or overhang))"
)


@pytest.mark.parametrize(
    "selection", [SOME, pytest.param("not threads", marks=pytest.mark.slow)], ids=["some", "all"]
)
def test_emulated(selection):
    """The tests of the ops once more, in a process that emulates."""
    emulation.module()
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-k", selection]
    tests = [Path(__file__).with_name(f"test_{op}.py") for op in OPS]
    done = subprocess.run(
        [*command, *tests, Path(__file__).parents[1] / "test_topology.py"],
        env={**os.environ, "ESL_SPARSE_TESTS": "emulate", "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert done.returncode == 0, done.stdout


# Bytes of a thread's stack: arrays that are indexed by a loop that is not unrolled.
STACK = 0


@pytest.mark.parametrize("chip", ["sm_80", "sm_90"])
@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)
def test_no_kernel_spills(source, chip, tmp_path):
    """ptxas keeps all that a thread holds in registers."""
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        pytest.skip("nvcc is not installed")
    options = ["-std=c++17", "-O3", f"-arch={chip}", "-Xptxas", "-v", "-I", ROOT / "csrc/include"]
    done = subprocess.run(
        [nvcc, *options, "-cubin", "-o", tmp_path / "kernels.cubin", source],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert done.returncode == 0, done.stdout
    own = re.findall(r"Compiling entry function '(\w*esl\w*)'.*?\n.*?\n(.*)", done.stdout)
    assert own
    for name, usage in own:
        frame, stores, loads = map(int, re.findall(r"(\d+) bytes", usage))
        assert (stores, loads) == (0, 0), f"{name}: {usage}"
        assert frame <= STACK, f"{name}: {usage}"
