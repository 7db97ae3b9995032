"""Triton kernels of conv2d, for blocks of at least 16x16. Imported at the first launch: Triton is optional.

Implicit products, nothing is unfolded: the M side of a tile is some units (a unit is one pixel of 64 lanes, a panel or
a word of each channel) times their lanes; the K side runs through the channels of a block row's blocks (backward: a
block column's, of all taps), several small blocks at once, each shifted by its own tap. As in linear, words are
expanded in registers and sums are float32.

Bytes: forward reads each word once for each block row (1 bit a lane, mostly from L2) and writes each panel once;
grad_input and grad_values read the gradient panel once for each block of a column and for each part of a row.
"""

from __future__ import annotations

import triton
import triton.language as tl
from triton import Config

from .._triton_kernels import autotune, levels

# UNITS: units of a tile. DEPTH: channels multiplied at once. CHANNELS: channels of a tile of grad_values.
_KEY = ["out_per_group", "in_per_group", "H", "W", "PLANES"]

# A last, smaller batch does not compile again; nor does another size of the same map. A 1 would come as a constant,
# which has no dtype.
_jit = triton.jit(do_not_specialize=["units", "nnzb", "T", "B", "padded", "H", "W", "Ho", "Wo"])


@triton.jit
def _block(p, col, KW: tl.constexpr, per_tap, present):
    """Of blocks p: row and column of the tap in the kernel, and which column block of its tap."""
    column = tl.load(col + p, mask=present, other=0)
    tap = column // per_tap
    return tap // KW, tap % KW, column % per_tap


@triton.jit
def _unit(unit, Ho, Wo):
    """Group of lanes and pixel of units."""
    pixel = unit % (Ho * Wo)
    return unit // (Ho * Wo), pixel // Wo, pixel % Wo


