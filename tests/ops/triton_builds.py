"""Triton's kernels without a GPU: tests run again by its interpreter, and builds for chips that are not here."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

FOLDER = Path(__file__).parent


def interpret(*arguments: str) -> None:
    """``pytest *arguments`` in a process whose Triton interprets; that is fixed at its import."""
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *arguments]
    done = subprocess.run(
        command,
        cwd=FOLDER,
        env={**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    if "only 0-dimensional arrays can be converted" in done.stdout:
        pytest.skip("the interpreter of Triton 3.6 needs NumPy before 2.4")
    assert done.returncode == 0, done.stdout


class Chip(NamedTuple):
    capability: int
    shared_memory: int  # bytes that a block may have
    instruction: str  # what a narrow product must compile to


CHIPS = {
    "sm_80": Chip(80, 163 * 1024, "mma.sync"),
    "sm_86": Chip(86, 99 * 1024, "mma.sync"),
    "sm_90": Chip(90, 227 * 1024, "wgmma.mma_async"),
}


class CompileOnly:
    """Stands for Triton's driver: says which chip to compile for, and cannot launch."""

    def __init__(self, capability: int) -> None:
        self.capability = capability

    def get_current_device(self):
        return self.capability  # Triton keeps what it compiles by device

    def get_current_stream(self, device):
        return 0

    def get_current_target(self):
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", self.capability, 32)


def capture(monkeypatch, chip: str, kernel, options: dict | None = None) -> list:
    """From now on launches of ``kernel`` compile for the chip, with a real call's arguments and attributes, and run
    nothing; the list fills with what they made. An autotuned kernel takes the configuration ``options``."""
    import triton

    compiled: list = []
    run = (kernel if options is None else kernel.fn).run

    def compile_only(*args, grid, warmup, **kwargs):
        compiled.append(run(*args, grid=grid, warmup=True, **kwargs, **(options or {})))

    monkeypatch.setattr(triton.runtime.driver, "_active", CompileOnly(CHIPS[chip].capability))
    monkeypatch.setattr(kernel, "run", compile_only)
    return compiled


class Usage(NamedTuple):
    registers: int  # of a thread
    stack: int  # bytes of a thread


def _usage(cubin: bytes, folder: Path) -> Usage:
    import triton

    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    if not tool.exists():
        pytest.skip("this Triton brings no cuobjdump")
    path = folder / "kernel.cubin"
    path.write_bytes(cubin)
    said = subprocess.run([tool, "-res-usage", path], capture_output=True, text=True, check=True).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+)", said)
    assert found is not None, said
    return Usage(int(found[1]), int(found[2]))


_REGISTERS = 65536  # of a processor, on all these chips


def check_usage(made, folder: Path, *, stack: int, blocks: int = 1) -> None:
    """A thread keeps its stack, and a processor has the registers of so many blocks of threads: without those of one,
    no launch would succeed."""
    used = _usage(made.asm["cubin"], folder)
    assert blocks * used.registers * 32 * made.metadata.num_warps <= _REGISTERS
    assert used.stack <= stack
