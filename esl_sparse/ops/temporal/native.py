"""Native CPU kernels of temporal, in float32; sums of the causal set are float64."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..._native import lib
from ...arena import arena
from .._library import address, empty


def weight(values: Tensor, index: tuple[Tensor, ...], rows: int, cols: int) -> tuple[int, ...]:
    return rows, cols, *values.shape[1:], *map(address, index), address(values)


def forward(z: Tensor, values: Tensor, index: tuple[Tensor, ...], rows: int, cols: int):
    """``(z_out, slope, visits)``: the last is the number of inputs that were looked at; None if one is no time."""
    z, values = z.contiguous(), values.contiguous()
    z_out, slope = z.new_empty((z.shape[0], rows)), z.new_empty((z.shape[0], rows))
    visits = torch.zeros((), dtype=torch.int64)
    args = (
        weight(values, index, rows, cols),
        z.shape[0],
        *map(address, (z, z_out, slope, visits)),
        torch.get_num_threads(),
    )
    run = lib().temporal_forward
    with arena.borrow((run(*args, 0),), torch.uint8) as scratch:
        bad = run(*args, scratch.data_ptr())
    return None if bad else (z_out, slope, int(visits))


def gradients(
    run: Callable[..., object],
    grad: Tensor,
    z: Tensor,
    z_out: Tensor,
    slope: Tensor,
    values: Tensor,
    needs: int,
) -> tuple[Tensor, Tensor]:
    """Gradients of z and values, those that ``needs`` asks for; ``run(values, *addresses)`` writes them."""
    grad, z, z_out, slope, values = (t.contiguous() for t in (grad, z, z_out, slope, values))
    grad_z = torch.empty_like(z) if needs & 1 else empty(z)
    grad_values = torch.empty_like(values) if needs & 2 else empty(values)
    wanted = address(grad_z) if needs & 1 else 0, address(grad_values) if needs & 2 else 0
    run(values, *map(address, (grad, z, z_out, slope)), *wanted)
    return grad_z, grad_values


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
        kernel = lib().temporal_backward
        args = weight(values, index, rows, cols), z.shape[0], *addresses, torch.get_num_threads()
        with arena.borrow((kernel(*args, 0),), torch.uint8) as scratch:
            kernel(*args, scratch.data_ptr())

    return gradients(run, grad, z, z_out, slope, values, needs)
