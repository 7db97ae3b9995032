"""Native CPU kernels of linear. Sums are float32; bfloat16 activations are widened in tile loads and stores."""

from __future__ import annotations

import torch
from torch import Tensor

from ..._native import lib
from ...arena import arena
from ...packed import LANES, Lanes
from .._library import address, empty

KERNELS = ("automatic", "masked", "tables", "events")
_kernel = 0


def set_spike_kernel(name: str) -> None:
    """Force the kernel that multiplies spikes (tests, benchmarks); "automatic" takes the fastest known one."""
    global _kernel
    _kernel = KERNELS.index(name)


def _as(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """Contiguous and of ``dtype``; calls nothing when it is so already, which is what small layers pay for."""
    if tensor.dtype != dtype:
        tensor = tensor.to(dtype)
    return tensor if tensor.is_contiguous() else tensor.contiguous()


def _with_scratch(run, *args) -> int:
    """Call a kernel; where it answers with the bytes of scratch that it needs, lend them and call again."""
    needed = run(*args, 0, 0)
    if needed <= 0:
        return needed
    with arena.borrow((needed,), torch.uint8) as scratch:
        return run(*args, scratch.data_ptr(), needed)


def forward(x, values, bias, index, call):
    """``(y, words)`` as the raw op; y is None if x breaks its promise."""
    rows, cols, T, B, planes, scale, panels = call
    _, bm, bn = values.shape
    packed = x.dtype == torch.int64
    dtype = values.dtype if packed else x.dtype
    x = _as(x, x.dtype)
    groups = Lanes(T, B).groups
    words = x if packed else None
    if planes and not packed:
        words = torch.empty((planes, groups, 1, 1, cols), dtype=torch.int64)
    # Panels are float32 inside; rows are narrowed as they leave.
    y = torch.empty(
        (groups, 1, 1, rows, LANES) if panels else (T * B, rows),
        dtype=torch.float32 if panels else dtype,
    )
    weights = _as(values, torch.float32)
    bias = None if bias is None else _as(bias, torch.float32)
    broken = _with_scratch(
        lib().linear_forward,
        rows,
        cols,
        bm,
        bn,
        *[tensor.data_ptr() for tensor in index],
        weights.data_ptr(),
        address(bias),
        T,
        B,
        address(words),
        planes,
        scale,
        0 if packed else x.data_ptr(),
        y.data_ptr(),
        dtype == torch.bfloat16,
        panels,
        _kernel,
        torch.get_num_threads(),
    )
    if broken:
        return None, None
    saved = torch.empty(0, dtype=torch.int64) if packed or words is None else words
    return _as(y, dtype), saved


def backward(grad, x, values, index, call, x_panels, needs):
    rows, cols, T, B, planes, scale, panels = call
    _, bm, bn = values.shape
    dtype = grad.dtype
    # Panels are float32 inside.
    row_dtype = torch.float32 if panels or x_panels else dtype
    grad = _as(grad, row_dtype)
    x = _as(x, x.dtype if planes else row_dtype)
    weights = _as(values, torch.float32)
    grad_x = grad_values = grad_bias = None
    if needs & 1:
        shape = (Lanes(T, B).groups, 1, 1, cols, LANES) if x_panels else (T * B, cols)
        grad_x = torch.empty(shape, dtype=row_dtype)
    if needs & 2:
        grad_values = torch.empty_like(weights)
    if needs & 4:
        grad_bias = torch.empty(rows, dtype=torch.float32)
    _with_scratch(
        lib().linear_backward,
        rows,
        cols,
        bm,
        bn,
        *[tensor.data_ptr() for tensor in index],
        weights.data_ptr(),
        T,
        B,
        grad.data_ptr(),
        panels,
        row_dtype == torch.bfloat16,
        x.data_ptr() if planes else 0,
        planes,
        scale,
        0 if planes else x.data_ptr(),
        address(grad_x),
        x_panels,
        address(grad_values),
        address(grad_bias),
        torch.get_num_threads(),
    )
    return (
        empty(grad) if grad_x is None else _as(grad_x, dtype),
        empty(values) if grad_values is None else _as(grad_values, values.dtype),
        empty(values) if grad_bias is None else _as(grad_bias, values.dtype),
    )
