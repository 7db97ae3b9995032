"""Definition of norm_lif: normalised currents, a second one and a residual summed, and leaky integrate and fire.

x[t] = a I[t] + b  (+ a2 I2[t] + b2)  (+ residual[t]), with a = gamma rstd and b = beta - mean a per channel
u[t] = tau v[t-1] + x[t];  s[t] = [u[t] > v_threshold];  reset as in lif;  v[-1] = v_reset, or 0 for the soft reset
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from ..lif import reference as lif_reference
from ..pack.reference import from_panels, pack, to_panels, unpack


class Norm(NamedTuple):
    """Statistics ``[C]`` (both None: no norm), parameters ``[C]`` (None: 1 and 0), whether gradients flow through
    the statistics."""

    mean: Tensor | None = None
    rstd: Tensor | None = None
    gamma: Tensor | None = None
    beta: Tensor | None = None
    batch_stats: bool = False


def affine(
    mean: Tensor | None, rstd: Tensor | None, gamma: Tensor | None, beta: Tensor | None
) -> tuple[Tensor | None, Tensor | None]:
    """``(a, b)`` such that a normalised current is ``a * current + b``: ``gamma rstd`` and ``beta - mean a``.

    Forward and backward both derive them here, so that they see the same bits. ``(None, None)`` without a norm.
    """
    if mean is None or rstd is None:
        return None, None
    a = rstd if gamma is None else gamma * rstd
    shift = mean * a
    return a, -shift if beta is None else beta - shift


def panel_stats(current: Tensor, T: int, B: int) -> Tensor:
    """float64 ``[2, C]``: mean and biased variance of each channel of a panel over its valid lanes and pixels."""
    x = values(current, T, B).double().transpose(0, 2).flatten(1)
    mean = x.mean(1)
    return torch.stack([mean, (x - mean[:, None]).square().mean(1)])


def values(panels: Tensor, T: int, B: int) -> Tensor:
    """Panels ``[G, H, W, C, 64]`` -> ``[T, B, C, H, W]``."""
    _, H, W, C, _ = panels.shape
    return from_panels(panels, T, B).view(T, B, C, H, W)


def _per_channel(vector: Tensor) -> Tensor:
    return vector.view(-1, 1, 1)


def total(
    currents: list[tuple[Tensor | None, Tensor | None, Tensor | None]],
    residual: Tensor | None,
    residual_scale: float,
    T: int,
    B: int,
) -> Tensor:
    """What the neurons integrate, ``[T, B, C, H, W]``; currents are (panel, a, b), where the second may be missing."""
    parts = []
    for panel, a, b in currents:
        if panel is None:
            continue
        x = values(panel, T, B)
        parts.append(x if a is None or b is None else _per_channel(a) * x + _per_channel(b))
    if residual is not None:
        parts.append(unpack(residual, T, B, residual_scale, parts[0].dtype).view_as(parts[0]))
    return functools.reduce(torch.add, parts)


def forward(x: Tensor, tau: Tensor, v_threshold: float, v_reset: float | None) -> Tensor:
    """The ``total`` -> words int64 ``[1, G, H, W, C]``."""
    v = x.new_full(x.shape[1:], 0.0 if v_reset is None else v_reset)
    spikes, _ = lif_reference.forward(x, v, tau, v_threshold, v_reset)
    words = pack(spikes, 1, 1.0)
    assert words is not None
    return words


def spread(grad: Tensor, pool: int, H: int, W: int) -> Tensor:
    """Gradient ``[..., H // pool, W // pool]`` of average-pooled spikes -> that of the spikes, ``[..., H, W]``."""
    h, w = H // pool * pool, W // pool * pool
    spikes = grad.new_zeros(*grad.shape[:-2], H, W)
    spikes[..., :h, :w] = grad.repeat_interleave(pool, -2).repeat_interleave(pool, -1) / pool**2
    return spikes


def backward_through_time(
    grad_s: Tensor,
    s: Tensor,
    x: Tensor,
    tau: Tensor,
    v_threshold: float,
    v_reset: float | None,
    surrogate: Callable[[Tensor], Tensor],
    detach_reset: bool,
) -> tuple[Tensor, Tensor]:
    """Gradients of x ``[T, ...]`` and of tau, given the spikes s."""
    us, vs = [], [x.new_full(x.shape[1:], 0.0 if v_reset is None else v_reset)]
    for t in range(x.shape[0]):
        u = tau * vs[-1] + x[t]
        us.append(u)
        vs.append(
            u - s[t] * v_threshold
            if v_reset is None
            else torch.where(s[t] > 0, torch.full_like(u, v_reset), u)
        )
    grad_x, grad_tau, grad_v = torch.empty_like(x), torch.zeros_like(tau), torch.zeros_like(vs[0])
    for t in reversed(range(x.shape[0])):
        dv_ds = -v_threshold if v_reset is None else v_reset - us[t]
        dv_du = 1 if v_reset is None else 1 - s[t]
        grad_spike = grad_s[t] if detach_reset else grad_s[t] + grad_v * dv_ds
        grad_x[t] = grad_spike * surrogate(us[t] - v_threshold) + grad_v * dv_du
        grad_tau += (grad_x[t] * vs[t]).sum()
        grad_v = tau * grad_x[t]
    return grad_x, grad_tau


def backward_norm(g: Tensor, current: Tensor, norm: Norm, T: int, B: int) -> tuple[Tensor, ...]:
    """From the gradient ``[T, B, C, H, W]`` of a normalised current: those of the current (panel), gamma and beta."""
    if norm.mean is None or norm.rstd is None:
        return to_panels(g), g.new_empty(0), g.new_empty(0)
    x_hat = (values(current, T, B) - _per_channel(norm.mean)) * _per_channel(norm.rstd)
    sums = (0, 1, 3, 4)
    grad_gamma, grad_beta = (g * x_hat).sum(sums), g.sum(sums)
    if norm.batch_stats:
        n = g[:, :, :1].numel()
        g = g - _per_channel(grad_beta / n) - x_hat * _per_channel(grad_gamma / n)
    a, _ = affine(*norm[:4])
    assert a is not None
    return to_panels(g * _per_channel(a)), grad_gamma, grad_beta
