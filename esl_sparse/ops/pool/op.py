"""Op ``pool``: average and maximum pooling of ``PackedSpikes``, as bits.

Raw ops: ``avg_pool``, ``max_pool``, ``global_avg_pool`` on words and their ``_backward`` on panels. An average of
integers is their sum, which is exact in bit planes, and a scale. As everywhere, a carrier's gradient is that of the
values.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..._backends import choose
from ...packed import LANES, MAX_PLANES, Lanes, PackedSpikes, check_spikes
from .._library import Function, NoDoubleBackward, apply, define, differentiable_backward
from ..pack.op import to_panels_op
from . import cuda, native, reference, triton
from .window import Pair, Window

_KERNELS = {"native": native, "triton": triton, "cuda": cuda, "reference": reference}


def _kernels(device: torch.device, dtype: torch.dtype = torch.float32) -> Any:
    return _KERNELS[choose("pool", device.type, dtype)]


def _avg_pool(words, sum_planes, *window):
    return _kernels(words.device).avg_pool(words.contiguous(), sum_planes, Window(*window))


def _avg_pool_fake(words, sum_planes, *window):
    _, G, H, W, C = words.shape
    return words.new_empty(sum_planes, G, *Window(*window).counts(H, W), C)


def _avg_pool_backward(grad, size, divisor, *window):
    kernels = _kernels(grad.device, grad.dtype)
    return kernels.avg_pool_backward(grad.contiguous(), tuple(size), divisor, Window(*window))


def _avg_pool_backward_fake(grad, size, divisor, *window):
    return grad.new_empty(grad.shape[0], *size, *grad.shape[3:])


def _max_pool(words, *window):
    return _kernels(words.device).max_pool(words.contiguous(), Window(*window))


def _max_pool_fake(words, *window):
    return _avg_pool_fake(words, 1, *window)


def _max_pool_backward(grad, words, *window):
    kernels = _kernels(grad.device, grad.dtype)
    return kernels.max_pool_backward(grad.contiguous(), words.contiguous(), Window(*window))


def _max_pool_backward_fake(grad, words, *window):
    return grad.new_empty(*words.shape[1:], LANES)


def _global_avg_pool(words, T, B, scale, dtype):
    return _kernels(words.device, dtype).global_avg_pool(words.contiguous(), T, B, scale, dtype)


def _global_avg_pool_fake(words, T, B, scale, dtype):
    return words.new_empty(T, B, words.shape[4], dtype=dtype)


def _global_avg_pool_backward(grad, size):
    H, W = size
    panels = to_panels_op(grad / (H * W))
    return panels.expand(-1, H, W, -1, -1).clone(memory_format=torch.contiguous_format)


def _global_avg_pool_backward_fake(grad, size):
    T, B, C = grad.shape
    return grad.new_empty(Lanes(T, B).groups, *size, C, LANES)


_WINDOW = "SymInt[2] kernel, SymInt[2] stride, SymInt[2] padding, SymInt[2] dilation, bool ceil_mode"
avg_pool_op = define(
    f"avg_pool(Tensor words, SymInt sum_planes, {_WINDOW}) -> Tensor", _avg_pool, _avg_pool_fake
)
avg_pool_backward_op = define(
    f"avg_pool_backward(Tensor grad, SymInt[2] size, SymInt divisor, {_WINDOW}) -> Tensor",
    _avg_pool_backward,
    _avg_pool_backward_fake,
)
max_pool_op = define(f"max_pool(Tensor words, {_WINDOW}) -> Tensor", _max_pool, _max_pool_fake)
max_pool_backward_op = define(
    f"max_pool_backward(Tensor grad, Tensor words, {_WINDOW}) -> Tensor",
    _max_pool_backward,
    _max_pool_backward_fake,
)
global_avg_pool_op = define(
    "global_avg_pool(Tensor words, SymInt T, SymInt B, float scale, ScalarType dtype) -> Tensor",
    _global_avg_pool,
    _global_avg_pool_fake,
)
global_avg_pool_backward_op = define(
    "global_avg_pool_backward(Tensor grad, SymInt[2] size) -> Tensor",
    _global_avg_pool_backward,
    _global_avg_pool_backward_fake,
)


def _carrier(like: Tensor, words: Tensor) -> Tensor:
    return like.new_zeros(1).expand((*words.shape[1:], LANES))


class _AvgPoolBackward(NoDoubleBackward):
    @staticmethod
    def forward(*args):
        return avg_pool_backward_op(*args)


class _AvgPool(Function):
    @staticmethod
    def forward(carrier, words, sum_planes, divisor, window):
        sums = avg_pool_op(words, sum_planes, *window)
        return _carrier(carrier, sums), sums

    @staticmethod
    def setup_context(ctx, inputs, output):
        _, words, _, ctx.divisor, ctx.window = inputs
        ctx.size = tuple(words.shape[2:4])
        ctx.mark_non_differentiable(output[1])
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx, grad, _):
        if grad is None:
            return (None,) * 5
        run = _AvgPoolBackward.apply if differentiable_backward() else avg_pool_backward_op
        return run(grad, ctx.size, ctx.divisor, *ctx.window), None, None, None, None


class _MaxPoolBackward(NoDoubleBackward):
    @staticmethod
    def forward(*args):
        return max_pool_backward_op(*args)


class _MaxPool(Function):
    @staticmethod
    def forward(carrier, words, window):
        out = max_pool_op(words, *window)
        return _carrier(carrier, out), out

    @staticmethod
    def setup_context(ctx, inputs, output):
        _, words, ctx.window = inputs
        ctx.save_for_backward(words)
        ctx.mark_non_differentiable(output[1])
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx, grad, _):
        if grad is None:
            return None, None, None
        run = _MaxPoolBackward.apply if differentiable_backward() else max_pool_backward_op
        return run(grad, *ctx.saved_tensors, *ctx.window), None, None


class _GlobalAvgPoolBackward(NoDoubleBackward):
    @staticmethod
    def forward(*args):
        return global_avg_pool_backward_op(*args)


class _GlobalAvgPool(Function):
    @staticmethod
    def forward(carrier, words, T, B, scale):
        return global_avg_pool_op(words, T, B, scale, carrier.dtype)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.size = tuple(inputs[1].shape[2:4])

    @staticmethod
    def backward(ctx, grad):
        run = _GlobalAvgPoolBackward.apply if differentiable_backward() else global_avg_pool_backward_op
        return run(grad, ctx.size), None, None, None, None


def _check(x: PackedSpikes, window: Window | None = None) -> Pair:
    """The size of x's map."""
    if not isinstance(x, PackedSpikes):
        raise TypeError(
            f"x: expected PackedSpikes (float tensors: torch's own pooling), got {type(x).__name__}"
        )
    check_spikes("x", x)
    H, W = x.words.shape[2:4]
    if window is not None:
        window.check(H, W)
    return H, W


