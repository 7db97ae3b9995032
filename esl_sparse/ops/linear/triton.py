"""Launches the Triton kernels of linear (``triton_kernels.py``, imported at the first launch)."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from ...packed import LANES, Lanes
from ...topology import BlockTopology
from .._library import empty
from .._triton import on as _on


def _kernels() -> ModuleType:
    from . import triton_kernels

    return triton_kernels


def _options(values: Tensor, topology: BlockTopology, lanes: Lanes, dtype: torch.dtype) -> dict[str, Any]:
    """What every kernel is told: sizes, and whether products must be full float32 (torch's own switch)."""
    tf32 = torch.backends.cuda.matmul.fp32_precision == "tf32"
    return {
        "rows": topology.layout.rows,
        "cols": topology.layout.cols,
        "samples": lanes.T * lanes.B,
        "B": lanes.B,
        "padded": lanes.padded,
        "groups": lanes.groups,
        "BM": values.shape[1],
        "BN": values.shape[2],
        "PRECISION": "ieee" if dtype == torch.float32 and not tf32 else "tf32",
        "enable_fp_fusion": True,  # off by default from Triton 3.10; full float32 would take twice the time
    }


def _activation(C: int, lanes: Lanes, panels: bool, like: Tensor, dtype: torch.dtype) -> Tensor:
    shape = (lanes.groups, 1, 1, C, LANES) if panels else (lanes.T * lanes.B, C)
    return like.new_empty(shape, dtype=dtype)


def forward(
    x: Tensor, values: Tensor, bias: Tensor | None, topology: BlockTopology, call, dtype: torch.dtype
) -> Tensor:
    """y in ``dtype``, rows or a panel. x is words if ``call.planes``, else float rows."""
    lanes, lay = Lanes(call.T, call.B), topology.layout
    y = _activation(lay.rows, lanes, call.panels, values, dtype)
    if not y.numel():
        return y

    def grid(meta):
        return (-(-lanes.groups * LANES // meta["LANES"]) * lay.row_blocks,)

    with _on(y.device):
        _kernels().forward[grid](
            x.contiguous(),
            values.contiguous(),
            values if bias is None else bias.contiguous(),
            y,
            topology.crow_indices,
            topology.col_indices,
            scale=call.scale,
            PLANES=call.planes,
            PANELS=call.panels,
            BIAS=bias is not None,
            **_options(values, topology, lanes, dtype),
        )
    return y


def backward(
    grad: Tensor, x: Tensor, values: Tensor, topology: BlockTopology, call, x_panels: bool, needs: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, values and bias, those that the bits of ``needs`` ask for; the others are empty."""
    lanes, grad = Lanes(call.T, call.B), grad.contiguous()
    grad_x, grad_values, grad_bias = empty(grad), empty(values), empty(values)
    with _on(values.device):
        if needs & 1:
            grad_x = _grad_input(grad, values, topology, lanes, call.panels, x_panels)
        if needs & 2:
            grad_values = _grad_values(grad, x, values, topology, lanes, call)
    if needs & 4:
        # Padding lanes of a gradient panel are zero.
        over = (0, 1, 2, 4) if call.panels else 0
        grad_bias = grad.sum(over, dtype=torch.float32).to(values.dtype)
    return grad_x, grad_values, grad_bias


def _grad_input(grad, values, topology: BlockTopology, lanes: Lanes, panels: bool, x_panels: bool) -> Tensor:
    lay = topology.layout
    grad_x = _activation(lay.cols, lanes, x_panels, grad, grad.dtype)

    def grid(meta):
        return (-(-lanes.groups * LANES // meta["LANES"]) * lay.col_blocks,)

    if grad_x.numel():
        _kernels().grad_input[grid](
            grad,
            values.contiguous(),
            grad_x,
            topology.ccol_indices,
            topology.row_indices_t,
            topology.block_offsets_t,
            PANELS=panels,
            X_PANELS=x_panels,
            **_options(values, topology, lanes, grad.dtype),
        )
    return grad_x


def _grad_values(grad, x, values, topology: BlockTopology, lanes: Lanes, call) -> Tensor:
    lay = topology.layout
    grad_values = torch.empty_like(values, memory_format=torch.contiguous_format)

    def grid(meta):
        # As many parts as an average block row has tiles; the parts of a longer row take several.
        channels = lay.row_blocks * meta["CHANNELS"]
        return (lay.row_blocks * -(-topology.nnzb * lay.bn // channels),)

    if grad_values.numel():
        _kernels().grad_values[grid](
            grad,
            x.contiguous(),
            grad_values,
            topology.crow_indices,
            topology.col_indices,
            scale=call.scale,
            PLANES=call.planes,
            PANELS=call.panels,
            **_options(values, topology, lanes, grad.dtype),
        )
    return grad_values