@triton.jit
def _valid_lanes(group, lane, T, B, padded):
    """Lanes that are no padding: lane ``t * padded + b`` of all groups."""
    place = group * 64 + lane
    return (place % padded < B) & (place // padded < T)


@autotune(
    Config({"UNITS": 1, "DEPTH": 32}, num_warps=4, num_stages=2),
    Config({"UNITS": 2, "DEPTH": 64}, num_warps=4, num_stages=4),
    Config({"UNITS": 2, "DEPTH": 64}, num_warps=8, num_stages=3),
    Config({"UNITS": 4, "DEPTH": 32}, num_warps=8, num_stages=4),
    key=_KEY,
    zeros=["stats"],
)
@_jit
def forward(
    x,  # panels [G, H, W, C, 64], or words int64 [PLANES, G, H, W, C]
    values,  # [nnzb, BM, BN]
    bias,  # [rows]
    y,  # panels [G, Ho, Wo, rows, 64]
    stats,  # float32 [units, 3, rows], a place a tile: its values, their mean, their squared distance from it
    crow,
    col,
    units,  # of y: G * Ho * Wo
    T,
    B,
    padded,
    groups,
    out_per_group,
    in_per_group,
    H,
    W,
    Ho,
    Wo,
    scale,
    KW: tl.constexpr,
    STRIDE_H: tl.constexpr,
    STRIDE_W: tl.constexpr,
    PADDING_H: tl.constexpr,
    PADDING_W: tl.constexpr,
    DILATION_H: tl.constexpr,
    DILATION_W: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    PLANES: tl.constexpr,
    BIAS: tl.constexpr,
    STATS: tl.constexpr,
    PRECISION: tl.constexpr,
    UNITS: tl.constexpr,
    DEPTH: tl.constexpr,
):
    """Some units of a block row: x [UNITS * 64, DEPTH] times pieces of its blocks [DEPTH, BM]."""
    M: tl.constexpr = UNITS * 64
    row_blocks = tl.cdiv(out_per_group, BM)
    per_tap = tl.cdiv(in_per_group, BN)
    r = tl.program_id(0) % (groups * row_blocks)
    tile = tl.program_id(0) // (groups * row_blocks)
    group = r // row_blocks
    out = tl.arange(0, BM)
    inside_group = r % row_blocks * BM + out
    is_row = inside_group < out_per_group
    row = group * out_per_group + inside_group
    C = groups * in_per_group

    # Of words one element stands for 64 lanes; of panels each lane is loaded.
    unit = tile * UNITS + tl.arange(0, UNITS if PLANES else M) // (1 if PLANES else 64)
    g, oy, ox = _unit(unit, Ho, Wo)
    top, left = oy * STRIDE_H - PADDING_H, ox * STRIDE_W - PADDING_W
    first_pixel = (g * H + top) * W + left

    begin = tl.load(crow + r)
    count = (tl.load(crow + r + 1) - begin) * BN
    total = tl.zeros((M, BM), tl.float32)
    for start in range(0, count, DEPTH):
        k = start + tl.arange(0, DEPTH)
        p, inside = begin + k // BN, k % BN
        i, j, piece = _block(p, col, KW, per_tap, k < count)
        channel = piece * BN + inside
        is_channel = (k < count) & (channel < in_per_group)
        w = tl.load(
            values + p.to(tl.int64)[:, None] * (BM * BN) + out[None, :] * BN + inside[:, None],
            mask=is_channel[:, None] & is_row[None, :],
            other=0.0,
        )
        down, right = i * DILATION_H, j * DILATION_W
        iy, ix = top[:, None] + down[None, :], left[:, None] + right[None, :]
        mask = (iy >= 0) & (iy < H) & (ix >= 0) & (ix < W) & (unit < units)[:, None] & is_channel[None, :]
        pixel = first_pixel[:, None] + (down * W + right)[None, :]
        place = pixel.to(tl.int64) * C + (group * in_per_group + channel)[None, :]
        if PLANES:
            plane = (units // (Ho * Wo)).to(tl.int64) * H * W * C
            spikes = levels(x + place, mask, plane, PLANES, 1)
            a = tl.reshape(spikes, (M, DEPTH)).to(y.dtype.element_ty)
        else:
            lane = tl.arange(0, M) % 64
            a = tl.load(x + place * 64 + lane[:, None], mask=mask, other=0.0)
        total = tl.dot(a, w.to(a.dtype), total, input_precision=PRECISION)
    total *= scale
    if BIAS:
        total += tl.load(bias + row, mask=is_row, other=0.0).to(tl.float32)[None, :]

    current = total.to(y.dtype.element_ty)
    m = tl.arange(0, M)
    unit = tile * UNITS + m // 64
    place = unit.to(tl.int64) * (groups * out_per_group * 64) + m % 64
    mask = (unit < units)[:, None] & is_row[None, :]
    tl.store(y + place[:, None] + row[None, :] * 64, current, mask=mask)
    if STATS:
        valid = _valid_lanes(unit // (Ho * Wo), m % 64, T, B, padded) & (unit < units)
        number = tl.sum(valid.to(tl.float32), 0)
        found = tl.where(valid[:, None], current.to(tl.float32), 0.0)
        mean = tl.sum(found, 0) / tl.maximum(number, 1.0)
        away = tl.where(valid[:, None], found - mean[None, :], 0.0)
        rows = groups * out_per_group
        of_tile = stats + tile.to(tl.int64) * (3 * rows) + row
        tl.store(of_tile, tl.zeros((BM,), tl.float32) + number, mask=is_row)
        tl.store(of_tile + rows, mean, mask=is_row)
        tl.store(of_tile + 2 * rows, tl.sum(away * away, 0), mask=is_row)


@autotune(
    Config({"UNITS": 1, "DEPTH": 32}, num_warps=4, num_stages=2),
    Config({"UNITS": 2, "DEPTH": 32}, num_warps=4, num_stages=4),
    Config({"UNITS": 2, "DEPTH": 64}, num_warps=8, num_stages=3),
    Config({"UNITS": 4, "DEPTH": 32}, num_warps=8, num_stages=3),
    key=_KEY,
)
@_jit
def grad_input(
    grad,  # panels [G, Ho, Wo, rows, 64]
    values,  # [nnzb, BM, BN]
    grad_x,  # panels [G, H, W, C, 64]
    ccol,
    row_t,
    offset_t,
    units,  # of grad_x: G * H * W
    groups,
    out_per_group,
    in_per_group,
    H,
    W,
    Ho,
    Wo,
    TAPS: tl.constexpr,
    ALL: tl.constexpr,  # the power of two from TAPS on
    KW: tl.constexpr,
    STRIDE_H: tl.constexpr,
    STRIDE_W: tl.constexpr,
    PADDING_H: tl.constexpr,
    PADDING_W: tl.constexpr,
    DILATION_H: tl.constexpr,
    DILATION_W: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    PLANES: tl.constexpr,
    PRECISION: tl.constexpr,
    UNITS: tl.constexpr,
    DEPTH: tl.constexpr,
):
    """Some units of a block of channels: grad [UNITS * 64, DEPTH] times pieces of blocks [DEPTH, BN], of every tap.

    The blocks of these channels stand in one column for each tap. They are counted through as one list: a single
    column often holds fewer rows than a product is deep.
    """
    M: tl.constexpr = UNITS * 64
    row_blocks = tl.cdiv(out_per_group, BM)
    per_tap = tl.cdiv(in_per_group, BN)
    c = tl.program_id(0) % (groups * per_tap)
    tile = tl.program_id(0) // (groups * per_tap)
    group, piece = c // per_tap, c % per_tap
    out = tl.arange(0, BN)
    is_channel = piece * BN + out < in_per_group

    m = tl.arange(0, M)
    unit = tile * UNITS + m // 64
    lane = m % 64
    g, iy, ix = _unit(unit, H, W)
    bottom, right = iy + PADDING_H, ix + PADDING_W

    taps = tl.arange(0, ALL)
    column = ccol + taps * per_tap + piece
    begin = tl.load(column, mask=taps < TAPS, other=0)
    blocks = tl.load(column + 1, mask=taps < TAPS, other=0) - begin
    end = tl.cumsum(blocks, 0)  # in the list
    count = tl.sum(blocks, 0) * BM
    total = tl.zeros((M, BN), tl.float32)
    for start in range(0, count, DEPTH):
        k = start + tl.arange(0, DEPTH)
        q, inside = k // BM, k % BM
        here = (q[:, None] >= (end - blocks)[None, :]) & (q[:, None] < end[None, :])
        p = q + tl.sum(tl.where(here, (begin + blocks - end)[None, :], 0), 1)
        tap = tl.sum(tl.where(here, taps[None, :], 0), 1)
        r = tl.load(row_t + p, mask=k < count, other=-1)
        offset = tl.load(offset_t + p, mask=k < count, other=0)
        inside_group = (r - group * row_blocks) * BM + inside
        is_row = (r // row_blocks == group) & (r >= 0) & (inside_group < out_per_group)
        w = tl.load(
            values + offset.to(tl.int64)[:, None] * (BM * BN) + inside[:, None] * BN + out[None, :],
            mask=is_row[:, None] & is_channel[None, :],
            other=0.0,
        )
        y = bottom[:, None] - (tap // KW * DILATION_H)[None, :]
        x = right[:, None] - (tap % KW * DILATION_W)[None, :]
        oy, ox = y // STRIDE_H, x // STRIDE_W
        reads = (y >= 0) & (x >= 0) & (oy < Ho) & (ox < Wo)
        if STRIDE_H > 1:
            reads &= y % STRIDE_H == 0
        if STRIDE_W > 1:
            reads &= x % STRIDE_W == 0
        pixel = (g * Ho)[:, None] * Wo + oy * Wo + ox
        row = group * out_per_group + inside_group
        place = (pixel.to(tl.int64) * (groups * out_per_group) + row[None, :]) * 64 + lane[:, None]
        mask = reads & (unit < units)[:, None] & is_row[None, :]
        a = tl.load(grad + place, mask=mask, other=0.0)
        total = tl.dot(a, w.to(a.dtype), total, input_precision=PRECISION)
    channel = group * in_per_group + piece * BN + out
    place = unit.to(tl.int64) * (groups * in_per_group * 64) + lane
    mask = (unit < units)[:, None] & is_channel[None, :]
    tl.store(grad_x + place[:, None] + channel[None, :] * 64, total, mask=mask)


@autotune(
    Config({"UNITS": 1, "CHANNELS": 64}, num_warps=8, num_stages=2),
    Config({"UNITS": 1, "CHANNELS": 64}, num_warps=4, num_stages=4),
    Config({"UNITS": 1, "CHANNELS": 128}, num_warps=8, num_stages=3),
    Config({"UNITS": 2, "CHANNELS": 128}, num_warps=8, num_stages=3),
    key=_KEY,
)
@_jit
def grad_values(
    grad,  # panels [G, Ho, Wo, rows, 64]
    x,  # panels [G, H, W, C, 64], or words int64 [PLANES, G, H, W, C]
    sums,  # float32 [SPLITS, nnzb, BM, BN]
    crow,
    col,
    nnzb,
    units,  # of grad: G * Ho * Wo
    groups,
    out_per_group,
    in_per_group,
    H,
    W,
    Ho,
    Wo,
    scale,
    KW: tl.constexpr,
    STRIDE_H: tl.constexpr,
    STRIDE_W: tl.constexpr,
    PADDING_H: tl.constexpr,
    PADDING_W: tl.constexpr,
    DILATION_H: tl.constexpr,
    DILATION_W: tl.constexpr,
    SPLITS: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    PLANES: tl.constexpr,
    PRECISION: tl.constexpr,
    CHANNELS: tl.constexpr,
    UNITS: tl.constexpr,
):
    """Channels of a block row, dealt out to parts, over a split of the units: x^T [CHANNELS, L] times grad [L, BM]."""
    M: tl.constexpr = CHANNELS
    L: tl.constexpr = UNITS * 64
    row_blocks = tl.cdiv(out_per_group, BM)
    per_tap = tl.cdiv(in_per_group, BN)
    r = tl.program_id(0)
    part, parts = tl.program_id(1), tl.num_programs(1)
    split = tl.program_id(2)
    group = r // row_blocks
    out = tl.arange(0, BM)
    inside_group = r % row_blocks * BM + out
    is_row = inside_group < out_per_group
    row = group * out_per_group + inside_group
    C = groups * in_per_group
    tiles = tl.cdiv(units, UNITS)
    per_split = tl.cdiv(tiles, SPLITS)

    begin = tl.load(crow + r)
    count = (tl.load(crow + r + 1) - begin) * BN
    for first in range(part * M, count, parts * M):
        m = first + tl.arange(0, M)
        p, inside = begin + m // BN, m % BN
        i, j, piece = _block(p, col, KW, per_tap, m < count)
        channel = piece * BN + inside
        valid = (m < count) & (channel < in_per_group)
        down, right = i * DILATION_H, j * DILATION_W
        total = tl.zeros((M, BM), tl.float32)
        for tile in range(split * per_split, tl.minimum((split + 1) * per_split, tiles)):
            lane = tl.arange(0, L)
            unit = tile * UNITS + lane // 64
            place = unit.to(tl.int64) * (groups * out_per_group * 64) + lane % 64
            mask = (unit < units)[:, None] & is_row[None, :]
            a = tl.load(grad + place[:, None] + row[None, :] * 64, mask=mask, other=0.0)
            if PLANES:
                unit = tile * UNITS + tl.arange(0, UNITS)
            g, oy, ox = _unit(unit, Ho, Wo)
            top, left = oy * STRIDE_H - PADDING_H, ox * STRIDE_W - PADDING_W
            if PLANES:
                iy, ix = top[None, :] + down[:, None], left[None, :] + right[:, None]
                reads = (iy >= 0) & (iy < H) & (ix >= 0) & (ix < W) & (unit < units)[None, :] & valid[:, None]
                pixel = (g * H)[None, :] * W + iy * W + ix
                words = pixel.to(tl.int64) * C + (group * in_per_group + channel)[:, None]
                plane = (units // (Ho * Wo)).to(tl.int64) * H * W * C
                spikes = levels(x + words, reads, plane, PLANES, 2)
                b = tl.reshape(spikes, (M, L)).to(a.dtype)
            else:
                iy, ix = top[:, None] + down[None, :], left[:, None] + right[None, :]
                reads = (iy >= 0) & (iy < H) & (ix >= 0) & (ix < W) & (unit < units)[:, None] & valid[None, :]
                pixel = (g * H)[:, None] * W + iy * W + ix
                panels = (pixel.to(tl.int64) * C + (group * in_per_group + channel)[None, :]) * 64
                b = tl.trans(tl.load(x + panels + (lane % 64)[:, None], mask=reads, other=0.0))
            total = tl.dot(b, a, total, input_precision=PRECISION)
        # An overhang has no gradient, whatever the product says (a masked zero times NaN).
        total = tl.where(valid[:, None] & is_row[None, :], total * scale, 0.0)
        block = split * nnzb.to(tl.int64) + p
        target = sums + block[:, None] * (BM * BN) + out[None, :] * BN + inside[:, None]
        tl.store(target, total, mask=(m < count)[:, None] & (out < BM)[None, :])
