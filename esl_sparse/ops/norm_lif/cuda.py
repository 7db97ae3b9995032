"""CUDA kernels of norm_lif, for float32 panels."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..._cuda import DTYPE_CODES, aligned, ask, launch
from .._library import address, empty
from ..lif.cuda import neuron
from ..lif.native import SURROGATE_CODES
from .reference import Norm, affine

if TYPE_CHECKING:
    from .op import Backward, Forward

Current = tuple[Tensor | None, Tensor | None, Tensor | None]  # panel, a, b


def _shape(panel: Tensor, T: int, B: int) -> tuple[int, int, int, int, int]:
    return T, B, panel.shape[1], panel.shape[2], panel.shape[3]


def _current(panel: Tensor | None, a: Tensor | None, b: Tensor | None) -> Current:
    """What a kernel may read: the caller keeps it until the launch."""
    if panel is None:
        return None, None, None
    return aligned(panel), None if a is None else a.contiguous(), None if b is None else b.contiguous()


def _inputs(
    call: Forward | Backward, tau: Tensor, first: Current, second: Current, residual: Tensor | None
) -> tuple[object, ...]:
    return (
        _shape(call.current, call.T, call.B),
        neuron(tau, call.v_threshold, call.v_reset),
        tuple(map(address, first)),
        tuple(map(address, second)),
        address(residual),
        0 if residual is None else residual.shape[0],
        call.residual_scale,
    )


def forward(call: Forward) -> Tensor:
    first = _current(call.current, call.a, call.b)
    second = _current(call.current2, call.a2, call.b2)
    residual = None if call.residual is None else call.residual.contiguous()
    words = call.current.new_empty((1, *call.current.shape[:4]), dtype=torch.int64)
    tau = call.tau.to(call.current)
    inputs = _inputs(call, tau, first, second, residual)
    launch("norm_lif_forward", words.device, *inputs, words.data_ptr())
    return words


def backward(call: Backward) -> tuple[Tensor, ...]:
    """g, the gradient of the sum of currents, is made in a panel of its own: it is that of the residual too."""
    norms, device = call.norms, call.current.device
    first = _current(call.current, *affine(*norms[0][:4]))
    second = _current(call.current2, *affine(*norms[1][:4]))
    residual = None if call.residual is None else call.residual.contiguous()
    words, grad, tau = call.words.contiguous(), aligned(call.grad), call.tau.to(call.current)
    shape = _shape(call.current, call.T, call.B)
    _, H, W, C, _ = call.current.shape
    g = torch.empty_like(call.current, memory_format=torch.contiguous_format)
    sums = g.new_empty((4, H * W, C, ask("norm_lif_sites", shape) // max(H * W * C, 1)))
    means = [None if norm.mean is None else norm.mean.contiguous() for norm in norms]
    launch(
        "norm_lif_backward",
        device,
        *_inputs(call, tau, first, second, residual),
        SURROGATE_CODES[call.surrogate],
        call.width,
        call.detach_reset,
        words.data_ptr(),
        grad.data_ptr(),
        call.pool,
        address(means[0]),
        address(means[1]),
        g.data_ptr(),
        sums.data_ptr(),
    )
    per_channel = sums[:3].sum((1, 3), dtype=torch.float64)  # of g, of g * (current - mean) for both
    count = call.T * call.B * H * W
    found: list[Tensor] = []
    panels = ((call.current, first[0]), (call.current2, second[0]))
    for i, (norm, (given, used)) in enumerate(zip(norms, panels, strict=True)):
        if given is None or used is None:
            found += [empty(g), empty(g)]
            continue
        if call.needs >> 3 * i & 1:
            _spread(norm, per_channel[0], per_channel[1 + i], count, shape, g, used)
            if used is not given:
                given.copy_(used)
        rstd = 1.0 if norm.rstd is None else norm.rstd
        gradients = (per_channel[1 + i] * rstd, per_channel[0])
        for k, gradient in enumerate(gradients, start=1):
            found.append(gradient.to(g.dtype) if call.needs >> 3 * i + k & 1 else empty(g))
    found.append(g if call.needs >> 6 & 1 else empty(g))
    grad_tau = sums[3].sum(dtype=torch.float64).to(call.tau.dtype)
    return (*found, grad_tau if call.needs >> 7 & 1 else empty(call.tau))


def _spread(
    norm: Norm, total: Tensor, product: Tensor, count: int, shape, g: Tensor, current: Tensor
) -> None:
    """Write the gradient of a current over it: ``a * (g - mean(g) - (current - mean) * slope)``."""
    a, _ = affine(*norm[:4])
    k = total.new_zeros((4, len(total)))
    k[0] = 1.0 if a is None else a
    if norm.batch_stats and norm.mean is not None and norm.rstd is not None:
        k[1] = total / count
        k[2] = norm.mean
        k[3] = norm.rstd.double().square() * (product / count)
    coefficients = k.float()
    launch("norm_lif_spread", g.device, shape, g.data_ptr(), current.data_ptr(), coefficients.data_ptr())


def panel_stats(current: Tensor, T: int, B: int) -> Tensor:
    """float64 ``[2, C]``: mean and biased variance; of panels of any dtype."""
    current, shape = aligned(current), _shape(current, T, B)
    stats = torch.empty((2, current.shape[3]), dtype=torch.float64, device=current.device)
    scratch = torch.empty(ask("panel_stats_scratch", shape), dtype=torch.float64, device=current.device)
    code = DTYPE_CODES[current.dtype]
    launch(
        "panel_stats", current.device, shape, current.data_ptr(), code, stats.data_ptr(), scratch.data_ptr()
    )
    return stats
