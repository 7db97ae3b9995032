"""Set operations on sorted block ids."""

from __future__ import annotations

import torch
from torch import Tensor

from .host import is_remote


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
    from_more.index_fill_(0, places, True)
    merged = ids.new_empty(from_more.numel())
    if is_remote(ids):  # where a mask is waited for
        others = torch.searchsorted(more, ids) + torch.arange(ids.numel(), device=ids.device)
        return merged.scatter_(0, places, more).scatter_(0, others, ids), from_more
    merged[from_more] = more
    merged[~from_more] = ids
    return merged, from_more
