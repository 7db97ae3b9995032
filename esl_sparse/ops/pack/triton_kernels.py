"""Triton kernels of pack. Imported at the first launch: Triton is optional.

Memory-bound, one pass over rows [T * B, units] and over words or panels. Both are transpositions: neighbours are units
in a row and lanes in a panel. A program turns a tile of 64 lanes and UNITS units, which it reads along the one and
writes along the other. The units of a row are (channel, pixel), those of words and panels (pixel, channel).
"""

from __future__ import annotations

import triton
import triton.language as tl

_jit = triton.jit(do_not_specialize=["T", "B", "padded", "groups"])


@triton.jit
def _tile(T, B, padded, units, pixels, channels, UNITS: tl.constexpr):
    """Group; unit and its place in a panel int64 [1, UNITS]; lane, its row int64, whether it has one [64, 1]."""
    tiles = tl.cdiv(units, UNITS)
    group = tl.program_id(0) // tiles
    unit = tl.program_id(0) % tiles * UNITS + tl.arange(0, UNITS)[None, :]
    lane = tl.arange(0, 64)[:, None]
    number = group * 64 + lane  # divided in 32 bits: 64 take many times as long
    sample = number % padded
    row = (number // padded * B + sample).to(tl.int64)
    place = unit % pixels * channels + unit // pixels
    return group.to(tl.int64), unit, place, lane, row, (sample < B) & (number < T * padded)


@_jit
def pack(
    x,  # rows [T * B, units]
    words,  # [PLANES, groups, units, 2], halves of 32 lanes
    broken,  # int32, one: set if x holds anything but levels
    T,
    B,
    padded,
    groups,
    units,
    pixels,
    channels,
    scale,
    PLANES: tl.constexpr,
    UNITS: tl.constexpr,
):
    """Takes the highest plane away, then the next: each subtraction is exact, and of anything but a level it leaves
    something, of NaN and infinities too."""
    group, unit, place, lane, row, present = _tile(T, B, padded, units, pixels, channels, UNITS)
    mask = present & (unit < units)
    rest = tl.load(x + row * units + unit, mask=mask, other=0.0).to(tl.float32)
    for i in tl.static_range(PLANES):
        weight = scale * (1 << (PLANES - 1 - i))
        bit = rest >= weight
        rest -= tl.where(bit, weight, 0.0)
        bits = tl.reshape(bit.to(tl.int32) << (lane & 31), (2, 32, UNITS))
        at = (((PLANES - 1 - i) * groups.to(tl.int64) + group) * units + place) * 2
        half = tl.arange(0, 2)[:, None]
        tl.store(words + at + half, tl.sum(bits, axis=1), mask=(unit < units) & (half >= 0))
    bad = tl.max(tl.max((rest != 0.0).to(tl.int32), axis=1), axis=0)
    tl.store(broken, bad, mask=bad != 0)


@_jit
def unpack(
    words,  # int64 [PLANES, groups, units]
    x,  # rows [T * B, units]
    T,
    B,
    padded,
    groups,
    units,
    pixels,
    channels,
    scale,
    PLANES: tl.constexpr,
    UNITS: tl.constexpr,
):
    group, unit, place, lane, row, present = _tile(T, B, padded, units, pixels, channels, UNITS)
    levels = tl.zeros((64, UNITS), tl.int32)
    for plane in tl.static_range(PLANES):
        source = words + (plane * groups.to(tl.int64) + group) * units + place
        bits = tl.load(source, mask=unit < units, other=0) >> lane
        levels |= (bits.to(tl.int32) & 1) << plane
    tl.store(x + row * units + unit, levels.to(tl.float32) * scale, mask=present & (unit < units))


@_jit
def to_panels(x, panels, T, B, padded, units, pixels, channels, UNITS: tl.constexpr):
    """Rows [T * B, units] -> panels [groups, units, 64], zeros in padding lanes."""
    group, unit, place, lane, row, present = _tile(T, B, padded, units, pixels, channels, UNITS)
    values = tl.load(x + row * units + unit, mask=present & (unit < units), other=0.0)
    tl.store(panels + (group * units + place) * 64 + lane, values, mask=(unit < units) & (lane >= 0))


@_jit
def from_panels(panels, x, T, B, padded, units, pixels, channels, UNITS: tl.constexpr):
    """The inverse, without the padding lanes."""
    group, unit, place, lane, row, present = _tile(T, B, padded, units, pixels, channels, UNITS)
    source = panels + (group * units + place) * 64 + lane
    values = tl.load(source, mask=(unit < units) & (lane >= 0), other=0.0)
    tl.store(x + row * units + unit, values, mask=present & (unit < units))
