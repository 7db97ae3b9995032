"""How the CUDA kernels of ``esl_sparse._C`` are launched: on the tensors' device, on torch's current stream.

A launch does not wait, and scratch comes from torch's allocator, so that kernels can be captured in a CUDA graph.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from . import _native

DTYPE_CODES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
_ALIGNMENT = 16  # bytes that a thread loads at once


def kernels() -> ModuleType:
    """The module that holds the launches, ``cuda_<op>``."""
    return _native.lib()


def ask(name: str, *args) -> int:
    """What ``cuda_<name>`` says of sizes; nothing is launched."""
    return getattr(kernels(), f"cuda_{name}")(*args)


def launch(name: str, device: torch.device, *args) -> int | None:
    """Call ``cuda_<name>``, whose last argument is the stream. CPU tensors mean kernels that tests emulate."""
    run = getattr(kernels(), f"cuda_{name}")
    if device.type != "cuda":
        return run(*args, 0)
    with torch.cuda.device(device):
        return run(*args, torch.cuda.current_stream(device).cuda_stream)


def sent(numbers: Sequence[Any] | Tensor, device: torch.device, dtype: torch.dtype | None = None) -> Tensor:
    """Numbers of the host, there. (``torch.tensor(..., device=)`` waits until a GPU has done all before it.)"""
    here = numbers if isinstance(numbers, Tensor) else torch.tensor(numbers, dtype=dtype, device="cpu")
    # What a GPU's generator made for the CPU has to be there before it is read.
    return here.to(device, non_blocking=device.type != "cpu")


def aligned(tensor: Tensor) -> Tensor:
    """Contiguous, at an address that vector loads take; a copy only where it is not so already."""
    tensor = tensor.contiguous()
    return tensor if tensor.data_ptr() % _ALIGNMENT == 0 else tensor.clone()


def capturing(device: torch.device) -> bool:
    """Whether the device's current stream is being captured, so that nothing can be read back."""
    if device.type != "cuda":
        return False
    with torch.cuda.device(device):
        return torch.cuda.is_current_stream_capturing()
