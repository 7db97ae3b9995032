"""Launches the Triton kernels of conv2d (``triton_kernels.py``, imported at the first launch)."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from ...packed import LANES, Lanes
from ...topology import next_power_of_two
from .._library import empty
from .._triton import on, products
from .geometry import Geometry

# Programs that grad_values should have, so that a chip of some 130 multiprocessors is busy to the end; and the most
# parts that its sum over pixels and lanes is cut into, for each of which memory is taken.
_PROGRAMS = 1024
_SPLITS = 64


def _kernels() -> ModuleType:
    from . import triton_kernels

    return triton_kernels


def _options(
    values: Tensor, g: Geometry, rows: int, cols: int, planes: int, dtype: torch.dtype
) -> dict[str, Any]:
    """What every kernel is told."""
    return {
        "groups": g.groups,
        "out_per_group": rows // g.groups,
        "in_per_group": cols // g.taps,
        "H": g.H,
        "W": g.W,
        "Ho": g.Ho,
        "Wo": g.Wo,
        "KW": g.kw,
        "STRIDE_H": g.stride_h,
        "STRIDE_W": g.stride_w,
        "PADDING_H": g.padding_h,
        "PADDING_W": g.padding_w,
        "DILATION_H": g.dilation_h,
        "DILATION_W": g.dilation_w,
        "BM": values.shape[1],
        "BN": values.shape[2],
        "PLANES": planes,
        **products(dtype),
    }


def forward(
    x: Tensor,
    values: Tensor,
    bias: Tensor | None,
    index: tuple[Tensor, ...],
    g: Geometry,
    rows: int,
    cols: int,
    T: int,
    B: int,
    planes: int,
    scale: float,
    want_stats: bool,
) -> tuple[Tensor, Tensor]:
    """Panels in the dtype of x, or of values if x holds words; and their statistics if wanted."""
    lanes, (crow, col, *_) = Lanes(T, B), index
    y = values.new_empty((lanes.groups, g.Ho, g.Wo, rows, LANES), dtype=values.dtype if planes else x.dtype)
    units = lanes.groups * g.Ho * g.Wo
    row_blocks = crow.numel() - 1
    # For the narrowest tile; a wider one leaves the rest as it is: tiles of no values.
    parts = values.new_zeros((units if want_stats else 0, 3, rows), dtype=torch.float32)

    def grid(meta):
        return (-(-units // meta["UNITS"]) * row_blocks,)

    if y.numel():
        with on(y.device):
            _kernels().forward[grid](
                x.contiguous(),
                values.contiguous(),
                values if bias is None else bias.contiguous(),
                y,
                parts,
                crow,
                col,
                units,
                T=T,
                B=B,
                padded=lanes.padded,
                scale=scale,
                BIAS=bias is not None,
                STATS=want_stats,
                **_options(values, g, rows, cols, planes, y.dtype),
            )
    return y, _combined(parts) if want_stats else empty(parts).double()


def _combined(parts: Tensor) -> Tensor:
    """float64 ``[2, rows]``: mean and biased variance, from numbers, means and squared distances of parts (Chan)."""
    number, mean, squares = parts.double().unbind(1)
    total = number.sum(0).clamp(min=1)
    of_all = (number * mean).sum(0) / total
    return torch.stack([of_all, (squares + number * (mean - of_all).square()).sum(0) / total])


def backward(
    grad: Tensor,
    x: Tensor,
    values: Tensor,
    index: tuple[Tensor, ...],
    g: Geometry,
    rows: int,
    cols: int,
    T: int,
    B: int,
    planes: int,
    scale: float,
    needs: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x (panels), values and bias, those that the bits of ``needs`` ask for; the others are empty."""
    grad = grad.contiguous()
    options = _options(values, g, rows, cols, planes, grad.dtype)
    grad_x, grad_values, grad_bias = empty(grad), empty(values), empty(values)
    with on(grad.device):
        if needs & 1:
            grad_x = _grad_input(grad, values, index, g, cols, Lanes(T, B), options)
        if needs & 2:
            grad_values = _grad_values(grad, x, values, index, Lanes(T, B), scale, options)
    if needs & 4:
        # Padding lanes of a gradient panel are zero.
        grad_bias = grad.sum((0, 1, 2, 4), dtype=torch.float32).to(values.dtype)
    return grad_x, grad_values, grad_bias


def _grad_input(grad, values, index, g: Geometry, cols: int, lanes: Lanes, options) -> Tensor:
    channels = cols // g.taps * g.groups
    grad_x = grad.new_empty((lanes.groups, g.H, g.W, channels, LANES))
    units = lanes.groups * g.H * g.W
    pieces = (index[2].numel() - 1) // g.taps * g.groups

    def grid(meta):
        return (-(-units // meta["UNITS"]) * pieces,)

    if grad_x.numel():
        _kernels().grad_input[grid](
            grad,
            values.contiguous(),
            grad_x,
            *index[2:],
            units,
            TAPS=g.taps,
            ALL=next_power_of_two(g.taps),
            **options,
        )
    return grad_x


def _grad_values(grad, x, values, index, lanes: Lanes, scale: float, options) -> Tensor:
    nnzb, _, bn = values.shape
    if not values.numel() or not grad.numel():
        return torch.zeros_like(values, memory_format=torch.contiguous_format)
    row_blocks = index[0].numel() - 1
    units = grad.numel() // (grad.shape[3] * LANES)
    programs = row_blocks * -(-nnzb * bn // (row_blocks * 64))
    splits = next_power_of_two(min(-(-_PROGRAMS // programs), units, _SPLITS))
    sums = grad.new_empty((splits, *values.shape), dtype=torch.float32)

    def grid(meta):
        # As many parts as an average block row has tiles; the parts of a longer row take several.
        return row_blocks, -(-nnzb * bn // (row_blocks * meta["CHANNELS"])), splits

    _kernels().grad_values[grid](
        grad,
        x.contiguous(),
        sums,
        *index[:2],
        nnzb,
        units,
        scale=scale,
        SPLITS=splits,
        **options,
    )
    return (sums[0] if splits == 1 else sums.sum(0)).to(values.dtype)
