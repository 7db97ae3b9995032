"""Spikes as bits: 64 lanes a word, where a lane is one (time step, sample) pair."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

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


def _flatten(p: PackedSpikes) -> tuple[list[Tensor], tuple[int, int, float]]:
    return [p.carrier, p.words], (p.T, p.B, p.scale)


def _unflatten(leaves, context: tuple[int, int, float]) -> PackedSpikes:
    carrier, words = leaves
    return PackedSpikes(carrier, words, *context)


pytree.register_pytree_node(
    PackedSpikes, _flatten, _unflatten, serialized_type_name="esl_sparse.PackedSpikes"
)
