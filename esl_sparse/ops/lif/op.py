"""Op ``lif``: leaky integrate-and-fire neurons over T steps, with a surrogate gradient.

Raw ops: ``lif`` and ``lif_backward``. Only the currents are kept for backward; potentials and spikes are recomputed
from them, step for step as in forward. Potentials and tau are float32 at least; spikes and the gradient of the currents
are as narrow as the currents.
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod

import torch
from torch import Tensor

from ..._backends import choose
from .._library import Function, NoDoubleBackward, apply, define, differentiable_backward, empty
from . import cuda, native, reference, triton
from .surrogate import SURROGATES

_WIDE = {"native": native, "cuda": cuda}  # compute in the dtype of their currents


def _forward(x, v, tau, v_threshold, v_reset, want_v):
    backend = choose("lif", x.device.type, v.dtype)
    if backend == "triton":
        return triton.forward(x, v, tau, v_threshold, v_reset, want_v)
    wide = x.to(v.dtype)
    if backend in _WIDE:
        spikes, last = _WIDE[backend].forward(wide, v, tau, v_threshold, v_reset, want_v)
    else:
        spikes, last = reference.forward(wide, v, tau, v_threshold, v_reset)
    return spikes.to(x.dtype), last if want_v else empty(last)


def _forward_fake(x, v, tau, v_threshold, v_reset, want_v):
    return x.new_empty(x.shape), v.new_empty(v.shape if want_v else (0,))


def _backward(
    grad_s, grad_v, x, v, tau, v_threshold, v_reset, surrogate, width, detach_reset, need_v, need_tau
):
    options = (v_threshold, v_reset, surrogate, width, detach_reset, need_v, need_tau)
    backend = choose("lif", x.device.type, v.dtype)
    if backend == "triton":
        return triton.backward(grad_s, grad_v, x, v, tau, *options)
    dtype, grad_s, x = x.dtype, grad_s.to(v.dtype), x.to(v.dtype)
    if backend in _WIDE:
        grad_x, grad_first, grad_tau = _WIDE[backend].backward(grad_s, grad_v, x, v, tau, *options)
        return grad_x.to(dtype), grad_first, grad_tau
    named = SURROGATES[surrogate]
    # Compiled graphs pass an empty gradient for a last potential that was not asked for.
    grad_v = torch.zeros_like(v) if grad_v is None or not grad_v.numel() else grad_v
    grad_x, grad_first, grad_tau = reference.backward(
        grad_s, grad_v, x, v, tau, v_threshold, v_reset, lambda d: named(d, width), detach_reset
    )
    return grad_x.to(dtype), grad_first if need_v else empty(v), grad_tau if need_tau else empty(tau)


def _backward_fake(
    grad_s, grad_v, x, v, tau, v_threshold, v_reset, surrogate, width, detach_reset, need_v, need_tau
):
    return (
        x.new_empty(x.shape),
        v.new_empty(v.shape if need_v else (0,)),
        tau.new_empty(() if need_tau else (0,)),
    )


lif_op = define(
    "lif(Tensor x, Tensor v, Tensor tau, float v_threshold, float? v_reset, bool want_v) -> (Tensor, Tensor)",
    _forward,
    _forward_fake,
)
lif_backward_op = define(
    "lif_backward(Tensor grad_s, Tensor? grad_v, Tensor x, Tensor v, Tensor tau, float v_threshold, float? v_reset,"
    " str surrogate, float width, bool detach_reset, bool need_v, bool need_tau) -> (Tensor, Tensor, Tensor)",
    _backward,
    _backward_fake,
)


class _LIFBackward(NoDoubleBackward):
    @staticmethod
    def forward(*args):
        return lif_backward_op(*args)


class _LIFBackwardCallable(NoDoubleBackward):
    @staticmethod
    def forward(
        grad_s, grad_v, x, v, tau, v_threshold, v_reset, surrogate, width, detach_reset, need_v, need_tau
    ):
        wide = (grad_s.to(v.dtype), grad_v, x.to(v.dtype), v, tau)
        grad_x, grad_first, grad_tau = reference.backward(
            *wide, v_threshold, v_reset, surrogate, detach_reset
        )
        return grad_x.to(x.dtype), grad_first, grad_tau


class _LIF(Function):
    @staticmethod
    def forward(x, v, tau, v_threshold, v_reset, want_v, surrogate, width, detach_reset):
        return lif_op(x, v, tau, v_threshold, v_reset, want_v)

    @staticmethod
    def setup_context(ctx, inputs, output):
        x, v, tau, *ctx.options = inputs
        ctx.save_for_backward(x, v, tau)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx, grad_s, grad_v):
        if grad_s is None and grad_v is None:
            return (None,) * 9
        x, v, tau = ctx.saved_tensors
        v_threshold, v_reset, _, surrogate, width, detach_reset = ctx.options
        need_v, need_tau = ctx.needs_input_grad[1:3]
        if grad_s is None:
            grad_s = torch.zeros(x.shape, dtype=x.dtype, device=x.device)
        if isinstance(surrogate, str):
            run = _LIFBackward.apply if differentiable_backward() else lif_backward_op
        else:
            run = _LIFBackwardCallable.apply
            grad_v = torch.zeros_like(v) if grad_v is None else grad_v
        grad_x, grad_first, grad_tau = run(
            grad_s, grad_v, x, v, tau, v_threshold, v_reset, surrogate, width, detach_reset, need_v, need_tau
        )
        return grad_x, grad_first if need_v else None, grad_tau if need_tau else None, *((None,) * 6)


def lif(
    x: Tensor,
    v: Tensor | None = None,
    tau: float | Tensor = 0.5,
    v_threshold: float = 1.0,
    v_reset: float | None = 0.0,
    surrogate: str | Callable[[Tensor], Tensor] = "triangle",
    width: float = 1.0,
    detach_reset: bool = False,
    want_v: bool = True,
) -> tuple[Tensor, Tensor | None]:
    """Leaky integrate and fire (paper Eq. 7-8): ``u <- tau u + x; s = [u > v_threshold]``; reset; T times.

    Args:
        x: input currents ``[T, ...]``, floating point. Narrow types are computed in float32.
        v: potential before the first step, ``x.shape[1:]``; None means ``v_reset`` (0 for the soft reset).
        tau: decay factor of one step in (0, 1], a number or a 0-dim tensor (learnable).
        v_threshold: a neuron fires when its potential exceeds this.
        v_reset: potential after a spike; None subtracts the threshold instead (soft reset).
        surrogate: name in ``SURROGATES``, or a function of ``u - v_threshold`` that returns the derivative.
        width: width of a named surrogate, in units of the potential.
        detach_reset: keep the gradient out of the reset.
        want_v: also return the last potential.

    Returns:
        Spikes, 0 and 1 in x's dtype and shape, and the potential after the last step (None unless wanted), at least
        float32 so that steps taken one by one give the same spikes. Differentiable once.
    """
    if not isinstance(x, Tensor) or not x.is_floating_point():
        raise TypeError(f"x: expected a floating-point tensor, got {getattr(x, 'dtype', type(x).__name__)}")
    if x.dim() < 1:
        raise ValueError("x: expected currents [T, ...], got a scalar")
    if isinstance(surrogate, str) and surrogate not in SURROGATES:
        raise ValueError(f"surrogate: expected a callable or one of {sorted(SURROGATES)}, got {surrogate!r}")
    if not width > 0:
        raise ValueError(f"width: expected a positive number, got {width!r}")
    shape = x.shape
    dtype = torch.float32 if x.dtype.itemsize < 4 else x.dtype
    if v is None:
        # One number for all neurons: nothing of the layer's size is made or read.
        v = x.new_full((), 0.0 if v_reset is None else v_reset, dtype=dtype).expand(prod(shape[1:]))
    elif v.shape != shape[1:]:
        raise ValueError(f"v: expected shape {tuple(shape[1:])}, got {tuple(v.shape)}")
    elif v.device != x.device:
        raise ValueError(f"v: expected on x's device {x.device}, got {v.device}")
    # A number is filled in on the device: copying it there would make the host wait.
    tau = tau.to(x.device, dtype) if isinstance(tau, Tensor) else x.new_full((), tau, dtype=dtype)
    spikes, last = apply(
        _LIF,
        x.flatten(1) if x.dim() > 1 else x.unsqueeze(1),
        v.to(dtype).reshape(-1) if v.dim() != 1 else v.to(dtype),
        tau,
        v_threshold,
        v_reset,
        want_v,
        surrogate,
        width,
        detach_reset,
    )
    return spikes.view(shape), last.view(shape[1:]) if want_v else None