def avg_pool2d(
    x: PackedSpikes,
    kernel_size: int | Pair,
    stride: int | Pair | None = None,
    padding: int | Pair = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> PackedSpikes:
    """Average pooling as ``torch.nn.functional.avg_pool2d``, exact, on bits.

    Returns:
        Spikes ``(T, B, C, H', W')`` whose scale is that of x over the divisor: ``kernel_size``'s elements, or
        ``divisor_override``.

    Raises:
        TypeError: x is no PackedSpikes.
        ValueError: a wrong argument; sums that do not fit 4 planes (0..15); windows of different divisors
            (``count_include_pad=False`` with padding, windows that ``ceil_mode`` cuts) without ``divisor_override``.
    """
    window = Window.of(kernel_size, stride, padding, ceil_mode=ceil_mode)
    size = _check(x, window)
    if divisor_override is None:
        for name, uneven in (
            ("count_include_pad=False with padding", not count_include_pad and window.padding != (0, 0)),
            ("ceil_mode=True with windows beyond the map", window.cuts(*size)),
        ):
            if uneven:
                raise ValueError(
                    f"{name}: the windows have no common divisor, so that their averages are no small integers; "
                    "pass divisor_override, or pool x.unpack() with torch"
                )
    elif not isinstance(divisor_override, int) or divisor_override < 1:
        raise ValueError(f"divisor_override: expected a positive integer, got {divisor_override!r}")
    largest = (2**x.planes - 1) * window.elements
    if largest >= 2**MAX_PLANES:
        raise ValueError(
            f"x: expected sums of at most {2**MAX_PLANES - 1} ({MAX_PLANES} planes), got up to {largest} "
            f"(levels 0..{2**x.planes - 1}, windows of {window.elements}); pool x.unpack() with torch"
        )
    divisor = window.elements if divisor_override is None else divisor_override
    carrier, sums = apply(_AvgPool, x.carrier, x.words, largest.bit_length(), divisor, window)
    return PackedSpikes(carrier, sums, x.T, x.B, x.scale / divisor)


def max_pool2d(
    x: PackedSpikes,
    kernel_size: int | Pair,
    stride: int | Pair | None = None,
    padding: int | Pair = 0,
    dilation: int | Pair = 1,
    ceil_mode: bool = False,
) -> PackedSpikes:
    """Maximum pooling as ``torch.nn.functional.max_pool2d``, on bits; ties go to the first pixel.

    Returns:
        Spikes ``(T, B, C, H', W')`` of x's scale.

    Raises:
        TypeError: x is no PackedSpikes.
        ValueError: a wrong argument; x has more than one plane.
    """
    window = Window.of(kernel_size, stride, padding, dilation, ceil_mode)
    _check(x, window)
    if x.planes != 1:
        raise ValueError(f"x: expected spikes (1 plane), got {x.planes} planes; pool x.unpack() with torch")
    carrier, words = apply(_MaxPool, x.carrier, x.words, window)
    return PackedSpikes(carrier, words, x.T, x.B, x.scale)


def adaptive_avg_pool2d(
    x: PackedSpikes, output_size: int | tuple[int | None, int | None] | None
) -> Tensor | PackedSpikes:
    """Average pooling to a given size, as ``torch.nn.functional.adaptive_avg_pool2d``.

    Args:
        output_size: of the map; None keeps a dimension.

    Returns:
        For size 1 the mean over all pixels, a float tensor ``[T, B, C, 1, 1]``; else spikes, as ``avg_pool2d``.

    Raises:
        TypeError: x is no PackedSpikes.
        ValueError: as ``avg_pool2d``; a size that does not divide that of x evenly.
    """
    H, W = _check(x)
    pair = output_size if isinstance(output_size, (tuple, list)) else (output_size, output_size)
    if len(pair) != 2 or not all(n is None or (isinstance(n, int) and n > 0) for n in pair):
        raise ValueError(f"output_size: expected a positive integer or None, or two, got {output_size!r}")
    h, w = (given if own is None else own for own, given in zip(pair, (H, W), strict=True))
    if H % h or W % w or not H or not W:
        raise ValueError(
            f"output_size: expected divisors of {H} x {W}, got {h} x {w}; pool x.unpack() with torch"
        )
    if h == w == 1:
        return apply(_GlobalAvgPool, x.carrier, x.words, x.T, x.B, x.scale)[..., None, None]
    return avg_pool2d(x, (H // h, W // w))
