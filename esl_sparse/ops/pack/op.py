"""Op ``pack``: float activations <-> ``PackedSpikes``.

Raw ops: ``pack``, ``unpack``, ``to_panels``, ``from_panels``. A carrier's gradient is that of the spike values, so the
gradients of packing and unpacking are changes of layout: panels to rows and back.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ..._backends import choose
from ...packed import LANES, MAX_PLANES, Lanes, PackedSpikes, check_spikes
from .._library import Function, NoDoubleBackward, apply, define, differentiable_backward
from . import cuda, native, reference, triton
from .layout import rows_shape


class BrokenInputPromise(ValueError):
    """An input that was promised to be binary (or small integers) is not."""


def broken_promise(planes: int, scale: float) -> BrokenInputPromise:
    kind = "binary (0 and 1)" if (planes, scale) == (1, 1.0) else f"{scale} times integers 0..{2**planes - 1}"
    return BrokenInputPromise(
        f'input: expected {kind} only, got other values; pass input="auto" or input="float" to the layer'
    )


_KERNELS = {"native": native, "triton": triton, "cuda": cuda, "reference": reference}


def _kernels(device: torch.device, dtype: torch.dtype) -> Any:
    return _KERNELS[choose("pack", device.type, dtype)]


def pack_words(x: Tensor, planes: int, scale: float) -> Tensor:
    """Words int64 ``[planes, G, H, W, C]`` of rows ``[T, B, C]`` or ``[T, B, C, H, W]``; no autograd.

    Raises:
        BrokenInputPromise: x holds anything but levels.
    """
    words = _kernels(x.device, x.dtype).pack(x, planes, scale)
    if words is None:
        raise broken_promise(planes, scale)
    return words


def _pack_fake(x: Tensor, planes: int, scale: float) -> Tensor:
    lanes = Lanes(x.shape[0], x.shape[1])
    H, W = (x.shape[3], x.shape[4]) if x.dim() == 5 else (1, 1)
    return x.new_empty(planes, lanes.groups, H, W, x.shape[2], dtype=torch.int64)


def _unpack(words: Tensor, T: int, B: int, scale: float, dtype: torch.dtype) -> Tensor:
    return _kernels(words.device, dtype).unpack(words.contiguous(), T, B, scale, dtype)


def _unpack_fake(words: Tensor, T: int, B: int, scale: float, dtype: torch.dtype) -> Tensor:
    return _rows_like(words, words.shape[1:], T, B, dtype)


def _to_panels(x: Tensor) -> Tensor:
    return _kernels(x.device, x.dtype).to_panels(x)


def _to_panels_fake(x: Tensor) -> Tensor:
    H, W = (x.shape[3], x.shape[4]) if x.dim() == 5 else (1, 1)
    return x.new_empty(Lanes(x.shape[0], x.shape[1]).groups, H, W, x.shape[2], LANES)


def _from_panels(panels: Tensor, T: int, B: int) -> Tensor:
    return _kernels(panels.device, panels.dtype).from_panels(panels.contiguous(), T, B)


def _from_panels_fake(panels: Tensor, T: int, B: int) -> Tensor:
    return _rows_like(panels, panels.shape, T, B, panels.dtype)


def _rows_like(like: Tensor, shape, T: int, B: int, dtype: torch.dtype) -> Tensor:
    _, H, W, C = shape[:4]
    return like.new_empty(rows_shape(T, B, H, W, C), dtype=dtype)


pack_op = define("pack(Tensor x, SymInt planes, float scale) -> Tensor", pack_words, _pack_fake)
unpack_op = define(
    "unpack(Tensor words, SymInt T, SymInt B, float scale, ScalarType dtype) -> Tensor", _unpack, _unpack_fake
)
to_panels_op = define("to_panels(Tensor x) -> Tensor", _to_panels, _to_panels_fake)
from_panels_op = define(
    "from_panels(Tensor panels, SymInt T, SymInt B) -> Tensor", _from_panels, _from_panels_fake
)


class _PackBackward(NoDoubleBackward):
    @staticmethod
    def forward(grad_panels, T, B):
        return from_panels_op(grad_panels, T, B)


class _Pack(Function):
    @staticmethod
    def forward(x, planes, scale):
        words = pack_op(x, planes, scale)
        return x.new_zeros(1).expand((*words.shape[1:], LANES)), words

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.shape = inputs[0].shape
        ctx.mark_non_differentiable(output[1])
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx, grad_panels, _):
        if grad_panels is None:
            return None, None, None
        run = _PackBackward.apply if differentiable_backward() else from_panels_op
        return run(grad_panels, *ctx.shape[:2]).view(ctx.shape), None, None


class _UnpackBackward(NoDoubleBackward):
    @staticmethod
    def forward(grad):
        return to_panels_op(grad)


class _Unpack(Function):
    @staticmethod
    def forward(carrier, words, T, B, scale):
        return unpack_op(words, T, B, scale, carrier.dtype)

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def backward(ctx, grad):
        run = _UnpackBackward.apply if differentiable_backward() else to_panels_op
        return run(grad), None, None, None, None


def detect(x: Tensor) -> tuple[int, float] | None:
    """``(planes, scale)`` when every element of x is ``scale * k``, k in 0..15, scale a power of two; else None.

    The smallest such description is returned: binary spikes give (1, 1.0), 2x2 average-pooled ones (3, 0.25).
    """
    flat = x.detach().reshape(-1)
    if flat.numel() > 4096 and _coarsest_grid(flat[:4096]) is None:
        return None  # a prefix that fails proves that the whole fails: real-valued inputs leave here
    return _coarsest_grid(flat)


def _coarsest_grid(x: Tensor) -> tuple[int, float] | None:
    largest = float(x.max()) if x.numel() else 0.0
    if not 0.0 <= largest < math.inf:
        return None
    finest = 2.0 ** (math.frexp(largest)[1] - MAX_PLANES) if largest else 1.0  # largest / finest in [8, 16)
    levels = reference.levels_of(x, MAX_PLANES, finest)
    if levels is None:
        return None
    bits = sum(int(bool(((levels >> p) & 1).any())) << p for p in range(MAX_PLANES))
    if not bits:
        return 1, 1.0
    low = (bits & -bits).bit_length() - 1
    return bits.bit_length() - low, finest * 2**low


def pack_tensor(x: Tensor, planes: int, scale: float) -> PackedSpikes:
    """Pack ``[T, B, C]`` or ``[T, B, C, H, W]`` of known kind; raises if an element is no such level."""
    carrier, words = apply(_Pack, x, planes, scale)
    return PackedSpikes(carrier, words, x.shape[0], x.shape[1], scale)


def pack(x: Tensor, input: str = "auto") -> PackedSpikes:
    """Pack spikes or small integers, ``[T, B, C]`` or ``[T, B, C, H, W]``, into bits.

    Args:
        x: floating-point tensor holding 0 and 1, or ``scale * k`` with integers ``0 <= k <= 15`` and a power-of-two
            scale (average-pooled spikes, sums of spikes).
        input: ``"binary"`` (raises unless all elements are 0 or 1), ``"levels"`` or ``"auto"`` (both detect).

    Raises:
        TypeError: x is no floating-point tensor.
        ValueError: wrong number of dimensions, or x holds other values.
    """
    if not isinstance(x, Tensor) or not x.is_floating_point():
        raise TypeError(f"x: expected a floating-point tensor, got {getattr(x, 'dtype', type(x).__name__)}")
    if x.dim() not in (3, 5):
        raise ValueError(f"x: expected [T, B, C] or [T, B, C, H, W], got shape {tuple(x.shape)}")
    if input == "binary":
        return pack_tensor(x, 1, 1.0)
    if input not in ("auto", "levels"):
        raise ValueError(f"input: expected 'auto', 'binary' or 'levels', got {input!r}")
    kind = detect(x)
    if kind is None:
        raise BrokenInputPromise(
            "x: expected spikes or a power of two times integers 0..15, got other values"
        )
    return pack_tensor(x, *kind)


def unpack(spikes: PackedSpikes) -> Tensor:
    """The float tensor of packed spikes, ``[T, B, C]`` or ``[T, B, C, H, W]``."""
    check_spikes("spikes", spikes)
    return apply(_Unpack, spikes.carrier, spikes.words, spikes.T, spikes.B, spikes.scale)
