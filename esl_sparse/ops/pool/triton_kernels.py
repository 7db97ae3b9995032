"""Triton kernels of pool. Imported at the first launch: Triton is optional.

Words are pooled 64 lanes at a time by bitwise operations: a sum adds bit planes with carries, a maximum is OR. Backward
gathers: each pixel's panel row sums those of the windows that hold it, so that panels are read and written once where
windows do not overlap. Which pixel of a window a maximum's gradient goes to is found first, a word a tap: 8 bytes where
a panel has 64 lanes of 2 or 4.
"""

# Tuples grow here.
# mypy: disable-error-code="assignment, var-annotated"
from __future__ import annotations

import triton
import triton.language as tl

_jit = triton.jit(do_not_specialize=["total", "plane", "route", "T", "B", "padded", "groups"])


@triton.jit
def _outputs(total, C, Wo, Ho, BLOCK: tl.constexpr):
    """Index [BLOCK] into ``[groups, Ho, Wo, C]``, and group, row, column, channel."""
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    line = i // C // Wo
    return i, line // Ho, line % Ho, i // C % Wo, i % C


@triton.jit
def _source(group, y, x, c, H, W, C, exists):
    """Where a pixel's word stands in ``[groups, H, W, C]``, int64, and whether it lies on the map."""
    return (((group * H + y) * W + x) * C + c).to(tl.int64), exists & (y >= 0) & (y < H) & (x >= 0) & (x < W)


@_jit
def avg_pool(
    words,  # int64 [PLANES, groups, H, W, C]
    sums,  # int64 [SUM_PLANES, groups, Ho, Wo, C]
    total,  # outputs of a plane
    plane,  # words of a plane
    H,
    W,
    C,
    Ho,
    Wo,
    stride_y,
    stride_x,
    padding_y,
    padding_x,
    KH: tl.constexpr,
    KW: tl.constexpr,
    PLANES: tl.constexpr,
    SUM_PLANES: tl.constexpr,
    BLOCK: tl.constexpr,
):
    i, group, yo, xo, c = _outputs(total, C, Wo, Ho, BLOCK)
    planes = ()
    for _ in tl.static_range(SUM_PLANES):
        planes += (tl.zeros((BLOCK,), tl.int64),)
    for k in tl.static_range(KH * KW):
        y, x = yo * stride_y - padding_y + k // KW, xo * stride_x - padding_x + k % KW
        at, exists = _source(group, y, x, c, H, W, C, i < total)
        added = ()
        carry = tl.zeros((BLOCK,), tl.int64)
        for p in tl.static_range(SUM_PLANES):
            before = planes[p]
            both = before & carry
            half = before ^ carry
            if p < PLANES:
                bits = tl.load(words + p * plane.to(tl.int64) + at, mask=exists, other=0)
                added += (half ^ bits,)
                carry = both | (half & bits)
            else:
                added += (half,)
                carry = both
        planes = added
    for p in tl.static_range(SUM_PLANES):
        tl.store(sums + p * total.to(tl.int64) + i, planes[p], mask=i < total)


@triton.jit
def _any(
    words,
    i,
    group,
    yo,
    xo,
    c,
    total,
    H,
    W,
    C,
    KH,
    KW,
    stride_y,
    stride_x,
    padding_y,
    padding_x,
    dilation_y,
    dilation_x,
    BLOCK: tl.constexpr,
):
    """The lanes of which any pixel of a window spikes."""
    found = tl.zeros((BLOCK,), tl.int64)
    for ky in range(0, KH):
        for kx in range(0, KW):
            y, x = yo * stride_y - padding_y + ky * dilation_y, xo * stride_x - padding_x + kx * dilation_x
            at, exists = _source(group, y, x, c, H, W, C, i < total)
            found |= tl.load(words + at, mask=exists, other=0)
    return found


@_jit
def max_pool(
    words,  # int64 [groups, H, W, C]
    out,  # int64 [groups, Ho, Wo, C]
    total,
    H,
    W,
    C,
    Ho,
    Wo,
    KH,
    KW,
    stride_y,
    stride_x,
    padding_y,
    padding_x,
    dilation_y,
    dilation_x,
    BLOCK: tl.constexpr,
):
    i, group, yo, xo, c = _outputs(total, C, Wo, Ho, BLOCK)
    found = _any(
        words, i, group, yo, xo, c, total, H, W, C, KH, KW,
        stride_y, stride_x, padding_y, padding_x, dilation_y, dilation_x, BLOCK,
    )  # fmt: skip
    tl.store(out + i, found, mask=i < total)


