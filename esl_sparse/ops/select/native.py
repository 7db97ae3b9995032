"""Native CPU kernel of select, on contiguous float32 scores."""

from __future__ import annotations

import torch
from torch import Tensor

from ..._native import lib
from ...arena import arena


def select(score: Tensor, ids: Tensor, count: int, seed: int, largest: bool, finite: bool = False) -> Tensor:
    """As the raw op; the positions are ascending. NaN are found in passing, whatever was promised."""
    chosen = torch.empty(count, dtype=torch.int64)
    args = (
        score.numel(),
        count,
        score.data_ptr(),
        ids.data_ptr(),
        seed,
        largest,
        chosen.data_ptr(),
        torch.get_num_threads(),
    )
    run = lib().select
    with arena.borrow((run(*args, 0),), torch.uint8) as scratch:
        if nan := run(*args, scratch.data_ptr()):
            raise ValueError(f"score: {nan} of {score.numel()} are NaN")
    return chosen


def not_below(score: Tensor, bound: float) -> Tensor:
    """Ascending positions int64 of the scores (contiguous float32) that are not below a bound, NaN among them."""
    n, threads = score.numel(), torch.get_num_threads()
    counts = torch.empty(-(-n // lib().not_below_part), dtype=torch.int64)
    number = lib().not_below(n, score.data_ptr(), bound, 0, counts.data_ptr(), threads)
    found = torch.empty(number, dtype=torch.int64)
    if number:
        lib().not_below(n, score.data_ptr(), bound, found.data_ptr(), counts.data_ptr(), threads)
    return found
