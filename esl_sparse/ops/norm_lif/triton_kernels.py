"""Triton kernels of norm_lif. Imported at the first launch: Triton is optional.

Memory-bound. Forward reads a value and writes a bit for each lane; backward reads the current and the spikes' gradient
and writes over the current. Where gradients pass through batch statistics, a pass before that reads the same two for
its sums. Potentials are found again and stay in registers, as in lif; runs longer than STEPS steps go in chunks, last
one first, and what is read twice of them was read a moment before.

A row is what a unit (a pixel's channel) has of a sample block at one step: L lanes that begin at a multiple of L and so
lie within a word, wherever the step begins. L is the largest of 8, 16 and 32 that divides the padded batch, so words
are read and written in pieces of L bits. P = 2 rows of a unit stand side by side where the padded batch is a multiple
of 64. A program takes ROWS rows through all steps; a thread holds a vector of each.

Sums leave a program as one number for each row, to be added in order: no atomics. Products and sums are rounded
separately (launched without fusion), so spikes equal those of the plain torch loop.
"""

# Tuples grow here.
# mypy: disable-error-code="assignment"
from __future__ import annotations

import triton
import triton.language as tl

from ..lif.triton_kernels import after_reset, at_step, grad_of_input, where

_SIZES = ["T", "B", "octets", "groups", "units", "C", "W", "pooled_height", "pooled_width"]
_jit = triton.jit(do_not_specialize=_SIZES)  # alignment follows from 8 lanes and more


