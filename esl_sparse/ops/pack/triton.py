"""Launches the Triton kernels of pack (``triton_kernels.py``, imported at the first launch)."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from ..._cuda import capturing
from ...packed import LANES, Lanes
from .._triton import on
from .layout import flat_rows, rows_shape

_UNITS = 64  # of a tile


def _kernels() -> ModuleType:
    from . import triton_kernels

    return triton_kernels


def _launch(name: str, source: Tensor, target: Tensor, *more: Tensor, lanes: Lanes, shape, **options: Any):
    """Run a kernel on all units; shape: (channels, pixels) of a row."""
    channels, pixels = shape
    units = channels * pixels
    if not (units and lanes.groups):
        return
    with on(source.device):
        getattr(_kernels(), name)[(-(-units // _UNITS) * lanes.groups,)](
            source,
            target,
            *more,
            T=lanes.T,
            B=lanes.B,
            padded=lanes.padded,
            units=units,
            pixels=pixels,
            channels=channels,
            UNITS=_UNITS,
            enable_fp_fusion=False,
            **options,
        )


def pack(x: Tensor, planes: int, scale: float) -> Tensor | None:
    """As the reference. While a graph is captured nothing can be read back: there a device-side assertion stands for
    the answer, and raises in the replay."""
    lanes, C = Lanes(*x.shape[:2]), x.shape[2]
    x, H, W, *shape = flat_rows(x)
    words = x.new_empty((planes, lanes.groups, H, W, C), dtype=torch.int64)
    broken = torch.zeros((), dtype=torch.int32, device=x.device)
    options = {"groups": lanes.groups, "scale": float(scale), "PLANES": planes}
    _launch("pack", x, words.view(torch.int32), broken, lanes=lanes, shape=shape, **options)
    if capturing(x.device):
        torch._assert_async(broken == 0, "esl_sparse: input holds other values than it was promised to")
        return words
    return None if broken else words


def unpack(words: Tensor, T: int, B: int, scale: float, dtype: torch.dtype) -> Tensor:
    planes, G, H, W, C = words.shape
    x = words.new_empty(rows_shape(T, B, H, W, C), dtype=dtype)
    options = {"groups": G, "scale": float(scale), "PLANES": planes}
    _launch("unpack", words, x, lanes=Lanes(T, B), shape=(C, H * W), **options)
    return x


def to_panels(x: Tensor) -> Tensor:
    lanes, C = Lanes(*x.shape[:2]), x.shape[2]
    x, H, W, *shape = flat_rows(x)
    panels = x.new_empty((lanes.groups, H, W, C, LANES))
    _launch("to_panels", x, panels, lanes=lanes, shape=shape)
    return panels


def from_panels(panels: Tensor, T: int, B: int) -> Tensor:
    _, H, W, C, _ = panels.shape
    x = panels.new_empty(rows_shape(T, B, H, W, C))
    _launch("from_panels", panels, x, lanes=Lanes(T, B), shape=(C, H * W))
    return x
