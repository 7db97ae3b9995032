"""Triton kernel of block_score, for blocks of any size. Imported at the first launch: Triton is optional.

A tile of the gradient is made in registers, summed over all calls of the layer, and leaves as one score a block: the
gradient itself is never in memory.
"""

from __future__ import annotations

import triton
import triton.language as tl
from triton import Config

from .._triton_kernels import autotune, levels


@autotune(
    Config({"ROWS": 64, "COLS": 64, "LANES": 64}, num_warps=8, num_stages=2),
    Config({"ROWS": 64, "COLS": 128, "LANES": 64}, num_warps=8, num_stages=3),
    Config({"ROWS": 128, "COLS": 128, "LANES": 64}, num_warps=8, num_stages=3),
    key=["rows", "cols", "PLANES"],
)
@triton.jit(do_not_specialize=["calls_made", "first", "count"])
def block_score(
    calls,  # int64 [calls_made, 6]: addresses of x and grad, rows of x, B, padded, groups of lanes
    scales,  # float32 [calls_made]
    like,  # of grad's dtype; not read
    scores,  # float32 [count, col_blocks]
    calls_made,
    rows,
    cols,
    first,  # block row
    count,
    BM: tl.constexpr,
    BN: tl.constexpr,
    PLANES: tl.constexpr,
    PRECISION: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
    LANES: tl.constexpr,
):
    """The gradient's tile [COLS, ROWS]: x^T [COLS, LANES] times grad [LANES, ROWS], call by call."""
    HIGH: tl.constexpr = ROWS if ROWS > BM else BM
    WIDE: tl.constexpr = COLS if COLS > BN else BN
    GROUPS: tl.constexpr = LANES // 64
    dtype: tl.constexpr = like.dtype.element_ty
    col_tiles = tl.cdiv(cols, WIDE)
    first_row = first * BM + tl.program_id(0) // col_tiles * HIGH
    first_col = tl.program_id(0) % col_tiles * WIDE
    row = first_row + tl.arange(0, HIGH)
    channel = first_col + tl.arange(0, WIDE)
    total = tl.zeros((WIDE, HIGH), tl.float32)
    for i in range(calls_made):
        call = calls + i * 6
        # What an argument would tell by itself: both are aligned.
        source, grad = tl.multiple_of(tl.load(call), 16), tl.multiple_of(tl.load(call + 1), 16)
        grad = grad.to(tl.pointer_type(dtype))
        samples = tl.load(call + 2).to(tl.int32)  # divided in 32 bits: 64 take many times as long
        B, padded, groups = (
            tl.load(call + 3).to(tl.int32),
            tl.load(call + 4).to(tl.int32),
            tl.load(call + 5).to(tl.int32),
        )
        part = tl.zeros((WIDE, HIGH), tl.float32)
        for tile in range(0, tl.cdiv(groups, GROUPS)):
            lane = tile * LANES + tl.arange(0, LANES)
            b = lane % padded
            sample = lane // padded * B + b
            present = (b < B) & (sample < samples)
            g = tl.load(
                grad + sample.to(tl.int64)[:, None] * rows + row[None, :],
                mask=present[:, None] & (row < rows)[None, :],
                other=0.0,
            )
            if PLANES:
                group = (tile * GROUPS + tl.arange(0, GROUPS)).to(tl.int64)
                words = source.to(tl.pointer_type(tl.int64)) + group[None, :] * cols + channel[:, None]
                mask = (group < groups)[None, :] & (channel < cols)[:, None]
                spikes = levels(words, mask, groups.to(tl.int64) * cols, PLANES, 2)
                a = tl.reshape(spikes, (WIDE, LANES)).to(g.dtype)
            else:
                x = source.to(tl.pointer_type(dtype)) + sample.to(tl.int64)[:, None] * cols + channel[None, :]
                a = tl.trans(tl.load(x, mask=present[:, None] & (channel < cols)[None, :], other=0.0))
            part = tl.dot(a, g, part, input_precision=PRECISION)
        total += part * tl.load(scales + i)
    # Outside the weight x or grad were loaded as zeros.
    sums = tl.sum(tl.reshape(tl.abs(total), (WIDE // BN, BN, HIGH)), 1)
    sums = tl.sum(tl.reshape(sums, (WIDE // BN, HIGH // BM, BM)), 2)
    r = first_row // BM + tl.arange(0, HIGH // BM)
    c = first_col // BN + tl.arange(0, WIDE // BN)
    high, wide = tl.minimum(rows - r * BM, BM), tl.minimum(cols - c * BN, BN)
    entries = tl.maximum(high, 1)[None, :] * tl.maximum(wide, 1)[:, None]
    col_blocks = tl.cdiv(cols, BN)
    target = scores + (r - first).to(tl.int64)[None, :] * col_blocks + c[:, None]
    mask = (r < first + count)[None, :] & (c < col_blocks)[:, None]
    tl.store(target, sums / entries.to(tl.float32), mask=mask)