@triton.jit
def _rows(B, octets, units, L: tl.constexpr, P: tl.constexpr, ROWS: tl.constexpr):
    """First eighth of a group, rows int64 [ROWS], which rows there are, which lanes [ROWS, L] are samples."""
    blocks = octets // (L * P // 8)
    octet = tl.program_id(0) % blocks * (L * P // 8)
    row = (tl.program_id(0) // blocks).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    sample = (octet * 8 + row % P * L)[:, None] + tl.arange(0, L)[None, :]
    return octet, row, row // P < units, sample < B


@triton.jit
def _place(eighth, units):
    """Of an eighth of a group: words before the group, bits before the eighth."""
    return (eighth // 8).to(tl.int64) * units, eighth % 8 * 8


@triton.jit
def _panels(pointer, inside, begin, T, octet, octets, units, WHOLE: tl.constexpr, STEPS: tl.constexpr):
    """Rows [ROWS, L] of STEPS steps from step `begin` on; zeros beyond the last."""
    steps = ()
    for j in tl.static_range(STEPS):
        t = begin + j
        word, bit = _place(t * octets + octet, units)
        mask = at_step(t, T, inside[:, None], WHOLE)
        steps += (tl.load(pointer + (word * 64 + bit), mask=mask, other=0.0),)
    return steps


@triton.jit
def _words(
    pointer, inside, begin, T, octet, octets, units, L: tl.constexpr, WHOLE: tl.constexpr, STEPS: tl.constexpr
):
    """The same of spikes, L bits [ROWS] a step."""
    steps = ()
    for j in tl.static_range(STEPS):
        t = begin + j
        word, bit = _place(t * octets + octet, units)
        bits = tl.load(pointer + (word * (64 // L) + bit // L), mask=at_step(t, T, inside, WHOLE), other=0)
        steps += (bits.to(tl.int32),)
    return steps


@triton.jit
def _bits(words, L: tl.constexpr):
    """[ROWS] -> [ROWS, L], 0 and 1."""
    return (words[:, None] >> tl.arange(0, L)[None, :]) & 1


@triton.jit
def _levels(
    pointer,
    inside,
    begin,
    T,
    octet,
    octets,
    units,
    groups,
    L: tl.constexpr,
    PLANES: tl.constexpr,
    WHOLE: tl.constexpr,
    STEPS: tl.constexpr,
):
    """Integers [ROWS, L] of PLANES bits."""
    plane = groups.to(tl.int64) * units * (64 // L)
    steps = ()
    for j in tl.static_range(STEPS):
        t = begin + j
        word, bit = _place(t * octets + octet, units)
        at = word * (64 // L) + bit // L
        level = _bits(tl.load(pointer + at, mask=at_step(t, T, inside, WHOLE), other=0).to(tl.int32), L)
        for p in tl.static_range(1, PLANES):
            words = tl.load(pointer + p * plane + at, mask=at_step(t, T, inside, WHOLE), other=0)
            level |= _bits(words.to(tl.int32), L) << p
        steps += (level,)
    return steps


@triton.jit
def _normalised(x, a, b, NORM: tl.constexpr):
    x = x.to(tl.float32)
    if NORM:
        x = a[:, None] * x + b[:, None]
    return x


@triton.jit
def _vector(pointer, channel, inside, ASKED: tl.constexpr):
    """[ROWS] of a vector [C]; a number that is not used where there is no vector."""
    x = 0.0
    if ASKED:
        x = tl.load(pointer + channel, mask=inside, other=0.0)
    return x


@_jit
def forward(
    current,  # [groups, units, 64]
    a,  # [C]
    b,
    current2,
    a2,
    b2,
    residual,  # words [PLANES, groups, units], in pieces of L bits
    words,  # [groups, units], likewise
    tau,
    T,
    B,
    octets,  # padded batch / 8
    groups,
    units,
    C,
    v_threshold,
    v_reset,
    scale,
    HARD: tl.constexpr,
    NORM: tl.constexpr,
    SECOND: tl.constexpr,
    NORM2: tl.constexpr,
    PLANES: tl.constexpr,
    L: tl.constexpr,
    P: tl.constexpr,
    ROWS: tl.constexpr,
    WHOLE: tl.constexpr,
    STEPS: tl.constexpr,
):
    octet, row, inside, valid = _rows(B, octets, units, L, P, ROWS)
    lane = tl.arange(0, L)[None, :]
    channel = (row // P).to(tl.int32) % C
    in_panel = (row * (64 // P))[:, None] + lane
    in_words = row * (64 // P // L)
    scale_1, shift_1 = _vector(a, channel, inside, NORM), _vector(b, channel, inside, NORM)
    scale_2, shift_2 = _vector(a2, channel, inside, NORM2), _vector(b2, channel, inside, NORM2)
    decay = tl.load(tau)
    v = tl.zeros((ROWS, L), tl.float32) + v_reset
    for begin in range(0, T, STEPS):
        xs = _panels(current + in_panel, inside, begin, T, octet, octets, units, WHOLE, STEPS)
        if SECOND:
            xs2 = _panels(current2 + in_panel, inside, begin, T, octet, octets, units, WHOLE, STEPS)
        if PLANES:
            levels = _levels(
                residual + in_words, inside, begin, T, octet, octets, units, groups, L, PLANES, WHOLE, STEPS
            )
        for j in tl.static_range(STEPS):
            t = begin + j
            x = _normalised(xs[j], scale_1, shift_1, NORM)
            if SECOND:
                x += _normalised(xs2[j], scale_2, shift_2, NORM2)
            if PLANES:
                x += scale * levels[j].to(tl.float32)
            u = decay * v + x
            spike = (u > v_threshold) & valid
            v = after_reset(u, spike, v_threshold, v_reset, HARD)
            word, bit = _place(t * octets + octet, units)
            bits = tl.sum(spike.to(tl.int32) << lane, axis=1)
            tl.store(
                words + (word * (64 // L) + bit // L) + in_words, bits, mask=at_step(t, T, inside, WHOLE)
            )
    # The rest of the last group.
    for rest in range(T * octets, groups * 8, L // 8):
        eighth = rest + octet
        word, bit = _place(eighth, units)
        none = tl.zeros((ROWS,), tl.int32)
        tl.store(words + (word * (64 // L) + bit // L) + in_words, none, mask=where(octet == 0, inside))


@triton.jit
def _put(pointer, mask, live, g, x, a, mean, of_mean, slope, NORM: tl.constexpr, BATCH: tl.constexpr):
    """Write the gradient of a current x that follows from g, that of the sum of currents."""
    if BATCH:
        g = g - of_mean[:, None] - (x.to(tl.float32) - mean[:, None]) * slope[:, None]
    if NORM:
        g = a[:, None] * g
    tl.store(pointer, tl.where(live, g, 0.0), mask=mask)


@_jit
def backward(
    grad,  # [groups, pooled units, 64]
    words,  # [groups, units], in pieces of L bits
    current,  # [groups, units, 64], overwritten
    a,  # [C]
    b,
    mean,
    of_mean,  # mean of the gradient over a channel; where it passes through the statistics
    slope,
    current2,
    a2,
    b2,
    mean2,
    slope2,
    residual,
    grad_residual,
    tau,
    sums,  # [3, blocks, units * P]: of g, and of g times the distance of each current from its mean
    grad_tau,  # [programs]
    starts,  # [chunks - 1, programs, ROWS, L]: potentials before each chunk but the last
    T,
    B,
    octets,
    groups,
    units,
    C,
    W,
    pooled_height,
    pooled_width,
    v_threshold,
    v_reset,
    width,
    scale,
    HARD: tl.constexpr,
    DETACH: tl.constexpr,
    SURROGATE: tl.constexpr,
    NORM: tl.constexpr,
    SECOND: tl.constexpr,
    NORM2: tl.constexpr,
    PLANES: tl.constexpr,
    POOL: tl.constexpr,
    SUMS: tl.constexpr,  # bit 0: of g; bits 1 and 2: of g times the distances
    TAU: tl.constexpr,
    PUT: tl.constexpr,  # bits: gradients of current, current2 and residual
    BATCH: tl.constexpr,  # bits: whether those of the currents pass through the statistics
    CHUNKED: tl.constexpr,
    L: tl.constexpr,
    P: tl.constexpr,
    ROWS: tl.constexpr,
    WHOLE: tl.constexpr,
    STEPS: tl.constexpr,
):
    octet, row, inside, valid = _rows(B, octets, units, L, P, ROWS)
    lane = tl.arange(0, L)[None, :]
    unit = (row // P).to(tl.int32)
    channel = unit % C
    in_panel = (row * (64 // P))[:, None] + lane
    in_words = row * (64 // P // L)
    y = unit // C // W // POOL
    x = unit // C % W // POOL
    kept = inside & (y < pooled_height) & (x < pooled_width)
    pooled = ((y * pooled_width + x) * C + channel).to(tl.int64) * P + row % P
    in_grad = (pooled * (64 // P))[:, None] + lane
    scale_1, shift_1 = _vector(a, channel, inside, NORM), _vector(b, channel, inside, NORM)
    scale_2, shift_2 = _vector(a2, channel, inside, NORM2), _vector(b2, channel, inside, NORM2)
    mean_1 = _vector(mean, channel, inside, (SUMS & 2) | (BATCH & 1))
    mean_2 = _vector(mean2, channel, inside, (SUMS & 4) | (BATCH & 2))
    mean_g = _vector(of_mean, channel, inside, BATCH)
    slope_1 = _vector(slope, channel, inside, BATCH & 1)
    slope_2 = _vector(slope2, channel, inside, BATCH & 2)
    decay = tl.load(tau)
    chunks = tl.cdiv(T, STEPS)
    program = tl.program_id(0).to(tl.int64)
    in_starts = tl.arange(0, ROWS)[:, None] * L + lane
    v = tl.zeros((ROWS, L), tl.float32) + v_reset
    if CHUNKED:
        for early in range(0, (chunks - 1) * STEPS, STEPS):
            chunk = early // STEPS
            before = starts + (chunk.to(tl.int64) * tl.num_programs(0) + program) * (ROWS * L)
            tl.store(before + in_starts, v)
            fired = _words(words + in_words, inside, early, T, octet, octets, units, L, WHOLE, STEPS)
            xs = _panels(current + in_panel, inside, early, T, octet, octets, units, WHOLE, STEPS)
            if SECOND:
                xs2 = _panels(current2 + in_panel, inside, early, T, octet, octets, units, WHOLE, STEPS)
            if PLANES:
                levels = _levels(
                    residual + in_words,
                    inside,
                    early,
                    T,
                    octet,
                    octets,
                    units,
                    groups,
                    L,
                    PLANES,
                    WHOLE,
                    STEPS,
                )
            for j in tl.static_range(STEPS):
                integrated = _normalised(xs[j], scale_1, shift_1, NORM)
                if SECOND:
                    integrated += _normalised(xs2[j], scale_2, shift_2, NORM2)
                if PLANES:
                    integrated += scale * levels[j].to(tl.float32)
                u = decay * v + integrated
                v = after_reset(u, _bits(fired[j], L) != 0, v_threshold, v_reset, HARD)
        tl.debug_barrier()  # another thread may read what this one left
    carried = tl.zeros((ROWS, L), tl.float32)
    of_tau = tl.zeros((ROWS, L), tl.float32)
    sum_g = tl.zeros((ROWS, L), tl.float32)
    sum_1 = tl.zeros((ROWS, L), tl.float32)
    sum_2 = tl.zeros((ROWS, L), tl.float32)
    for i in range(0, chunks):
        chunk = chunks - 1 - i
        begin = chunk * STEPS
        if CHUNKED:
            before = starts + (chunk.to(tl.int64) * tl.num_programs(0) + program) * (ROWS * L)
            v = tl.load(before + in_starts, mask=where(i > 0, in_starts >= 0), other=v)
        start = v
        fired = _words(words + in_words, inside, begin, T, octet, octets, units, L, WHOLE, STEPS)
        xs = _panels(current + in_panel, inside, begin, T, octet, octets, units, WHOLE, STEPS)
        if SECOND:
            xs2 = _panels(current2 + in_panel, inside, begin, T, octet, octets, units, WHOLE, STEPS)
        if PLANES:
            levels = _levels(
                residual + in_words, inside, begin, T, octet, octets, units, groups, L, PLANES, WHOLE, STEPS
            )
        of_pooled = pooled_height * pooled_width * C
        grads = _panels(grad + in_grad, kept, begin, T, octet, octets, of_pooled, WHOLE, STEPS)
        us = ()
        for j in tl.static_range(STEPS):
            integrated = _normalised(xs[j], scale_1, shift_1, NORM)
            if SECOND:
                integrated += _normalised(xs2[j], scale_2, shift_2, NORM2)
            if PLANES:
                integrated += scale * levels[j].to(tl.float32)
            u = decay * v + integrated
            us += (u,)
            v = after_reset(u, _bits(fired[j], L) != 0, v_threshold, v_reset, HARD)
        for j in tl.static_range(STEPS - 1, -1, -1):
            t = begin + j
            live = at_step(t, T, valid, WHOLE)
            g = grad_of_input(
                grads[j].to(tl.float32) * (1.0 / (POOL * POOL)),
                carried,
                us[j],
                _bits(fired[j], L) != 0,
                v_threshold,
                v_reset,
                width,
                HARD,
                DETACH,
                SURROGATE,
            )
            g = tl.where(live, g, 0.0)  # padding lanes hold garbage
            carried = decay * g
            if SUMS & 1:
                sum_g += g
            if SUMS & 2:
                sum_1 += tl.where(live, g * (xs[j].to(tl.float32) - mean_1[:, None]), 0.0)
            if SUMS & 4:
                sum_2 += tl.where(live, g * (xs2[j].to(tl.float32) - mean_2[:, None]), 0.0)
            if TAU:
                if j == 0:
                    v_before = start
                else:
                    v_before = after_reset(us[j - 1], _bits(fired[j - 1], L) != 0, v_threshold, v_reset, HARD)
                of_tau += tl.where(live, g * v_before, 0.0)
            word, bit = _place(t * octets + octet, units)
            at = word * 64 + bit
            mask = at_step(t, T, inside[:, None], WHOLE)
            if PUT & 1:
                target = current + at + in_panel
                _put(target, mask, live, g, xs[j], scale_1, mean_1, mean_g, slope_1, NORM, BATCH & 1)
            if PUT & 2:
                target = current2 + at + in_panel
                _put(target, mask, live, g, xs2[j], scale_2, mean_2, mean_g, slope_2, NORM2, BATCH & 2)
            if PUT & 4:
                tl.store(grad_residual + at + in_panel, g, mask=mask)
    if PUT:
        for rest in range(T * octets, groups * 8, L // 8):
            eighth = rest + octet
            word, bit = _place(eighth, units)
            at = word * 64 + bit
            none = tl.zeros((ROWS, L), tl.float32)
            mask = where(octet == 0, inside[:, None])
            if PUT & 1:
                tl.store(current + at + in_panel, none, mask=mask)
            if PUT & 2:
                tl.store(current2 + at + in_panel, none, mask=mask)
            if PUT & 4:
                tl.store(grad_residual + at + in_panel, none, mask=mask)
    blocks = octets // (L * P // 8)
    rows = units.to(tl.int64) * P
    part = octet // (L * P // 8) * rows + row
    if SUMS & 1:
        tl.store(sums + part, tl.sum(sum_g, axis=1), mask=inside)
    if SUMS & 2:
        tl.store(sums + blocks * rows + part, tl.sum(sum_1, axis=1), mask=inside)
    if SUMS & 4:
        tl.store(sums + 2 * blocks * rows + part, tl.sum(sum_2, axis=1), mask=inside)
    if TAU:
        tl.store(grad_tau + program, tl.sum(tl.sum(of_tau, axis=1), axis=0))


@triton.jit
def _samples(group, T, B, octets):
    """Which lanes [1, 64] of a group are samples."""
    lane = group * 64 + tl.arange(0, 64)[None, :]
    return (lane % (octets * 8) < B) & (lane < T * octets * 8)


@_jit
def panel_stats(
    current,  # [groups, units, 64]
    parts,  # float64 [2, units]: mean, sum of squared distances from it
    T,
    B,
    octets,
    groups,
    units,
    ROWS: tl.constexpr,
):
    """Units about the mean of their own first group: nothing cancels, however large the mean."""
    unit = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    inside = unit < units
    pointer = current + unit[:, None] * 64 + tl.arange(0, 64)[None, :]
    valid = _samples(0, T, B, octets)
    x = tl.load(pointer, mask=inside[:, None], other=0.0).to(tl.float32)
    centre = tl.sum(tl.where(valid, x, 0.0), axis=1) / tl.sum(valid.to(tl.float32), axis=1)
    first = tl.zeros((ROWS, 64), tl.float32)
    second = tl.zeros((ROWS, 64), tl.float32)
    for group in range(0, groups):
        x = tl.load(pointer, mask=inside[:, None], other=0.0).to(tl.float32)
        d = tl.where(_samples(group, T, B, octets), x - centre[:, None], 0.0)
        first += d
        second += d * d
        pointer += units.to(tl.int64) * 64
    n = (T * B).to(tl.float64)
    off = tl.sum(first, axis=1).to(tl.float64) / n
    tl.store(parts + unit, centre.to(tl.float64) + off, mask=inside)
    tl.store(parts + units + unit, tl.sum(second, axis=1).to(tl.float64) - off * off * n, mask=inside)
