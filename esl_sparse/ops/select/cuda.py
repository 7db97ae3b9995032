"""CUDA kernel of select, on contiguous float32 scores."""

from __future__ import annotations

import torch
from torch import Tensor

from ..._cuda import ask, capturing, launch


def select(score: Tensor, ids: Tensor, count: int, seed: int, largest: bool, finite: bool = False) -> Tensor:
    """As the raw op; the positions are ascending. Unless the scores are finite, waits once, at the end, to tell of NaN.

    In a graph that is being captured nothing can be waited for: there NaN fails a device-side assertion.
    """
    n = score.numel()
    chosen = torch.empty(count, dtype=torch.int64, device=score.device)
    nan = torch.empty((), dtype=torch.int64, device=score.device)
    scratch = torch.empty(ask("select_scratch", n), dtype=torch.uint8, device=score.device)
    launch(
        "select",
        score.device,
        n,
        count,
        score.data_ptr(),
        ids.data_ptr(),
        seed,
        largest,
        chosen.data_ptr(),
        nan.data_ptr(),
        scratch.data_ptr(),
    )
    if finite:
        return chosen
    if capturing(score.device):
        torch._assert_async(nan == 0, "esl_sparse: a score is NaN")
    elif found := int(nan):
        raise ValueError(f"score: {found} of {n} are NaN")
    return chosen
