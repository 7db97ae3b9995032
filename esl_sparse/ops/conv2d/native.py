"""Native CPU kernels of conv2d, from words or panels to panels. Computed in float32."""

from __future__ import annotations

import torch
from torch import Tensor

from ..._native import lib
from ...arena import arena
from ...packed import LANES, Lanes
from .._library import empty
from .geometry import Geometry

KERNELS = ("automatic", "masked", "tables")
_kernel = 0
_MOST = 2**31 - 1  # words, or panels, between the taps of an output pixel: kernels count them in 32 bits


def set_spike_kernel(name: str) -> None:
    """Force the kernel that multiplies spikes (tests, benchmarks); "automatic" takes the fastest known one."""
    global _kernel
    _kernel = KERNELS.index(name)


def _floats(tensor: Tensor) -> Tensor:
    return tensor.to(torch.float32).contiguous()


def _address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


def _run(kernel, *args) -> None:
    with arena.borrow((max(kernel(*args, 0), 64),), torch.uint8) as scratch:
        kernel(*args, scratch.data_ptr())


def _check_reach(g: Geometry, channels: int) -> None:
    width = max(g.W, (g.Wo - 1) * g.stride_w + (g.kw - 1) * g.dilation_w + 1)
    reach = ((g.kh - 1) * g.dilation_h * width + (g.kw - 1) * g.dilation_w + 1) * channels
    if reach > _MOST:
        raise ValueError(
            f"geometry: expected taps that reach over {_MOST} channels of pixels at most, these reach over {reach}: {g}"
        )


def _weight(
    values: Tensor, index: tuple[Tensor, ...], geometry: Geometry, rows: int, cols: int
) -> tuple[int, ...]:
    _check_reach(geometry, cols // geometry.taps * geometry.groups)
    return (rows, cols, *values.shape[1:], *[tensor.data_ptr() for tensor in index], values.data_ptr())


def forward(x, values, bias, index, geometry, rows, cols, T, B, planes, scale, want_stats):
    """Panels ``[G, Ho, Wo, rows, 64]`` and, if wanted, float64 ``[2, rows]``: mean and biased variance."""
    packed = x.dtype == torch.int64
    dtype = values.dtype if packed else x.dtype
    x = x.contiguous() if packed else _floats(x)
    values = _floats(values)
    bias = None if bias is None else _floats(bias)
    y = arena.tensor((Lanes(T, B).groups, geometry.Ho, geometry.Wo, rows, LANES))
    stats = torch.empty((2, rows) if want_stats else (0,), dtype=torch.float64)
    _run(
        lib().conv2d_forward,
        _weight(values, index, geometry, rows, cols),
        tuple(geometry),
        T,
        B,
        _address(bias),
        x.data_ptr() if packed else 0,
        planes,
        scale,
        0 if packed else x.data_ptr(),
        y.data_ptr(),
        stats.data_ptr() if want_stats else 0,
        _kernel,
        torch.get_num_threads(),
    )
    return y.to(dtype), stats


def backward(grad, x, values, index, geometry, rows, cols, T, B, planes, scale, needs):
    dtype, packed = grad.dtype, x.dtype == torch.int64
    grad = _floats(grad)
    x = x.contiguous() if packed else _floats(x)
    weights = _floats(values)
    channels = cols // geometry.taps * geometry.groups
    grad_x = grad_values = grad_bias = None
    if needs & 1:
        grad_x = arena.tensor((Lanes(T, B).groups, geometry.H, geometry.W, channels, LANES))
    if needs & 2:
        grad_values = torch.empty_like(weights)
    if needs & 4:
        grad_bias = torch.empty(rows)
    _run(
        lib().conv2d_backward,
        _weight(weights, index, geometry, rows, cols),
        tuple(geometry),
        T,
        B,
        grad.data_ptr(),
        x.data_ptr() if packed else 0,
        planes,
        scale,
        0 if packed else x.data_ptr(),
        _address(grad_x),
        _address(grad_values),
        _address(grad_bias),
        torch.get_num_threads(),
    )
    return (
        empty(grad).to(dtype) if grad_x is None else grad_x.to(dtype),
        empty(values) if grad_values is None else grad_values.to(values.dtype),
        empty(values) if grad_bias is None else grad_bias.to(values.dtype),
    )
