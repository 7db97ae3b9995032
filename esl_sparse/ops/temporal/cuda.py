"""CUDA kernels of temporal, in float32; sums of the causal set are float64. torch sorts the times of each sample."""

from __future__ import annotations

from torch import Tensor

from ..._cuda import launch
from .._library import address
from .native import gradients, weight


def forward(z: Tensor, values: Tensor, index: tuple[Tensor, ...], rows: int, cols: int):
    """``(z_out, slope)``; the caller has seen that all z are times."""
    values = values.contiguous()
    z_out, slope = z.new_empty((z.shape[0], rows)), z.new_empty((z.shape[0], rows))
    times, order = (t.contiguous() for t in z.sort(dim=1, stable=True))
    pointers = map(address, (times, order, z_out, slope))
    launch("temporal_forward", z.device, weight(values, index, rows, cols), z.shape[0], *pointers)
    return z_out, slope


def backward(
    grad: Tensor,
    z: Tensor,
    z_out: Tensor,
    slope: Tensor,
    values: Tensor,
    index: tuple[Tensor, ...],
    rows: int,
    cols: int,
    needs: int,
) -> tuple[Tensor, Tensor]:
    """Gradients of z and values, those that ``needs`` asks for."""

    def run(values: Tensor, *addresses: int) -> None:
        shape = weight(values, index, rows, cols), len(values), z.shape[0]
        launch("temporal_backward", z.device, *shape, *addresses)

    return gradients(run, grad, z, z_out, slope, values, needs)
