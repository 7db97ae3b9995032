"""Recordings of event cameras: files to events, events to binary frames, frames to bits and back."""

from __future__ import annotations

import math
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from .errors import DataError

SENSOR = 128  # pixels on each side of a DVS128
_DAMAGED = (zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError)  # ..., a password
_LARGEST = 1 << 30  # bytes of an unpacked recording; those of CIFAR10-DVS have tens of MB


class Events(NamedTuple):
    """One entry for each event: time in microseconds, column, row, polarity (0: darker, 1: brighter)."""

    t: np.ndarray
    x: np.ndarray
    y: np.ndarray
    p: np.ndarray


def read_aedat(path: Path) -> Events:
    """Read an AEDAT 2.0 recording of a DVS128 (jAER): text lines with `#`, then pairs of big-endian words.

    A pair is the address and the time in microseconds; of the address, bit 0 is set where it became darker, bits
    1 to 7 count rows and bits 8 to 14 columns, both from the far end. This turns the images of CIFAR10-DVS as
    SpikingJelly does; TET, by the data set's own Matlab script, mirrors them.
    """
    raw = path.read_bytes()
    start, version = 0, b""
    while raw.startswith(b"#", start):
        end = raw.find(b"\n", start) + 1 or len(raw)
        if raw.startswith(b"#!AER-DAT", start):
            version = raw[start + len(b"#!AER-DAT") : end].strip()
        start = end
    if version != b"2.0":
        found = f"version {version.decode(errors='replace')}" if version else "no version"
        raise DataError(f"{path} is not an AEDAT 2.0 file: expected a line #!AER-DAT2.0, found {found}.")
    if (len(raw) - start) % 8:
        raise DataError(f"{path} is truncated: its {len(raw) - start:,} bytes are no whole number of events.")
    address, stamp = np.frombuffer(raw, ">u4", offset=start).astype(np.uint32).reshape(-1, 2).T
    # steps as signed numbers: the 32-bit clock may pass its end within a recording
    elapsed = np.cumsum(np.diff(stamp, prepend=stamp[:1]).view(np.int32), dtype=np.int64)
    x, y = SENSOR - 1 - (address >> 8 & 127), SENSOR - 1 - (address >> 1 & 127)
    return Events(elapsed, x, y, 1 - (address & 1))


def read_npz(path: Path) -> Events:
    """Read a recording stored as arrays `t`, `x`, `y`, `p`, as SpikingJelly keeps them."""
    try:
        with zipfile.ZipFile(path) as archive:
            unpacked = sum(member.file_size for member in archive.infolist())
        if unpacked > _LARGEST:
            raise ValueError(f"it unpacks to {unpacked:,} bytes, at most {_LARGEST:,} are read")
        with np.load(path, allow_pickle=False) as file:
            return Events(*(file[name] for name in Events._fields))
    except (
        OSError,
        EOFError,
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
        MemoryError,
        *_DAMAGED,
    ) as error:
        raise DataError(f"{path} is not an npz file of arrays t, x, y, p: {error}.") from None


def events_to_frames(
    t: np.ndarray, x: np.ndarray, y: np.ndarray, p: np.ndarray, T: int, size: int, sensor: int = SENSOR
) -> np.ndarray:
    """T frames of equally many successive events: where was there any, by polarity?

    As TET's authors do, frames are made at the sensor's resolution from N // T events each (the last N % T are left
    out), marked where there was an event however many there were, and then resized by `resized`.

    Args:
        t, x, y, p: `[N]` integers: time, column, row, polarity (0 or 1). Sorted by `t` if they are not.
        T: frames. size: their width and height. sensor: the sensor's width and height.

    Returns:
        bool `[T, 2, size, size]`

    Raises:
        ValueError: T or size is not positive, the arrays differ in length, or a coordinate lies outside the sensor.
        TypeError: an array does not hold integers.
    """
    for name, number in (("T", T), ("size", size)):
        if number < 1:
            raise ValueError(f"{name}: expected at least 1, got {number}")
    for name, values, end in (("t", t, None), ("x", x, sensor), ("y", y, sensor), ("p", p, 2)):
        if values.shape != (len(t),):
            raise ValueError(f"{name}: expected an array of {len(t):,} numbers, got shape {values.shape}")
        if not np.issubdtype(values.dtype, np.integer) and values.dtype != np.bool_:
            raise TypeError(f"{name}: expected integers, got {values.dtype}")
        if end is not None and len(t) and not (values.min() >= 0 and values.max() < end):
            raise ValueError(f"{name}: expected 0 to {end - 1}, got {values.min()} to {values.max()}")
    each = len(t) // T
    frame = np.repeat(np.arange(T), each)
    order = slice(T * each) if np.all(t[:-1] <= t[1:]) else np.argsort(t, kind="stable")[: T * each]
    frames = np.zeros((T, 2, sensor, sensor), np.bool_)
    frames[frame, p[order].astype(np.intp), y[order], x[order]] = True
    return resized(frames, size)


def resized(frames: np.ndarray, size: int) -> np.ndarray:
    """Bool frames `[..., n, n]` as bool frames `[..., size, size]` that are about as full.

    TET's authors resize by interpolation, to grey values; here frames stay one bit. Set are the pixels with the
    largest share of their area set, as many as the frame's density asks for, and those with the same share as the
    last of them. From 128 to 48 pixels 7 places become one: all pixels with any share would be nearly all, and the
    value at each pixel's centre would be one noisy place of the 7.
    """
    n = frames.shape[-1]
    edge, place = np.arange(size)[:, None] * n, np.arange(n) * size  # on a grid that both resolutions divide
    overlap = np.minimum(edge + n, place + size) - np.maximum(edge, place)
    overlap = overlap.clip(min=0).astype(np.float32)
    share = overlap @ frames.astype(np.float32) @ overlap.T  # whole numbers up to n * n: exact
    wanted = -(-frames.sum((-2, -1)) * size * size // (n * n))
    ranked = np.sort(share.reshape(*wanted.shape, -1), axis=-1)
    last = np.take_along_axis(ranked, size * size - np.maximum(wanted, 1)[..., None], axis=-1)[..., None]
    return share >= np.maximum(last, 1)


def pack_frames(frames: np.ndarray) -> np.ndarray:
    """Bool frames to bytes, 8 pixels in each: `[ceil(frames.size / 8)]`."""
    return np.packbits(frames.reshape(-1))


@dataclass(frozen=True)
class PackedFrames:
    """Undoes `pack_frames` for a batch: uint8 `[B, bytes]` to float zeros and ones `[B, T, 2, H, W]`."""

    shape: tuple[int, int, int, int]  # of one sample

    def __call__(self, packed: Tensor) -> Tensor:
        bits = np.unpackbits(packed.numpy(), axis=1, count=math.prod(self.shape))
        return torch.from_numpy(bits).view(len(packed), *self.shape).float()


def check_frame_options(T: int, size: int) -> None:
    for name, value in (("T", T), ("size", size)):
        if not isinstance(value, int) or value < 1:
            raise DataError(f"{name}: expected a positive integer, got {value!r}.")