@_jit
def max_routes(
    words,  # int64 [groups, H, W, C]
    routes,  # int64 [KH * KW, groups, Ho, Wo, C]: lanes whose maximum a tap is
    total,
    H,
    W,
    C,
    Ho,
    Wo,
    KH,
    KW,
    stride_y,
    stride_x,
    padding_y,
    padding_x,
    dilation_y,
    dilation_x,
    BLOCK: tl.constexpr,
):
    """The first tap that spikes; of a silent window the first on the map."""
    i, group, yo, xo, c = _outputs(total, C, Wo, Ho, BLOCK)
    silent = ~_any(
        words, i, group, yo, xo, c, total, H, W, C, KH, KW,
        stride_y, stride_x, padding_y, padding_x, dilation_y, dilation_x, BLOCK,
    )  # fmt: skip
    taken = tl.zeros((BLOCK,), tl.int64)
    target = routes + i
    for ky in range(0, KH):
        for kx in range(0, KW):
            y, x = yo * stride_y - padding_y + ky * dilation_y, xo * stride_x - padding_x + kx * dilation_x
            at, exists = _source(group, y, x, c, H, W, C, i < total)
            bits = tl.load(words + at, mask=exists, other=0) | tl.where(exists, silent, 0)
            tl.store(target, bits & ~taken, mask=i < total)
            taken |= bits
            target += total


@_jit
def backward(
    grad,  # [groups, Ho, Wo, C, 64]
    routes,  # int64 [KH * KW, groups, Ho, Wo, C]
    grad_x,  # [groups, H, W, C, 64]
    total,  # rows of grad_x
    H,
    W,
    C,
    Ho,
    Wo,
    KH,
    KW,
    stride_y: tl.constexpr,
    stride_x: tl.constexpr,
    padding_y,
    padding_x,
    dilation_y,
    dilation_x,
    share,
    route,  # words of a tap
    ROUTED: tl.constexpr,  # whether a lane's gradient goes to one tap, or a share to all
    ROWS: tl.constexpr,
):
    i, group, y, x, c = _outputs(total, C, W, H, ROWS)
    lane = tl.arange(0, 64)[None, :]
    found = tl.zeros((ROWS, 64), tl.float32)
    tap = routes
    for ky in range(0, KH):
        for kx in range(0, KW):
            ahead_y, ahead_x = y + padding_y - ky * dilation_y, x + padding_x - kx * dilation_x
            at, exists = _source(group, ahead_y // stride_y, ahead_x // stride_x, c, Ho, Wo, C, i < total)
            exists &= (ahead_y >= 0) & (ahead_x >= 0)
            exists &= (ahead_y % stride_y == 0) & (ahead_x % stride_x == 0)
            here = tl.load(grad + (at[:, None] * 64 + lane), mask=exists[:, None], other=0.0).to(tl.float32)
            if ROUTED:
                bits = tl.load(tap + at, mask=exists, other=0)
                here = tl.where((bits[:, None] >> lane) & 1 != 0, here, 0.0)
                tap += route
            found += here
    tl.store(
        grad_x + (i.to(tl.int64)[:, None] * 64 + lane), found * share, mask=(i < total)[:, None] & (lane >= 0)
    )


@_jit
def global_avg_pool(
    words,  # int64 [PLANES, groups, pixels, C]
    y,  # rows [T * B, C]
    T,
    B,
    padded,
    groups,
    pixels,
    C,
    share,
    PLANES: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    tiles = tl.cdiv(C, CHANNELS)
    group = tl.program_id(0) // tiles
    c = tl.program_id(0) % tiles * CHANNELS + tl.arange(0, CHANNELS)[None, :]
    lane = tl.arange(0, 64)[:, None]
    count = tl.zeros((64, CHANNELS), tl.int32)
    for pixel in range(0, pixels):
        for plane in tl.static_range(PLANES):
            at = ((plane * groups + group).to(tl.int64) * pixels + pixel) * C + c
            bits = tl.load(words + at, mask=c < C, other=0) >> lane
            count += (bits.to(tl.int32) & 1) << plane
    number = group * 64 + lane
    sample = number % padded
    row = (number // padded * B + sample).to(tl.int64)
    present = (sample < B) & (number < T * padded)
    tl.store(y + row * C + c, count.to(tl.float32) * share, mask=present & (c < C))
