"""Definition of block_score: the mean gradient magnitude of each block, for some of the block rows."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import pad

from ...topology import BlockLayout


def compute_dtype(grad: Sequence[Tensor]) -> torch.dtype:
    return torch.float64 if any(one.dtype == torch.float64 for one in grad) else torch.float32


def block_score(x: Sequence[Tensor], grad: Sequence[Tensor], layout: BlockLayout, first: int, count: int):
    """Rows ``x_i [N_i, cols]``, ``grad_i [N_i, rows]`` -> float32 ``[count, col_blocks]``.

    The mean of ``|sum_i grad_i^T x_i|`` over the entries of a block inside the weight, for ``count`` block rows from
    ``first`` on; no more of the product than these rows is ever made.
    """
    dtype = compute_dtype(grad)
    rows = slice(first * layout.bm, min((first + count) * layout.bm, layout.rows))
    strip = torch.zeros(rows.stop - rows.start, layout.cols, dtype=dtype, device=grad[0].device)
    for one_x, one_grad in zip(x, grad, strict=True):
        strip.addmm_(one_grad[:, rows].to(dtype).t(), one_x.to(dtype))
    strip.abs_()
    if layout.bm == layout.bn == 1:
        return strip.float()
    padding = (0, layout.col_blocks * layout.bn - layout.cols, 0, count * layout.bm - strip.shape[0])
    if any(padding):
        strip = pad(strip, padding)
    sums = strip.view(count, layout.bm, layout.col_blocks, layout.bn).sum((1, 3))
    row_blocks = torch.arange(first, first + count, device=strip.device)
    col_blocks = torch.arange(layout.col_blocks, device=strip.device)
    entries = layout.row_extent(row_blocks)[:, None] * layout.col_extent(col_blocks)
    return (sums / entries).float()
