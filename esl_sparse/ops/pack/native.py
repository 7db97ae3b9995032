"""Native CPU kernels of pack, on feature maps and linear activations (H = W = 1)."""

from __future__ import annotations

import torch
from torch import Tensor

from ..._native import lib
from ...arena import arena
from ...packed import LANES, Lanes
from .layout import flat_rows, rows_shape


def _bf16(dtype: torch.dtype) -> bool:
    return dtype == torch.bfloat16


def pack(x: Tensor, planes: int, scale: float) -> Tensor | None:
    T, B, C = x.shape[:3]
    x, H, W, channels, pixels = flat_rows(x)
    words = torch.empty(planes, Lanes(T, B).groups, H, W, C, dtype=torch.int64)
    good = lib().pack(
        x.data_ptr(),
        _bf16(x.dtype),
        words.data_ptr(),
        T,
        B,
        channels,
        pixels,
        planes,
        scale,
        torch.get_num_threads(),
    )
    return words if good else None


def unpack(words: Tensor, T: int, B: int, scale: float, dtype: torch.dtype) -> Tensor:
    planes, _, H, W, C = words.shape
    x = arena.tensor(rows_shape(T, B, H, W, C), dtype)
    lib().unpack(
        words.data_ptr(),
        x.data_ptr(),
        _bf16(dtype),
        T,
        B,
        C,
        H * W,
        planes,
        scale,
        torch.get_num_threads(),
    )
    return x


def to_panels(x: Tensor) -> Tensor:
    """Panels are float32 whatever the rows are: kernels sum in float32."""
    T, B, C = x.shape[:3]
    x, H, W, channels, pixels = flat_rows(x)
    panels = arena.tensor((Lanes(T, B).groups, H, W, C, LANES))
    lib().to_panels(
        x.data_ptr(), _bf16(x.dtype), panels.data_ptr(), T, B, channels, pixels, torch.get_num_threads()
    )
    return panels.to(x.dtype)


def from_panels(panels: Tensor, T: int, B: int) -> Tensor:
    _, H, W, C, _ = panels.shape
    dtype, panels = panels.dtype, panels.float()  # kept in a name: the kernel reads it by its address
    x = arena.tensor(rows_shape(T, B, H, W, C), dtype)
    lib().from_panels(panels.data_ptr(), x.data_ptr(), _bf16(dtype), T, B, C, H * W, torch.get_num_threads())
    return x
