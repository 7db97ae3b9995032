"""The fused chain of a spiking layer: convolution, norm, shortcut, neurons and pooling as one autograd Function.

What it keeps for backward is spikes, one bit each: currents are convolved again from the input's bits, by the same
kernel and with the statistics that forward found, and spikes are never found again but taken from forward's bits.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..packed import LANES, PackedSpikes
from ._library import Function, NoDoubleBackward, apply, differentiable_backward
from .conv2d.op import Call, conv2d_backward_op, conv2d_op
from .norm_lif import affine, norm_lif_backward_op, norm_lif_op, panel_stats, vector_dtype
from .pack.time import repeat_steps, sum_steps
from .pool.op import avg_pool_op
from .pool.window import Window


class Neuron(NamedTuple):
    v_threshold: float
    v_reset: float | None
    surrogate: str
    width: float
    detach_reset: bool


class Operands(NamedTuple):
    """The tensors of a current, as autograd sees them.

    Attributes:
        carrier: what takes the gradient. It holds nothing beside a ``source``; else it is the source, float panels,
            or, where there is no convolution, the current itself.
        source: words, or None.
        values, bias: of the convolution. gamma, beta: of the norm. Each may be None.
        stats: float64 ``[2, C]``, mean and biased variance that the norm uses; None: those of the batch, or no norm.
        crow, col, ccol, row_t, offset_t: index of the values.
    """

    carrier: Any
    source: Any = None
    values: Any = None
    bias: Any = None
    gamma: Any = None
    beta: Any = None
    stats: Any = None
    crow: Any = None
    col: Any = None
    ccol: Any = None
    row_t: Any = None
    offset_t: Any = None


class Current(NamedTuple):
    """One of the currents that the neurons sum.

    Attributes:
        operands: its tensors.
        call: how it is convolved, from all steps or from one that stands for all; None: the carrier is the current.
        eps: of the norm; None: there is none.
        of_batch: whether the norm uses the statistics of this batch.
    """

    operands: Operands
    call: Call | None = None
    eps: float | None = None
    of_batch: bool = False

    @property
    def shape(self) -> tuple[int, int, int]:
        """Height, width and channels."""
        if self.call is None:
            return tuple(self.operands.carrier.shape[1:4])
        return self.call.geometry.Ho, self.call.geometry.Wo, self.call.rows


class _Spec(NamedTuple):
    """What is no tensor."""

    T: int
    B: int
    neuron: Neuron
    pool: int
    residual_scale: float
    currents: tuple[tuple[Call | None, float | None, bool], ...]


def _operands(flat: Sequence[Any]) -> list[Operands]:
    size = len(Operands._fields)
    return [Operands(*flat[i : i + size]) for i in range(0, len(flat), size)]


def _current(x: Operands, call: Call | None, spec: _Spec, want_stats: bool) -> tuple[Tensor, Tensor | None]:
    """The current panels of all steps, and their statistics if wanted."""
    if call is None:
        return x.carrier, panel_stats(x.carrier, spec.T, spec.B) if want_stats else None
    source = x.carrier if x.source is None else x.source
    index = (x.crow, x.col, x.ccol, x.row_t, x.offset_t)
    current, stats = conv2d_op(source, x.values, x.bias, *index, *call, want_stats)
    if call.T != spec.T:  # the statistics of one step are those of all
        current = repeat_steps(current, spec.T, spec.B)
    return current, stats if want_stats else None


def _current_backward(
    grad: Tensor, x: Operands, needs: Operands, call: Call | None, spec: _Spec
) -> tuple[Tensor | None, ...]:
    """Gradients of carrier, values and bias, where any is needed."""
    if call is None or not (needs.carrier or needs.values or needs.bias):
        return grad, None, None
    if call.T != spec.T:
        grad = sum_steps(grad, spec.T, spec.B)
    source = x.carrier if x.source is None else x.source
    index = (x.crow, x.col, x.ccol, x.row_t, x.offset_t)
    asked = needs.carrier | needs.values << 1 | needs.bias << 2
    return conv2d_backward_op(grad, source, x.values, *index, *call, asked)


def _moments(
    stats: Tensor | None, eps: float | None, dtype: torch.dtype
) -> tuple[Tensor | None, Tensor | None]:
    """Mean and 1 / standard deviation, in backward the bits of forward; None without a norm."""
    if stats is None or eps is None:
        return None, None
    return stats[0].to(dtype), (stats[1] + eps).rsqrt().to(dtype)


class _SpikingBlock(Function):
    @staticmethod
    def forward(spec, tau, residual_carrier, residual, *tensors):
        inputs: list[tuple[Any, ...]] = []
        stats_out: list[Tensor] = []
        for x, (call, eps, of_batch) in zip(_operands(tensors), spec.currents, strict=True):
            current, stats = _current(x, call, spec, of_batch)
            moments = _moments(stats if of_batch else x.stats, eps, vector_dtype(current.dtype))
            inputs.append((current, *affine(*moments, x.gamma, x.beta)))
            stats_out.append(current.new_empty(0, dtype=torch.float64) if stats is None else stats)
        first, second = (*inputs, (None, None, None))[:2]
        n = spec.neuron
        words = out = norm_lif_op(
            first[0], tau, spec.T, spec.B, n.v_threshold, n.v_reset, *first[1:], *second, residual, spec.residual_scale
        )  # fmt: skip
        if spec.pool > 1:
            out = avg_pool_op(words, (spec.pool**2).bit_length(), *Window.of(spec.pool, None, 0))
        carrier = first[0].new_zeros(1).expand((*out.shape[1:], LANES))
        return carrier, out, words if spec.pool > 1 else words.new_empty(0), *stats_out

    @staticmethod
    def setup_context(ctx, inputs, output):
        spec, tau, _, residual, *tensors = inputs
        _, out, words, *stats_out = output
        ctx.mark_non_differentiable(*output[1:])
        ctx.set_materialize_grads(False)
        ctx.spec = spec
        kept: list[Tensor | None] = []
        for x, stats in zip(_operands(tensors), stats_out, strict=True):
            x = x if x.source is None else x._replace(carrier=None)
            kept.extend(x._replace(stats=stats) if x.stats is None else x)
        ctx.save_for_backward(tau, residual, words if spec.pool > 1 else out, *kept)

    @staticmethod
    def backward(ctx, grad, *_):
        if grad is None:
            return (None,) * len(ctx.needs_input_grad)
        run: Any = _SpikingBlockBackward.apply if differentiable_backward() else _backward
        return run(grad, ctx.spec, ctx.needs_input_grad, *ctx.saved_tensors)


def _integrated_backward(grad, asked, tau, residual, words, parts, spec) -> tuple[list[Tensor], list[Tensor]]:
    """The gradients of the currents, and the others that the neurons' and norms' backward returns."""
    inputs: list[tuple[Any, ...]] = []
    for x, _, (call, eps, of_batch) in parts:
        current, _ = _current(x, call, spec, False)
        if call is None:
            current = current.clone()  # the caller's; else it was made here
        inputs.append(
            (current, *_moments(x.stats, eps, vector_dtype(current.dtype)), x.gamma, x.beta, of_batch)
        )
    first, second = (*inputs, (None, None, None, None, None, False))[:2]
    n = spec.neuron
    others = norm_lif_backward_op(
        grad.contiguous(), words, first[0], tau, spec.T, spec.B, n.v_threshold, n.v_reset, asked, *first[1:],
        *second, residual, spec.residual_scale, spec.pool, n.surrogate, n.width, n.detach_reset,
    )  # fmt: skip
    return [current for current, *_ in inputs], list(others)


def _backward(grad, spec, needs_input, tau, residual, words, *tensors):
    _, need_tau, need_residual, _, *needs_input = needs_input
    parts = list(zip(_operands(tensors), _operands(needs_input), spec.currents, strict=True))
    asked = need_residual << 6 | need_tau << 7
    for k, (_, needs, _) in enumerate(parts):
        of_current = needs.carrier or needs.values or needs.bias
        asked |= (of_current | needs.gamma << 1 | needs.beta << 2) << 3 * k
    of_currents, others = _integrated_backward(grad, asked, tau, residual, words, parts, spec)
    grad_tau, grad_residual = others.pop(), others.pop()
    grads = [None, grad_tau if need_tau else None, grad_residual if need_residual else None, None]
    for x, needs, (call, _, _) in parts:
        # Popped: the panel's memory is free as soon as it has been summed over the steps.
        carrier, values, bias = _current_backward(of_currents.pop(0), x, needs, call, spec)
        of_x = Operands(carrier, None, values, bias, gamma=others.pop(0), beta=others.pop(0))
        grads += [g if need else None for g, need in zip(of_x, needs, strict=True)]
    return tuple(grads)


class _SpikingBlockBackward(NoDoubleBackward):
    @staticmethod
    def forward(*args):
        return _backward(*args)


def spiking_block(
    currents: Sequence[Current],
    tau: Tensor,
    T: int,
    B: int,
    neuron: Neuron,
    residual: PackedSpikes | None = None,
    pool: int = 1,
) -> tuple[PackedSpikes, list[Tensor]]:
    """Spikes of neurons that integrate one or two normalised currents and a residual, average-pooled.

    Args:
        currents: one or two, of one shape. tau: decay factor, 0-dim. T: steps. B: samples.
        residual: spikes that are added to the current as they are.
        pool: side of an average pool without overlap, 1 to 3; 1: none.

    Returns:
        The (pooled) spikes, and for each current its batch's mean and biased variance, float64 ``[2, C]``, empty where
        the batch's were not used.

    Raises:
        ValueError: a map smaller than the pool.
    """
    H, W, _ = currents[0].shape
    Window.of(pool, None, 0).check(H, W)
    scale = 1.0 if residual is None else residual.scale
    spec = _Spec(T, B, neuron, pool, scale, tuple((c.call, c.eps, c.of_batch) for c in currents))
    of_residual = (None, None) if residual is None else (residual.carrier, residual.words)
    tensors = [tensor for current in currents for tensor in current.operands]
    carrier, words, _, *stats = apply(_SpikingBlock, spec, tau, *of_residual, *tensors)
    return PackedSpikes(carrier, words, T, B, 1.0 / (pool * pool)), stats
