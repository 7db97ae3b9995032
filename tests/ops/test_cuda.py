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

OPS = (
    "pack",
    "select",
    "sample",
    "linear",
    "conv2d",
    "lif",
    "norm_lif",
    "panel_stats",
    "pool",
    "block_score",
    "temporal",
)
# Every case once, in one precision; the rest of the table is slow.
SOME = (
    "not threads and not opcheck and not gradcheck and not stripes"
    " and (not test_agrees or float32 or bfloat16 and (16x16 or overhang)"
    " or causal_sets or dense_gradient and (packed or mixed))"
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


CHIPS = ("80", "90")


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)
def test_no_kernel_spills(source, tmp_path):
    """ptxas keeps all that a thread holds in registers, also what a loop indexes."""
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        pytest.skip("nvcc is not installed")
    chips = [f"-gencode=arch=compute_{chip},code=sm_{chip}" for chip in CHIPS]
    options = ["-std=c++17", "-O3", *chips, "-Xptxas", "-v", "-I", ROOT / "csrc/include"]
    done = subprocess.run(
        [nvcc, *options, "-fatbin", "-o", tmp_path / "kernels.fatbin", source],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert done.returncode == 0, done.stdout
    own = re.findall(r"Compiling entry function '(\w*3esl\w*)' for 'sm_(\d+)'\n.*\n(.*)", done.stdout)
    assert {chip for _, chip, _ in own} == set(CHIPS)
    for name, chip, usage in own:
        assert "0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads" in usage, (name, chip)
