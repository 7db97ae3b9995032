"""Native CPU kernels of pack. Inputs are contiguous; shapes are those of a linear activation (H = W = 1)."""

from __future__ import annotations

import torch
from torch import Tensor

from ..._native import lib
from ...packed import LANES, Lanes


def _bf16(dtype: torch.dtype) -> bool:
    return dtype == torch.bfloat16


def pack(x: Tensor, planes: int, scale: float) -> Tensor | None:
    T, B, C = x.shape
    words = torch.empty(planes, Lanes(T, B).groups, 1, 1, C, dtype=torch.int64)
    good = lib().pack(
        x.data_ptr(), _bf16(x.dtype), words.data_ptr(), T, B, C, planes, scale, torch.get_num_threads()
    )
    return words if good else None


def unpack(words: Tensor, T: int, B: int, scale: float, dtype: torch.dtype) -> Tensor:
    planes, *_, C = words.shape
    x = torch.empty(T, B, C, dtype=dtype)
    lib().unpack(
        words.data_ptr(), x.data_ptr(), _bf16(dtype), T, B, C, planes, scale, torch.get_num_threads()
    )
    return x


def to_panels(x: Tensor) -> Tensor:
    """Panels are float32 whatever the rows are: kernels sum in float32."""
    T, B, C = x.shape
    panels = torch.empty(Lanes(T, B).groups, 1, 1, C, LANES)
    lib().to_panels(x.data_ptr(), _bf16(x.dtype), panels.data_ptr(), T, B, C, torch.get_num_threads())
    return panels.to(x.dtype)


def from_panels(panels: Tensor, T: int, B: int) -> Tensor:
    C = panels.shape[3]
    x = torch.empty(T, B, C)
    lib().from_panels(panels.float().data_ptr(), x.data_ptr(), False, T, B, C, torch.get_num_threads())
    return x.to(panels.dtype)
