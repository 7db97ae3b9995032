"""Native CPU kernels of pack, on feature maps and linear activations (H = W = 1)."""

from __future__ import annotations

import torch
from torch import Tensor

from ..._native import lib
from ...arena import arena
from ...packed import LANES, Lanes


def rows_of(x: Tensor) -> tuple[Tensor, int, int, int, int]:
    """x with a layout that the kernels know, H, W, and the channels and pixels they shall see.

    Rows in (pixel, channel) order, as words and panels are, count as those of one pixel with more channels.
    """
    if x.dim() == 3:
        return x.contiguous(), 1, 1, x.shape[2], 1
    _, _, C, H, W = x.shape
    if x.permute(0, 1, 3, 4, 2).is_contiguous():  # channels last; also one channel, one pixel
        return x, H, W, C * H * W, 1
    return x.contiguous(), H, W, C, H * W


def _empty_rows(T: int, B: int, H: int, W: int, C: int, dtype: torch.dtype) -> Tensor:
    return arena.tensor((T, B, C) if H == W == 1 else (T, B, C, H, W), dtype)


def _bf16(dtype: torch.dtype) -> bool:
    return dtype == torch.bfloat16


def pack(x: Tensor, planes: int, scale: float) -> Tensor | None:
    T, B, C = x.shape[:3]
    x, H, W, channels, pixels = rows_of(x)
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
    x = _empty_rows(T, B, H, W, C, dtype)
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
    x, H, W, channels, pixels = rows_of(x)
    panels = arena.tensor((Lanes(T, B).groups, H, W, C, LANES))
    lib().to_panels(
        x.data_ptr(), _bf16(x.dtype), panels.data_ptr(), T, B, channels, pixels, torch.get_num_threads()
    )
    return panels.to(x.dtype)


def from_panels(panels: Tensor, T: int, B: int) -> Tensor:
    _, H, W, C, _ = panels.shape
    dtype, panels = panels.dtype, panels.float()  # kept in a name: the kernel reads it by its address
    x = _empty_rows(T, B, H, W, C, dtype)
    lib().from_panels(panels.data_ptr(), x.data_ptr(), _bf16(dtype), T, B, C, H * W, torch.get_num_threads())
    return x
