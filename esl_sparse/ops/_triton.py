"""What the launch sides of the Triton kernels share. Triton itself is imported at the first launch: it is optional."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch


def on(device: torch.device) -> AbstractContextManager:
    """Triton launches on the current device; CPU tensors mean its interpreter."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def products(dtype: torch.dtype) -> dict[str, Any]:
    """Options of kernels that multiply: float32 in full, unless torch's own switch allows TF32."""
    tf32 = dtype != torch.float32 or torch.backends.cuda.matmul.fp32_precision == "tf32"
    return {
        # Most AMD chips have no TF32, and Triton refuses the word, also where operands are narrow.
        "PRECISION": "tf32" if tf32 and not torch.version.hip else "ieee",
        "enable_fp_fusion": True,  # off by default from Triton 3.10; full float32 would take twice the time
    }


def even_chunks(T: int, most: int) -> int:
    """Steps of a chunk where T steps go in as few chunks as hold ``most`` each, all about as long."""
    return -(-T // -(-T // most)) if T else 1
