"""Triton kernels of linear, for blocks of at least 16x16. Imported at the first launch: Triton is optional.

Lanes are the M side of the products that write them: ``wgmma`` needs 64 rows there, and a block of 16 outputs
would not fill them. grad_values, which sums over lanes, puts the channels of several blocks there instead.
Packed spikes are loaded as words, 64 lanes in 8 bytes, and expanded in registers. Sums are float32.
"""

from __future__ import annotations

import triton
import triton.language as tl
from triton import Config

from .._triton_kernels import autotune, levels

# LANES: lanes of a tile. DEPTH: longest piece of a block that is multiplied at once. CHANNELS: channels of a tile of
# grad_values.
_KEY = ["rows", "cols", "PANELS"]

# A last, smaller batch does not compile again.
_jit = triton.jit(do_not_specialize=["samples", "B", "padded", "groups"])


@triton.jit
def _tile(pointer, lane, channel, C, samples, B, padded, groups, PANELS: tl.constexpr):
    """Pointers and mask of ``[lane, channel]``, of rows ``[samples, C]`` or of a panel ``[groups, C, 64]``.

    Lane ``t * padded + b`` is row ``t * B + b``. Rows leave padding lanes out; panels hold them, as zeros in
    gradients, so that lanes are loaded in long pieces there.
    """
    if PANELS:
        start, step = lane.to(tl.int64) // 64 * C * 64 + lane % 64, 64
        present = lane // 64 < groups
    else:
        b = lane % padded
        row = lane // padded * B + b
        start, step = row.to(tl.int64) * C, 1
        present = (b < B) & (row < samples)
    return pointer + start[:, None] + channel[None, :] * step, present[:, None] & (channel < C)[None, :]


@autotune(
    Config({"LANES": 64, "DEPTH": 32}, num_warps=4, num_stages=2),
    Config({"LANES": 128, "DEPTH": 64}, num_warps=4, num_stages=4),
    Config({"LANES": 128, "DEPTH": 64}, num_warps=8, num_stages=3),
    Config({"LANES": 256, "DEPTH": 32}, num_warps=8, num_stages=4),
    key=_KEY,
)
@_jit
def forward(
    x,  # rows [samples, cols], or words int64 [PLANES, groups, cols]
    values,  # [nnzb, BM, BN]
    bias,  # [rows]
    y,  # rows [samples, rows] or panel [groups, rows, 64]
    crow,
    col,
    rows,
    cols,
    samples,
    B,
    padded,
    groups,
    scale,
    BM: tl.constexpr,
    BN: tl.constexpr,
    PLANES: tl.constexpr,
    PANELS: tl.constexpr,
    BIAS: tl.constexpr,
    PRECISION: tl.constexpr,
    LANES: tl.constexpr,
    DEPTH: tl.constexpr,
):
    """A tile of lanes of a block row: x [LANES, K] times a piece of a block [K, BM], block by block."""
    K: tl.constexpr = BN if BN < DEPTH else DEPTH
    PIECES: tl.constexpr = BN // K
    GROUPS: tl.constexpr = LANES // 64
    row_blocks = tl.cdiv(rows, BM)
    r = tl.program_id(0) % row_blocks
    tile = tl.program_id(0) // row_blocks
    lane = tile * LANES + tl.arange(0, LANES)
    group = (tile * GROUPS + tl.arange(0, GROUPS)).to(tl.int64)
    out = tl.arange(0, BM)
    row = r * BM + out
    total = tl.zeros((LANES, BM), tl.float32)
    for i in range(tl.load(crow + r) * PIECES, tl.load(crow + r + 1) * PIECES):
        p = i // PIECES
        inside = i % PIECES * K + tl.arange(0, K)
        channel = tl.load(col + p) * BN + inside
        w = tl.load(
            values + p.to(tl.int64) * (BM * BN) + out[None, :] * BN + inside[:, None],
            mask=(channel < cols)[:, None] & (row < rows)[None, :],
            other=0.0,
        )
        if PLANES:
            words = x + group[:, None] * cols + channel[None, :]
            mask = (group < groups)[:, None] & (channel < cols)[None, :]
            spikes = levels(words, mask, groups.to(tl.int64) * cols, PLANES, 1)
            a = tl.reshape(spikes, (LANES, K)).to(y.dtype.element_ty)
        else:
            pointer, mask = _tile(x, lane, channel, cols, samples, B, padded, groups, False)
            a = tl.load(pointer, mask=mask, other=0.0)
        total = tl.dot(a, w.to(a.dtype), total, input_precision=PRECISION)
    total *= scale
    if BIAS:
        total += tl.load(bias + row, mask=row < rows, other=0.0).to(tl.float32)[None, :]
    pointer, mask = _tile(y, lane, row, rows, samples, B, padded, groups, PANELS)
    tl.store(pointer, total, mask=mask)


