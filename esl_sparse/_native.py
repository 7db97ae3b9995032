"""The native kernels, ``esl_sparse._C``, loaded at the first use: importing the package is cheap and safe."""

from __future__ import annotations

import functools
import importlib
import os
import re
from collections.abc import Sequence
from types import ModuleType
from typing import Any

_REMEDY = (
    "Build them with `pip install -e .` in the source folder, or reinstall with `pip install "
    "--force-reinstall --no-deps --no-cache-dir esl_sparse`, with a compiler and ESL_SPARSE_BUILD unset."
)


@functools.cache
def _load() -> ModuleType | str:
    """The extension module, or why there is none."""
    # torch before _C, so that both share torch's libgomp: two thread pools would fight for the cores.
    import torch  # noqa: F401

    try:
        module = importlib.import_module("._C", __package__)
    except ModuleNotFoundError:
        return "esl_sparse was installed without its native kernels (ESL_SPARSE_BUILD=none, or never built)"
    except ImportError as e:
        return f"the native kernels of esl_sparse do not load: {e}"
    if isa := os.environ.get("ESL_SPARSE_ISA"):
        _set_isa(module, isa, f"ESL_SPARSE_ISA={isa!r}")
    return module


def _set_isa(module: ModuleType, name: str, what: str) -> None:
    supported = module.supported_isas()
    if name not in supported:
        raise ValueError(f"{what}: this build on this machine supports {', '.join(supported)}")
    module.set_isa(name)


def available() -> bool:
    return not isinstance(_load(), str)


def reason() -> str:
    """Why the kernels are not available, and what to do; empty if they are."""
    loaded = _load()
    return f"{loaded}. {_REMEDY}" if isinstance(loaded, str) else ""


def lib() -> ModuleType:
    """The module ``_C``; RuntimeError with reason and remedy where there is none."""
    loaded = _load()
    if isinstance(loaded, str):
        raise RuntimeError(reason())
    return loaded


@functools.cache
def cuda_reason() -> str:
    """Why the CUDA kernels are not available, and what to do; empty if they are."""
    if why := reason():
        return why
    info = build_info()["cuda"]
    if info.startswith("no: "):
        return (
            f"esl_sparse was built without CUDA kernels ({info.removeprefix('no: ')}); "
            "rebuild with nvcc on PATH and ESL_SPARSE_BUILD=cuda"
        )
    import torch

    if torch.version.hip:
        return "they are for NVIDIA GPUs, and this torch is built for ROCm; use blocks that Triton serves"
    archs = [
        (int(number), suffix) for number, suffix in re.findall(r"(\d+)([a-z]?)", info)
    ]  # of "native", none
    capabilities = gpu_capabilities()
    if archs and capabilities and not any(_serves(archs, *capability) for capability in capabilities):
        major, minor = capabilities[0]
        return (
            f"they were compiled for compute capabilities {info}, and this GPU has {major}.{minor}; "
            f"rebuild with ESL_SPARSE_CUDA_ARCHS={major}{minor}"
        )
    return ""


def gpu_capabilities() -> list[tuple[int, int]]:
    """Compute capability of each GPU that this process sees."""
    import torch

    if not torch.cuda.is_available():
        return []
    return [torch.cuda.get_device_capability(i) for i in range(torch.cuda.device_count())]


def _serves(archs: Sequence[tuple[int, str]], major: int, minor: int) -> bool:
    """Whether what was compiled for ``archs`` runs: machine code on its own major version, PTX, that of the last one,
    on all that is newer; what is for one chip (90a) or its family (100f) not beyond."""
    here = 10 * major + minor
    own = any(
        arch // 10 == major and arch <= here and (suffix != "a" or arch == here) for arch, suffix in archs
    )
    newest, suffix = archs[-1]
    return own or (not suffix and newest <= here)


def build_info() -> dict[str, Any]:
    """version, build, compiler, openmp, isas, cuda: as the extension was compiled."""
    return lib().build_info()


def supported_isas() -> list[str]:
    """Instruction sets that are compiled in and run on this machine, best last."""
    return lib().supported_isas()


def get_isa() -> str:
    return lib().get_isa()


def set_isa(name: str) -> None:
    """Make every later kernel call use instruction set `name`."""
    _set_isa(lib(), name, f"instruction set {name!r}")
