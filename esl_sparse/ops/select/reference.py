"""Definition of select: the extreme scores, equal ones in the order of a seeded hash of their ids."""

from __future__ import annotations

import torch
from torch import Tensor


def _signed(word: int) -> int:
    """An unsigned 64-bit constant as the int64 of the same bits."""
    return word - (1 << 64) if word >> 63 else word


def _shift_right(x: Tensor, bits: int) -> Tensor:
    """Logical shift: int64 shifts drag the sign along."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def splitmix64(ids: Tensor, seed: int) -> Tensor:
    """Hash int64 ids; a bijection for every seed, so that different ids never tie (Steele et al. 2014)."""
    z = (ids + seed) * _signed(0x9E3779B97F4A7C15)
    z = (z ^ _shift_right(z, 30)) * _signed(0xBF58476D1CE4E5B9)
    z = (z ^ _shift_right(z, 27)) * _signed(0x94D049BB133111EB)
    return z ^ _shift_right(z, 31)


def select(score: Tensor, ids: Tensor, count: int, seed: int, largest: bool, finite: bool = False) -> Tensor:
    """Positions int64 ``[count]``; among equal scores the smallest hashes (as signed integers) go first."""
    score = score.float()
    if not finite and score.isnan().any():
        raise ValueError(f"score: {int(score.isnan().sum())} of {score.numel()} are NaN")
    if count == 0:
        return ids.new_empty(0)
    chosen = score.topk(count, largest=largest, sorted=False).values
    bound = chosen.min() if largest else chosen.max()
    inside = (score > bound if largest else score < bound).nonzero().squeeze(1)
    tied = (score == bound).nonzero().squeeze(1)
    order = splitmix64(ids[tied], seed).topk(count - inside.numel(), largest=False, sorted=False).indices
    return torch.cat([inside, tied[order]])


def not_below(score: Tensor, bound: float) -> Tensor:
    """Ascending positions int64 of the scores that are not below a bound, NaN among them."""
    return (score < bound).logical_not_().nonzero().squeeze(1)
