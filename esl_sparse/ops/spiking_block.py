"""The fused chain of a spiking layer: convolution, norm, shortcut, neurons and pooling as one autograd Function.

What it keeps for backward is spikes, one bit each: currents are convolved again from the input's bits, by the same
kernel and with the statistics that forward found, and spikes are never found again but taken from forward's bits.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..packed import LANES, PackedSpikes
from ._library import NoDoubleBackward, apply, differentiable_backward
from .conv2d import Geometry
from .conv2d.op import conv2d_backward_op, conv2d_op
from .norm_lif import affine, norm_lif_backward_op, norm_lif_op, panel_stats
from .pack.time import repeat_steps, sum_steps
from .pool.op import avg_pool_op
from .pool.window import Window


class Neuron(NamedTuple):
    v_threshold: float
    v_reset: float | None
    surrogate: str
    width: float
    detach_reset: bool


class Convolution(NamedTuple):
    """How a current is made of its source: words or float panels of all steps, or of one that stands for all."""

    geometry: Geometry
    rows: int
    cols: int
    T: int
    B: int
    planes: int
    scale: float


class Current(NamedTuple):
    """One of the currents that the neurons sum.

    Attributes:
        source: words; or None: ``carrier`` itself is the source, float panels, or, without ``convolution``, the
            current.
        carrier: what takes the gradient.
        convolution: None: the current is given.
        values, bias, weight_index: its weight.
        gamma, beta: of the norm, or None.
        mean, var: running statistics ``[C]``; None: no norm, or that of the batch.
        batch_stats: normalise by the statistics of this batch.
        eps: of the norm.
    """

    carrier: Tensor
    source: Tensor | None
    convolution: Convolution | None
    values: Tensor | None
    bias: Tensor | None
    weight_index: tuple[Tensor, ...]
    gamma: Tensor | None
    beta: Tensor | None
    mean: Tensor | None
    var: Tensor | None
    batch_stats: bool
    eps: float


class _Spec(NamedTuple):
    """What is no tensor: of the block, and of each current."""

    T: int
    B: int
    neuron: Neuron
    pool: int
    residual_scale: float
    convolutions: tuple[Convolution | None, ...]
    norms: tuple[tuple[bool, bool, float], ...]  # is there one, of the batch, eps


_TENSORS = 13  # of a current: carrier, source, values, bias, gamma, beta, mean, var, and the index


def _flat(current: Current) -> tuple[Tensor | None, ...]:
    index = current.weight_index or (None,) * 5
    head = (current.carrier, current.source, current.values, current.bias)
    return (*head, current.gamma, current.beta, current.mean, current.var, *index)


def _convolve(
    tensors, convolution: Convolution | None, T: int, want_stats: bool
) -> tuple[Tensor, Tensor | None]:
    """The current panels of all T steps, and their statistics if wanted."""
    carrier, source, values, bias, *_ = tensors
    index = tensors[8:13]
    if convolution is None:
        return carrier, None
    x = carrier if source is None else source
    current, stats = conv2d_op(x, values, bias, *index, *convolution, want_stats)
    if convolution.T != T:
        current = repeat_steps(current, T, convolution.B)
    return current, stats if want_stats else None


class _SpikingBlock(torch.autograd.Function):
    @staticmethod
    def forward(spec, tau, residual_carrier, residual, *tensors):
        currents: list[Tensor | None] = []
        moments: list[Tensor] = []
        stats_out: list[Tensor] = []
        for k, (convolution, (normed, batch, eps)) in enumerate(
            zip(spec.convolutions, spec.norms, strict=True)
        ):
            part = tensors[k * _TENSORS : (k + 1) * _TENSORS]
            current, stats = _convolve(part, convolution, spec.T, batch)
            if batch and stats is None:
                stats = panel_stats(current, spec.T, spec.B)
            mean = rstd = None
            if normed:
                mean, var = (part[6].double(), part[7].double()) if stats is None else (stats[0], stats[1])
                mean, rstd = mean.to(current.dtype), (var + eps).rsqrt().to(current.dtype)
            currents += [current, *affine(mean, rstd, part[4], part[5])]
            moments += [
                current.new_empty(0) if mean is None else mean,
                current.new_empty(0) if rstd is None else rstd,
            ]
            stats_out.append(current.new_empty(0, dtype=torch.float64) if stats is None else stats)
        currents += [None] * (6 - len(currents))
        n = spec.neuron
        words = norm_lif_op(
            currents[0],
            tau,
            spec.T,
            spec.B,
            n.v_threshold,
            n.v_reset,
            *currents[1:],
            residual,
            spec.residual_scale,
        )
        del currents
        out = words
        if spec.pool > 1:
            window = Window.of(spec.pool, None, 0)
            out = avg_pool_op(words, (spec.pool**2).bit_length(), *window)
        carrier = tau.new_zeros(1).expand((*out.shape[1:], LANES))
        kept = words if spec.pool > 1 else words.new_empty(0)
        return carrier, out, kept, *stats_out, *moments

    @staticmethod
    def setup_context(ctx, inputs, output):
        spec, tau, _, residual, *tensors = inputs
        _, out, kept, *rest = output
        ctx.mark_non_differentiable(*output[1:])
        ctx.set_materialize_grads(False)
        ctx.spec = spec
        moments = rest[len(spec.convolutions) :]
        # A carrier holds nothing, unless it is the source or the current itself.
        own = [
            None if i % _TENSORS == 0 and tensors[i + 1] is not None else tensor
            for i, tensor in enumerate(tensors)
        ]
        ctx.save_for_backward(tau, residual, kept if spec.pool > 1 else out, *moments, *own)

    @staticmethod
    def backward(ctx, grad, *_):
        if grad is None:
            return (None,) * len(ctx.needs_input_grad)
        run: Any = _SpikingBlockBackward.apply if differentiable_backward() else _backward
        return run(grad, ctx.spec, ctx.needs_input_grad, *ctx.saved_tensors)


def _backward(grad, spec, needs_input, tau, residual, words, *saved):
    parts = len(spec.convolutions)
    moments, tensors = saved[: 2 * parts], saved[2 * parts :]
    n = spec.neuron
    currents, norms, wanted = [], [], 0
    for k, (convolution, (normed, batch, _)) in enumerate(zip(spec.convolutions, spec.norms, strict=True)):
        part = tensors[k * _TENSORS : (k + 1) * _TENSORS]
        needs = needs_input[4 + k * _TENSORS : 4 + (k + 1) * _TENSORS]
        currents.append(_convolve(part, convolution, spec.T, False)[0])
        mean, rstd = (moments[2 * k], moments[2 * k + 1]) if normed else (None, None)
        norms.append((mean, rstd, part[4], part[5], batch))
        of_current = needs[0] or needs[2] or needs[3]
        wanted |= (of_current | needs[4] << 1 | needs[5] << 2) << 3 * k
    wanted |= needs_input[2] << 6 | needs_input[1] << 7
    second = (currents[1], *norms[1]) if parts == 2 else (None, None, None, None, None, False)
    results = norm_lif_backward_op(
        grad.contiguous(), words, currents[0], tau, spec.T, spec.B, n.v_threshold, n.v_reset, wanted, *norms[0],
        *second, residual, spec.residual_scale, spec.pool, n.surrogate, n.width, n.detach_reset,
    )  # fmt: skip
    currents.clear()
    del second
    results = list(results)
    grads: list[Tensor | None] = [
        None,
        results[7] if needs_input[1] else None,
        results[6] if needs_input[2] else None,
    ]
    grads.append(None)
    for k, convolution in enumerate(spec.convolutions):
        part = tensors[k * _TENSORS : (k + 1) * _TENSORS]
        needs = needs_input[4 + k * _TENSORS : 4 + (k + 1) * _TENSORS]
        of_current, grad_gamma, grad_beta = results[3 * k : 3 * k + 3]
        results[3 * k] = None
        grad_x: Tensor | None = of_current
        grad_values: Tensor | None = None
        grad_bias: Tensor | None = None
        if convolution is not None and (needs[0] or needs[2] or needs[3]):
            if convolution.T != spec.T:
                of_current = sum_steps(of_current, spec.T, spec.B)
            source = part[0] if part[1] is None else part[1]
            asked = needs[0] | needs[2] << 1 | needs[3] << 2
            grad_x, grad_values, grad_bias = conv2d_backward_op(
                of_current, source, part[2], *part[8:13], *convolution, asked
            )
        del of_current
        found = (grad_x, None, grad_values, grad_bias, grad_gamma, grad_beta)
        grads += [g if need else None for g, need in zip(found, needs[:6], strict=True)]
        grads += [None] * (_TENSORS - 6)
    return tuple(grads)


class _SpikingBlockBackward(NoDoubleBackward):
    @staticmethod
    def forward(*args):
        return _backward(*args)


def spiking_block(
    currents: list[Current],
    tau: Tensor,
    T: int,
    B: int,
    neuron: Neuron,
    residual: PackedSpikes | None = None,
    pool: int = 1,
) -> tuple[PackedSpikes, list[Tensor]]:
    """Spikes of neurons that integrate one or two normalised currents and a residual, average-pooled.

    Args:
        currents: one or two. tau: decay factor, 0-dim. T: steps. B: samples.
        residual: spikes that are added to the current as they are.
        pool: side of an average pool without overlap; 1: none.

    Returns:
        The (pooled) spikes, and for each current its batch's mean and biased variance, float64 ``[2, C]``, empty where
        the batch's were not used.
    """
    convolutions = tuple(current.convolution for current in currents)
    norms = tuple(
        (current.batch_stats or current.mean is not None, current.batch_stats, current.eps)
        for current in currents
    )
    scale = 1.0 if residual is None else residual.scale
    spec = _Spec(T, B, neuron, pool, scale, convolutions, norms)
    of_residual = (None, None) if residual is None else (residual.carrier, residual.words)
    tensors = [tensor for current in currents for tensor in _flat(current)]
    carrier, words, _, *rest = apply(_SpikingBlock, spec, tau, *of_residual, *tensors)
    return PackedSpikes(carrier, words, T, B, 1.0 / (pool * pool)), list(rest[: len(currents)])
