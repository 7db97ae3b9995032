"""What the launch sides of the Triton kernels share. Triton itself is imported at the first launch only."""

from __future__ import annotations

from contextlib import nullcontext

import torch


def on(device: torch.device):
    """Triton launches on the current device; CPU tensors mean its interpreter."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def even_chunks(T: int, most: int) -> int:
    """Steps of a chunk where T steps go in as few chunks as hold ``most`` each, all about as long."""
    return -(-T // -(-T // most)) if T else 1
