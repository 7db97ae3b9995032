"""Launches the Triton kernels of lif (``triton_kernels.py``, imported at the first launch).

The tile of a program is fixed: nothing is tuned. A call can be captured once one like it has loaded the kernel.
"""

from __future__ import annotations

from types import ModuleType

import torch
from torch import Tensor

from .._library import empty
from .._triton import even_chunks, on

_WARPS = 2
# Steps that forward loads ahead, and potentials that a thread of backward holds in registers: of 10 steps of 4 neurons,
# or 5 of 8, which 16 bytes of a narrow row are. With more it spills.
_FORWARD_STEPS = 10
_POTENTIALS = 40


def _kernels() -> ModuleType:
    from . import triton_kernels

    return triton_kernels


def _neurons(x: Tensor) -> int:
    """Of a thread: 16 bytes."""
    return 16 // x.element_size()


def _rows(x: Tensor) -> Tensor:
    """x ``[T, M]`` with neighbouring neurons side by side; its steps may be anywhere."""
    return x if x.stride(1) == 1 else x.contiguous()


def _neuron(v_threshold: float, v_reset: float | None) -> dict:
    return {
        "v_threshold": float(v_threshold),
        "v_reset": float(v_reset or 0.0),
        "HARD": v_reset is not None,
        "enable_fp_fusion": False,  # spikes must equal those of the plain loop
        "num_warps": _WARPS,
    }


def forward(
    x: Tensor, v: Tensor, tau: Tensor, v_threshold: float, v_reset: float | None, want_v: bool
) -> tuple[Tensor, Tensor]:
    """Spikes ``[T, M]`` in x's dtype and the last potential (empty unless wanted) in float32, like v and tau."""
    T, M = x.shape
    x, block, steps = _rows(x), _WARPS * 32 * _neurons(x), even_chunks(T, _FORWARD_STEPS)
    spikes, last = x.new_empty(T, M), v.new_empty(M if want_v else 0)
    if M:
        with on(x.device):
            _kernels().forward[(-(-M // block),)](
                x,
                v if v.stride(0) == 0 else v.contiguous(),
                tau,
                spikes,
                last,
                T,
                M,
                x.stride(0),
                SHARED=v.stride(0) == 0,
                WANT_V=want_v,
                WHOLE=T % steps == 0,
                STEPS=steps,
                BLOCK=block,
                **_neuron(v_threshold, v_reset),
            )
    return spikes, last


def backward(
    grad_s: Tensor,
    grad_v: Tensor | None,
    x: Tensor,
    v: Tensor,
    tau: Tensor,
    v_threshold: float,
    v_reset: float | None,
    surrogate: str,
    width: float,
    detach_reset: bool,
    need_v: bool,
    need_tau: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x in its dtype, of the first potential and of tau, those not needed empty."""
    T, M = x.shape
    x, grad_s = _rows(x), _rows(grad_s)
    # Half of 16 bytes costs less than to read narrow rows in pieces.
    neurons = _neurons(x) if T * _neurons(x) <= _POTENTIALS else 4
    block, steps = _WARPS * 32 * neurons, even_chunks(T, _POTENTIALS // neurons)
    has_grad_v = grad_v is not None and grad_v.numel() > 0
    programs, chunks = -(-M // block), -(-T // steps)
    grad_x, grad_first = x.new_empty(T, M), v.new_empty(M if need_v else 0)
    parts = tau.new_empty(programs if need_tau else 0)  # summed in order below
    starts = v.new_empty(max(chunks - 1, 0), M)
    if M:
        with on(x.device):
            _kernels().backward[(programs,)](
                grad_s,
                grad_v.contiguous() if has_grad_v and grad_v is not None else tau,
                x,
                v if v.stride(0) == 0 else v.contiguous(),
                tau,
                grad_x,
                grad_first,
                parts,
                starts,
                T,
                M,
                x.stride(0),
                grad_s.stride(0),
                width=float(width),
                DETACH=detach_reset,
                SURROGATE=surrogate,
                SHARED=v.stride(0) == 0,
                GRAD_V=has_grad_v,
                NEED_V=need_v,
                NEED_TAU=need_tau,
                CHUNKED=chunks > 1,
                WHOLE=T % steps == 0,
                STEPS=steps,
                BLOCK=block,
                **_neuron(v_threshold, v_reset),
            )
    grad_tau = parts.sum(dtype=torch.float64).to(tau.dtype) if need_tau else empty(tau)
    return grad_x, grad_first, grad_tau
