"""Native CPU kernel of block_score: binary spikes, event-driven. Gradients are float32 or bfloat16 rows."""

from __future__ import annotations

import torch
from torch import Tensor

from ..._native import lib
from ...arena import arena


def block_score(x, grad, T, B, scale, rows, cols, bm, bn, first, count) -> Tensor:
    """As the raw op, on words ``[1, G, 1, 1, cols]``. Inputs are contiguous."""
    scores = torch.empty(count, -(-cols // bn))
    calls = [
        (t, b, factor, words.data_ptr(), rows_back.data_ptr(), rows_back.dtype == torch.bfloat16)
        for t, b, factor, words, rows_back in zip(T, B, scale, x, grad, strict=True)
    ]
    args = (rows, cols, bm, bn, calls, first, count, scores.data_ptr(), torch.get_num_threads())
    run = lib().block_score
    with arena.borrow((run(*args, 0),), torch.uint8) as scratch:
        run(*args, scratch.data_ptr())
    return scores


def count_spikes(words: Tensor) -> int:
    return lib().count_spikes(words.data_ptr(), words.numel())
