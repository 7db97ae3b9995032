"""CUDA kernels of pack, on feature maps and linear activations (H = W = 1)."""

from __future__ import annotations

import torch
from torch import Tensor

from ..._cuda import DTYPE_CODES, capturing, launch
from ...packed import LANES, Lanes
from .layout import flat_rows, rows_shape


def pack(x: Tensor, planes: int, scale: float) -> Tensor | None:
    """Words, or None unless x holds levels only; finding out waits for the kernel, as it does in the reference.

    In a graph that is being captured nothing can be waited for: there a wrong x fails a device-side assertion.
    """
    T, B, C = x.shape[:3]
    x, H, W, channels, pixels = flat_rows(x)
    words = x.new_empty((planes, Lanes(T, B).groups, H, W, C), dtype=torch.int64)
    broken = x.new_zeros((), dtype=torch.int32)
    code = DTYPE_CODES[x.dtype]
    sizes = (T, B, channels, pixels, planes, scale)
    launch("pack", x.device, x.data_ptr(), code, words.data_ptr(), *sizes, broken.data_ptr())
    if capturing(x.device):
        torch._assert_async(broken == 0, "esl_sparse: input holds other values than it was promised to")
        return words
    return None if broken.item() else words


def unpack(words: Tensor, T: int, B: int, scale: float, dtype: torch.dtype) -> Tensor:
    planes, _, H, W, C = words.shape
    x = words.new_empty(rows_shape(T, B, H, W, C), dtype=dtype)
    sizes = (T, B, C, H * W, planes, scale)
    launch("unpack", words.device, words.data_ptr(), x.data_ptr(), DTYPE_CODES[dtype], *sizes)
    return x


def to_panels(x: Tensor) -> Tensor:
    T, B, C = x.shape[:3]
    x, H, W, channels, pixels = flat_rows(x)
    panels = x.new_empty((Lanes(T, B).groups, H, W, C, LANES))
    sizes = (T, B, channels, pixels)
    launch("to_panels", x.device, x.data_ptr(), DTYPE_CODES[x.dtype], panels.data_ptr(), *sizes)
    return panels


def from_panels(panels: Tensor, T: int, B: int) -> Tensor:
    _, H, W, C, _ = panels.shape
    x = panels.new_empty(rows_shape(T, B, H, W, C))
    sizes = (T, B, C, H * W)
    launch("from_panels", x.device, x.data_ptr(), DTYPE_CODES[x.dtype], panels.data_ptr(), *sizes)
    return x
