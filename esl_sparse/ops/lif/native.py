"""Native CPU kernels of lif. Float32 (the op widens narrow types before)."""

from __future__ import annotations

import torch
from torch import Tensor

from ..._native import lib
from ...arena import arena
from .._library import empty

SURROGATE_CODES = {"triangle": 0, "rectangle": 1, "sigmoid": 2, "atan": 3}


def currents(x: Tensor) -> tuple[Tensor, int]:
    """x ``[T, M]`` and the stride of its steps; one current repeated over time (stride 0) is not copied."""
    if x.stride(1) == 1 and x.stride(0) in (0, x.shape[1]):
        return x, x.stride(0)
    x = x.contiguous()
    return x, x.shape[1]


def potential(v: Tensor) -> tuple[Tensor, int]:
    """v ``[M]`` and its stride: 0 for one number shared by all neurons, else 1."""
    return (v, 0) if v.stride(0) == 0 else (v.contiguous(), 1)


def neuron(tau: Tensor, v_threshold: float, v_reset: float | None) -> tuple[float, float, bool, float]:
    """tau, threshold, whether the reset is hard, reset: as kernels take them."""
    return float(tau), v_threshold, v_reset is not None, v_reset or 0.0


def forward(x: Tensor, v: Tensor, tau: Tensor, v_threshold: float, v_reset: float | None, want_v: bool):
    T, M = x.shape
    x, stride = currents(x)
    v, v_stride = potential(v)
    spikes = torch.empty(T, M)
    last = torch.empty(M if want_v else 0)
    lib().lif_forward(
        T,
        M,
        x.data_ptr(),
        stride,
        v.data_ptr(),
        v_stride,
        *neuron(tau, v_threshold, v_reset),
        spikes.data_ptr(),
        last.data_ptr() if want_v else 0,
        torch.get_num_threads(),
    )
    return spikes, last


def backward(
    grad_s, grad_v, x, v, tau, v_threshold, v_reset, surrogate, width, detach_reset, need_v, need_tau
):
    T, M = x.shape
    x, stride = currents(x)
    v, v_stride = potential(v)
    grad_s = grad_s.contiguous()
    grad_v = None if grad_v is None else grad_v.contiguous()
    grad_x = torch.empty(T, M)
    grad_first = torch.empty(M if need_v else 0)
    grad_tau = torch.zeros((), dtype=torch.float64) if need_tau else None
    args = (
        T,
        M,
        x.data_ptr(),
        stride,
        v.data_ptr(),
        v_stride,
        *neuron(tau, v_threshold, v_reset),
        SURROGATE_CODES[surrogate],
        width,
        detach_reset,
        grad_s.data_ptr(),
        0 if grad_v is None else grad_v.data_ptr(),
        grad_x.data_ptr(),
        grad_first.data_ptr() if need_v else 0,
        0 if grad_tau is None else grad_tau.data_ptr(),
        torch.get_num_threads(),
    )
    run = lib().lif_backward
    with arena.borrow((run(*args, 0),)) as scratch:
        run(*args, scratch.data_ptr())
    return grad_x, grad_first, empty(tau) if grad_tau is None else grad_tau.to(tau.dtype)
