"""Exact selection by score, and set operations on sorted block ids."""

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


def smallest(score: Tensor, ids: Tensor, count: int, seed: int) -> Tensor:
    """Positions of the ``count`` smallest scores; equal scores are ordered by a seeded hash of their ids.

    Args:
        score: ``[n]``, compared in float32. ids: int64 ``[n]``, all different.

    Returns:
        int64 ``[count]``. The ids found there depend on the set of (id, score) pairs, not on their order.
    """
    n = score.numel()
    if score.shape != ids.shape or not 0 <= count <= n:
        raise ValueError(
            f"smallest: cannot choose {count} of scores {tuple(score.shape)} and ids {tuple(ids.shape)}"
        )
    score = score.float()
    if score.isnan().any():
        raise ValueError(f"score: {int(score.isnan().sum())} of {n} are NaN")
    if count == 0:
        return ids.new_empty(0)
    bound = score.topk(count, largest=False, sorted=False).values.max()
    below = (score < bound).nonzero().squeeze(1)
    tied = (score == bound).nonzero().squeeze(1)
    order = splitmix64(ids[tied], seed).topk(count - below.numel(), largest=False, sorted=False).indices
    return torch.cat([below, tied[order]])


def contains_sorted(ids: Tensor, wanted: Tensor) -> Tensor:
    """Which of ``wanted`` occur in the sorted ``ids``; bool, shaped like ``wanted``."""
    if ids.numel() == 0:
        return torch.zeros_like(wanted, dtype=torch.bool)
    wanted = wanted.to(ids.dtype)
    return ids[torch.searchsorted(ids, wanted).clamp_(max=ids.numel() - 1)] == wanted


def merge_sorted(ids: Tensor, more: Tensor) -> tuple[Tensor, Tensor]:
    """Merge two sorted, disjoint id tensors; also says (bool) which of the merged ones came from ``more``."""
    places = torch.searchsorted(ids, more) + torch.arange(more.numel(), device=ids.device)
    from_more = torch.zeros(ids.numel() + more.numel(), dtype=torch.bool, device=ids.device)
    from_more[places] = True
    merged = ids.new_empty(from_more.numel())
    merged[from_more] = more
    merged[~from_more] = ids
    return merged, from_more
