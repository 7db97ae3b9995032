"""Launches the Triton kernel of block_score (``triton_kernels.py``, imported at the first launch)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..._cuda import aligned, sent
from ...packed import Lanes
from .._triton import on, products


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
    """float32 ``[count, col_blocks]``. Every x holds words of as many planes, or every x holds rows of grad's dtype."""
    from . import triton_kernels

    x, grad = [aligned(a) for a in x], [aligned(g) for g in grad]  # the kernel's loads are wide
    device, col_blocks = grad[0].device, -(-cols // bn)
    scores = torch.empty((count, col_blocks), dtype=torch.float32, device=device)
    lanes = [Lanes(*call) for call in zip(T, B, strict=True)]
    table = [
        (a.data_ptr(), g.data_ptr(), one.T * one.B, one.B, one.padded, one.groups)
        for a, g, one in zip(x, grad, lanes, strict=True)
    ]

    def grid(meta):
        high, wide = max(meta["ROWS"], bm), max(meta["COLS"], bn)
        return (-(-count * bm // high) * -(-cols // wide),)

    if scores.numel():
        with on(device):
            triton_kernels.block_score[grid](
                sent(table, device, torch.int64),
                sent(scale, device, torch.float32),
                grad[0],
                scores,
                len(table),
                rows,
                cols,
                first,
                count,
                BM=bm,
                BN=bn,
                PLANES=x[0].shape[0] if x[0].dtype == torch.int64 else 0,
                **products(grad[0].dtype),
            )
    return scores