@autotune(
    Config({"LANES": 64, "DEPTH": 32}, num_warps=4, num_stages=2),
    Config({"LANES": 128, "DEPTH": 32}, num_warps=4, num_stages=4),
    Config({"LANES": 128, "DEPTH": 64}, num_warps=8, num_stages=3),
    Config({"LANES": 256, "DEPTH": 32}, num_warps=8, num_stages=3),
    key=_KEY,
)
@_jit
def grad_input(
    grad,  # rows [samples, rows] or panel [groups, rows, 64]
    values,  # [nnzb, BM, BN]
    grad_x,  # rows [samples, cols] or panel [groups, cols, 64]
    ccol,
    row_t,
    offset_t,
    rows,
    cols,
    samples,
    B,
    padded,
    groups,
    BM: tl.constexpr,
    BN: tl.constexpr,
    PANELS: tl.constexpr,
    X_PANELS: tl.constexpr,
    PRECISION: tl.constexpr,
    LANES: tl.constexpr,
    DEPTH: tl.constexpr,
):
    """A tile of lanes of a block column: grad [LANES, K] times a piece of a block [K, BN], block by block."""
    K: tl.constexpr = BM if BM < DEPTH else DEPTH
    PIECES: tl.constexpr = BM // K
    col_blocks = tl.cdiv(cols, BN)
    c = tl.program_id(0) % col_blocks
    tile = tl.program_id(0) // col_blocks
    lane = tile * LANES + tl.arange(0, LANES)
    out = tl.arange(0, BN)
    channel = c * BN + out
    total = tl.zeros((LANES, BN), tl.float32)
    for i in range(tl.load(ccol + c) * PIECES, tl.load(ccol + c + 1) * PIECES):
        p = i // PIECES
        inside = i % PIECES * K + tl.arange(0, K)
        row = tl.load(row_t + p) * BM + inside
        w = tl.load(
            values + tl.load(offset_t + p).to(tl.int64) * (BM * BN) + inside[:, None] * BN + out[None, :],
            mask=(row < rows)[:, None] & (channel < cols)[None, :],
            other=0.0,
        )
        pointer, mask = _tile(grad, lane, row, rows, samples, B, padded, groups, PANELS)
        g = tl.load(pointer, mask=mask, other=0.0)
        total = tl.dot(g, w.to(g.dtype), total, input_precision=PRECISION)
    pointer, mask = _tile(grad_x, lane, channel, cols, samples, B, padded, groups, X_PANELS)
    tl.store(pointer, total, mask=mask)


@autotune(
    Config({"LANES": 64, "CHANNELS": 64}, num_warps=8, num_stages=2),
    Config({"LANES": 64, "CHANNELS": 64}, num_warps=4, num_stages=4),
    Config({"LANES": 64, "CHANNELS": 128}, num_warps=8, num_stages=3),
    Config({"LANES": 128, "CHANNELS": 128}, num_warps=8, num_stages=3),
    key=_KEY,
)
@_jit
def grad_values(
    grad,  # rows [samples, rows] or panel [groups, rows, 64]
    x,  # rows [samples, cols], or words int64 [PLANES, groups, cols]
    grad_w,  # [nnzb, BM, BN]
    crow,
    col,
    rows,
    cols,
    samples,
    B,
    padded,
    groups,
    scale,
    BM: tl.constexpr,
    BN: tl.constexpr,
    PLANES: tl.constexpr,
    PANELS: tl.constexpr,
    PRECISION: tl.constexpr,
    CHANNELS: tl.constexpr,
    LANES: tl.constexpr,
):
    """The channels of a block row, dealt out to parts: x transposed [M, LANES] times grad [LANES, BM]."""
    M: tl.constexpr = CHANNELS
    GROUPS: tl.constexpr = LANES // 64
    parts = tl.num_programs(0) // tl.cdiv(rows, BM)
    r = tl.program_id(0) // parts
    part = tl.program_id(0) % parts
    out = tl.arange(0, BM)
    row = r * BM + out
    begin = tl.load(crow + r)
    count = (tl.load(crow + r + 1) - begin) * BN
    for first in range(part * M, count, parts * M):
        m = first + tl.arange(0, M)
        p = begin + m // BN
        inside = m % BN
        channel = tl.load(col + p, mask=m < count, other=0) * BN + inside
        channel = tl.max_contiguous(tl.multiple_of(channel, BN), BN)
        valid = (m < count) & (channel < cols)
        total = tl.zeros((M, BM), tl.float32)
        for tile in range(0, tl.cdiv(groups, GROUPS)):
            lane = tile * LANES + tl.arange(0, LANES)
            pointer, mask = _tile(grad, lane, row, rows, samples, B, padded, groups, PANELS)
            g = tl.load(pointer, mask=mask, other=0.0)
            if PLANES:
                group = (tile * GROUPS + tl.arange(0, GROUPS)).to(tl.int64)
                words = x + group[None, :] * cols + channel[:, None]
                mask = (group < groups)[None, :] & valid[:, None]
                spikes = levels(words, mask, groups.to(tl.int64) * cols, PLANES, 2)
                a = tl.reshape(spikes, (M, LANES)).to(g.dtype)
            else:
                pointer, mask = _tile(x, lane, channel, cols, samples, B, padded, groups, False)
                a = tl.trans(tl.load(pointer, mask=mask & valid[None, :], other=0.0))
            total = tl.dot(a, g, total, input_precision=PRECISION)
        # An overhang has no gradient, whatever the product says (a masked zero times NaN).
        total = tl.where(valid[:, None] & (row < rows)[None, :], total * scale, 0.0)
        target = grad_w + p.to(tl.int64)[:, None] * (BM * BN) + out[None, :] * BN + inside[:, None]
        tl.store(target, total, mask=(m < count)[:, None] & (out < BM)[None, :])
