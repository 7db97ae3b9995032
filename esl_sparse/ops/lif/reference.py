"""Definition of lif: leaky integrate and fire over T steps, and its surrogate gradient.

u[t] = tau v[t-1] + x[t];  s[t] = [u[t] > v_threshold]
hard reset: v[t] = (1 - s) u + s v_reset;  soft reset (v_reset None): v[t] = u - s v_threshold
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def forward(
    x: Tensor, v: Tensor, tau: Tensor, v_threshold: float, v_reset: float | None
) -> tuple[Tensor, Tensor]:
    """Currents ``x [T, M]`` and potential ``v [M]`` -> spikes ``[T, M]`` and the last potential ``[M]``."""
    spikes = torch.empty_like(x, memory_format=torch.contiguous_format)
    v = v.clone()  # an op never returns its own input, not even where T = 0
    for t in range(x.shape[0]):
        u = tau * v + x[t]
        s = (u > v_threshold).to(x.dtype)
        v = u - s * v_threshold if v_reset is None else torch.where(s > 0, torch.full_like(u, v_reset), u)
        spikes[t] = s
    return spikes, v


def backward(
    grad_s: Tensor,
    grad_v: Tensor,
    x: Tensor,
    v: Tensor,
    tau: Tensor,
    v_threshold: float,
    v_reset: float | None,
    surrogate: Callable[[Tensor], Tensor],
    detach_reset: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x ``[T, M]``, of the first potential ``[M]`` and of tau; potentials are recomputed."""
    us, vs = [], [v]
    for t in range(x.shape[0]):
        u = tau * vs[-1] + x[t]
        s = (u > v_threshold).to(x.dtype)
        us.append(u)
        vs.append(
            u - s * v_threshold if v_reset is None else torch.where(s > 0, torch.full_like(u, v_reset), u)
        )
    grad_v = grad_v.clone()
    grad_x = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    grad_tau = torch.zeros_like(tau)
    for t in reversed(range(x.shape[0])):
        u = us[t]
        s = (u > v_threshold).to(x.dtype)
        dv_ds = -v_threshold if v_reset is None else v_reset - u
        dv_du = 1 if v_reset is None else 1 - s
        grad_spike = grad_s[t] if detach_reset else grad_s[t] + grad_v * dv_ds
        grad_u = grad_spike * surrogate(u - v_threshold) + grad_v * dv_du
        grad_x[t] = grad_u
        grad_tau += (grad_u * vs[t]).sum()
        grad_v = tau * grad_u
    return grad_x, grad_v, grad_tau
