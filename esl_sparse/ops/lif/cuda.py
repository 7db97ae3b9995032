"""CUDA kernels of lif. Computed in float32 (the op widens narrow types before)."""

from __future__ import annotations

import torch
from torch import Tensor

from ..._cuda import launch
from .._library import address, empty
from .native import SURROGATE_CODES, currents, potential


def neuron(tau: Tensor, v_threshold: float, v_reset: float | None) -> tuple[int, float, bool, float]:
    """Address of tau, threshold, whether the reset is hard, reset: tau, float32, stays on the GPU."""
    return tau.data_ptr(), v_threshold, v_reset is not None, v_reset or 0.0


def forward(x: Tensor, v: Tensor, tau: Tensor, v_threshold: float, v_reset: float | None, want_v: bool):
    T, M = x.shape
    x, stride = currents(x)
    v, v_stride = potential(v)
    tau = tau.to(x)
    spikes = x.new_empty((T, M))
    last = x.new_empty(M if want_v else 0)
    launch(
        "lif_forward",
        x.device,
        T,
        M,
        x.data_ptr(),
        stride,
        v.data_ptr(),
        v_stride,
        neuron(tau, v_threshold, v_reset),
        spikes.data_ptr(),
        last.data_ptr() if want_v else 0,
    )
    return spikes, last


def backward(
    grad_s, grad_v, x, v, tau, v_threshold, v_reset, surrogate, width, detach_reset, need_v, need_tau
):
    T, M = x.shape
    x, stride = currents(x)
    v, v_stride = potential(v)
    like, tau = tau, tau.to(x)
    grad_s = grad_s.contiguous()
    grad_v = None if grad_v is None or not grad_v.numel() else grad_v.contiguous()
    grad_x = x.new_empty((T, M))
    grad_first = x.new_empty(M if need_v else 0)
    grad_tau = x.new_empty(M) if need_tau else None
    launch(
        "lif_backward",
        x.device,
        T,
        M,
        x.data_ptr(),
        stride,
        v.data_ptr(),
        v_stride,
        neuron(tau, v_threshold, v_reset),
        SURROGATE_CODES[surrogate],
        width,
        detach_reset,
        grad_s.data_ptr(),
        address(grad_v),
        grad_x.data_ptr(),
        grad_first.data_ptr() if need_v else 0,
        address(grad_tau),
    )
    return (
        grad_x,
        grad_first,
        empty(like) if grad_tau is None else grad_tau.sum(dtype=torch.float64).to(like.dtype),
    )
