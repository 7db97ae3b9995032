"""The CUDA kernels where there is no GPU: compiled as plain C++, their threads as loops, on CPU tensors.

What Python passes, what the launches make of it and what each thread computes is then the code that a GPU would run;
what a GPU alone can show (its arithmetic, its memory model, its speed) stays for tests/gpu.
"""

from __future__ import annotations

import functools
import importlib.machinery
import importlib.util
import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import pytest

from esl_sparse import _backends, _cuda, _native

ROOT = Path(__file__).parents[2]
ENABLED = os.environ.get("ESL_SPARSE_TESTS") == "emulate"  # this process tests nothing else


def _build() -> Path:
    pybind11 = pytest.importorskip("pybind11")
    path = sysconfig.get_path("scripts") + os.pathsep + os.environ["PATH"]
    cmake, ninja = (shutil.which(tool, path=path) for tool in ("cmake", "ninja"))
    if not cmake or not ninja or not (ROOT / "CMakeLists.txt").exists():
        pytest.skip("needs cmake, ninja and the source tree")
    folder = ROOT / "build" / f"emulated-{sys.implementation.cache_tag}"
    folder.mkdir(parents=True, exist_ok=True)
    configure = [
        *(cmake, "-S", str(ROOT), "-B", str(folder), "-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={ninja}"),
        f"-DPython_EXECUTABLE={sys.executable}",
        f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
        *("-DESL_BUILD=cpu", "-DESL_BUILD_PYTHON=OFF", "-DESL_BUILD_EMULATED=ON"),
    ]
    with open(folder / ".lock", "w") as lock:  # of several test processes the first one builds
        import fcntl  # not on Windows, where nothing is emulated

        fcntl.flock(lock, fcntl.LOCK_EX)
        for command in (configure, [cmake, "--build", str(folder), "--target", "_emulated"]):
            done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
            assert done.returncode == 0, done.stdout
    return folder / f"_emulated{sysconfig.get_config_var('EXT_SUFFIX')}"


@functools.cache
def module() -> ModuleType:
    """``cuda_<op>`` as :mod:`esl_sparse._C` has them, for CPU addresses."""
    loader = importlib.machinery.ExtensionFileLoader("_emulated", str(_build()))
    spec = importlib.util.spec_from_loader("_emulated", loader)
    assert spec is not None
    made = importlib.util.module_from_spec(spec)
    loader.exec_module(made)
    return made


@contextmanager
def emulated() -> Iterator[None]:
    """CPU tensors go to the CUDA backend, for the ops that it offers."""
    kernels = module()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_cuda, "kernels", lambda: kernels)
        patch.setattr(_native, "cuda_reason", lambda: "")
        patch.setattr(_backends, "_CUDA_TENSORS", ("cuda", "cpu"))
        with _backends.use("cuda"):
            yield
    _backends.choose.cache_clear()
