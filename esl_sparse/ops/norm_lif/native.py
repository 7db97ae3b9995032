"""Native CPU kernels of norm_lif, for float32 panels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..._native import lib
from ...arena import arena
from .._library import address, empty
from ..lif.native import SURROGATE_CODES, neuron
from .reference import affine

if TYPE_CHECKING:
    from .op import Backward, Forward


def _contiguous(*tensors: Tensor | None) -> tuple[Tensor | None, ...]:
    return tuple(None if tensor is None else tensor.contiguous() for tensor in tensors)


def _addresses(tensors: Sequence[Tensor | None]) -> tuple[int, ...]:
    return tuple(map(address, tensors))


def _shape(panel: Tensor, T: int, B: int) -> tuple[int, int, int, int, int]:
    return T, B, panel.shape[1], panel.shape[2], panel.shape[3]


def _inputs(
    call: Forward | Backward, first: tuple, second: tuple, residual: Tensor | None
) -> tuple[object, ...]:
    """Shape, neuron, currents (panel, a, b) and residual as the kernels take them, and the threads."""
    return (
        _shape(call.current, call.T, call.B),
        neuron(call.tau, call.v_threshold, call.v_reset),
        _addresses(first),
        _addresses(second),
        (address(residual), 0 if residual is None else residual.shape[0], call.residual_scale),
        torch.get_num_threads(),
    )


def forward(call: Forward) -> Tensor:
    first = _contiguous(call.current, call.a, call.b)
    second = _contiguous(call.current2, call.a2, call.b2)
    (residual,) = _contiguous(call.residual)
    words = arena.tensor((1, *call.current.shape[:4]), torch.int64)
    lib().norm_lif_forward(*_inputs(call, first, second, residual), words.data_ptr())
    return words


def backward(call: Backward) -> tuple[Tensor, ...]:
    norm, norm2 = call.norms
    first = _contiguous(call.current, *affine(*norm[:4]))
    second = _contiguous(call.current2, *affine(*norm2[:4]))
    stats, stats2 = _contiguous(norm.mean, norm.rstd), _contiguous(norm2.mean, norm2.rstd)
    residual, words, grad = _contiguous(call.residual, call.words, call.grad)
    panel, vector = tuple(call.current.shape), (call.current.shape[3],)
    asked = [bool(call.needs >> i & 1) for i in range(8)]
    of_norms = [arena.tensor(vector) if asked[i] else None for i in (1, 2, 4, 5)]
    grad_residual = arena.tensor(panel) if asked[6] else None
    grad_tau = torch.empty((), dtype=torch.float64) if asked[7] else None
    args = (
        *_inputs(call, first, second, residual),
        SURROGATE_CODES[call.surrogate],
        call.width,
        call.detach_reset,
        address(words),
        address(grad),
        call.pool,
        (*_addresses(stats), norm.batch_stats, asked[0] * address(first[0]), *_addresses(of_norms[:2])),
        (*_addresses(stats2), norm2.batch_stats, asked[3] * address(second[0]), *_addresses(of_norms[2:])),
        address(grad_residual),
        address(grad_tau),
    )
    run = lib().norm_lif_backward
    with arena.borrow((run(*args, 0),), torch.float64) as scratch:
        run(*args, scratch.data_ptr())
    for given, used in ((call.current, first[0]), (call.current2, second[0])):
        if given is not None and used is not None and used is not given:
            given.copy_(used)
    return (
        *(empty(call.current) if result is None else result for result in (*of_norms, grad_residual)),
        empty(call.tau) if grad_tau is None else grad_tau.to(call.tau.dtype),
    )


def panel_stats(current: Tensor, T: int, B: int) -> Tensor:
    current = current.contiguous()
    stats = torch.empty((2, current.shape[3]), dtype=torch.float64)
    args = (*_shape(current, T, B), current.data_ptr(), stats.data_ptr(), torch.get_num_threads())
    run = lib().panel_stats
    with arena.borrow((run(*args, 0),), torch.float64) as scratch:
        run(*args, scratch.data_ptr())
    return stats
