"""Spikes as bits: 64 lanes a word, where a lane is one (time step, sample) pair."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

LANES = 64  # lanes per word
MAX_PLANES = 4  # small integers 0 .. 2**MAX_PLANES - 1 travel as bit planes


class Lanes(NamedTuple):
    """Lane numbering: ``lane = t * padded + b`` with the batch padded to a multiple of 8."""

    T: int
    B: int

    @property
    def padded(self) -> int:
        return -(-self.B // 8) * 8

    @property
    def total(self) -> int:
        """Lanes, padding included."""
        return self.T * self.padded

    @property
    def groups(self) -> int:
        """Words per pixel and channel."""
        return -(-self.T * (-(-self.B // 8) * 8) // LANES)


@dataclass
class PackedSpikes:
    """Spikes of ``T`` time steps and ``B`` samples, one bit each.

    Attributes:
        carrier: ``[G, H, W, C, 64]`` float view of one element. Carries autograd (its gradient is the gradient
            panel) and is never read.
        words: int64 ``[planes, G, H, W, C]``; bit ``l`` of a word is lane ``l``. Padding lanes are zero.
            A linear activation has ``H = W = 1``.
        T: time steps. B: samples.
        scale: a value is ``scale * sum(2**p * bit of plane p)``; binary spikes have one plane and scale 1.
    """

    carrier: Tensor
    words: Tensor
    T: int
    B: int
    scale: float = 1.0

    @property
    def lanes(self) -> Lanes:
        return Lanes(self.T, self.B)

    @property
    def planes(self) -> int:
        return self.words.shape[0]

    @property
    def shape(self) -> tuple[int, ...]:
        """``(T, B, C)``, or ``(T, B, C, H, W)`` for a feature map."""
        _, _, H, W, C = self.words.shape
        return (self.T, self.B, C) if H == W == 1 else (self.T, self.B, C, H, W)

    @property
    def dtype(self) -> torch.dtype:
        return self.carrier.dtype

    def unpack(self) -> Tensor:
        """The spikes as a float tensor of ``shape``, differentiable."""
        from .ops.pack import unpack

        return unpack(self)


def check_spikes(name: str, x: object) -> None:
    """Raise unless x is ``PackedSpikes`` whose fields fit together: kernels trust it.

    Raises:
        TypeError: x, or one of its fields, is something else.
        ValueError: words of another number of planes or lanes; a carrier of another shape.
    """
    if not isinstance(x, PackedSpikes):
        raise TypeError(f"{name}: expected PackedSpikes, got {type(x).__name__}")
    words: Any = x.words
    carrier: Any = x.carrier
    if not isinstance(words, Tensor) or not isinstance(carrier, Tensor):
        got = f"{type(words).__name__} and {type(carrier).__name__}"
        raise TypeError(f"{name}: expected PackedSpikes of two tensors, words and carrier, got {got}")
    if words.dtype != torch.int64 or words.dim() != 5 or not carrier.is_floating_point():
        got = f"{words.dtype} {tuple(words.shape)} and {carrier.dtype}"
        raise TypeError(f"{name}: expected int64 words of 5 dims and a floating-point carrier, got {got}")
    size: Any
    for size in (x.T, x.B):
        if not isinstance(size, (int, torch.SymInt)) or size < 0:
            raise ValueError(f"{name}: expected T and B of at least 0, got {x.T!r} and {x.B!r}")
    planes, *panels = words.shape
    if not 1 <= planes <= MAX_PLANES or panels[0] != x.lanes.groups:
        raise ValueError(
            f"{name}: expected words of 1 to {MAX_PLANES} planes and {x.lanes.groups} groups of lanes, "
            f"got {tuple(words.shape)}"
        )
    if carrier.shape != (*panels, LANES):
        raise ValueError(f"{name}: expected a carrier {(*panels, LANES)}, got {tuple(carrier.shape)}")
    if not isinstance(x.scale, (int, float)):
        raise TypeError(f"{name}: expected a number as scale, got {type(x.scale).__name__}")


def _flatten(p: PackedSpikes) -> tuple[list[Tensor], tuple[int, int, float]]:
    return [p.carrier, p.words], (p.T, p.B, p.scale)


def _unflatten(leaves, context: tuple[int, int, float]) -> PackedSpikes:
    carrier, words = leaves
    return PackedSpikes(carrier, words, *context)


pytree.register_pytree_node(
    PackedSpikes, _flatten, _unflatten, serialized_type_name="esl_sparse.PackedSpikes"
)
