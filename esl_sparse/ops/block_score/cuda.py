"""CUDA kernel of block_score: words or float32 rows, gradients of one dtype."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..._cuda import DTYPE_CODES, launch, sent
from ...packed import Lanes


def block_score(
    x: Sequence[Tensor],
    grad: Sequence[Tensor],
    T: Sequence[int],
    B: Sequence[int],
    scale: Sequence[float],
    rows: int,
    cols: int,
    bm: int,
    bn: int,
    first: int,
    count: int,
) -> Tensor:
    """float32 ``[count, col_blocks]``. Inputs are contiguous."""
    device = grad[0].device
    scores = torch.empty((count, -(-cols // bn)), dtype=torch.float32, device=device)
    lanes = [Lanes(*call) for call in zip(T, B, strict=True)]
    # As the kernel reads it: addresses, B, lanes, planes (0: rows).
    table = [
        (a.data_ptr(), g.data_ptr(), one.B, one.total, a.shape[0] if a.dtype == torch.int64 else 0)
        for a, g, one in zip(x, grad, lanes, strict=True)
    ]
    calls = sent(table, device, torch.int64)
    scales = sent(scale, device, torch.float32)
    most = max(one.total for one in lanes)
    code = DTYPE_CODES[grad[0].dtype]
    pointers = calls.data_ptr(), scales.data_ptr()
    launch(
        *("block_score", device, rows, cols, bm, bn, *pointers, len(table), most, code),
        *(first, count, scores.data_ptr()),
    )
    return scores
