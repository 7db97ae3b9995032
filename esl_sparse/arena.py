"""Reused scratch memory.

A fresh large tensor costs more in page faults than the kernel that fills it (a 151 MB panel: 40 ms against 5), so
kernels borrow scratch here instead. Buffers are kept by size class (at most an eighth larger than asked for) and handed
out again; what is borrowed is uninitialised. CPU only: GPUs have torch's caching allocator.
"""

from __future__ import annotations

import threading
from collections import defaultdict
from math import prod

import torch
from torch import Tensor

_SMALLEST = 1 << 12


def _size_class(nbytes: int) -> int:
    """Eight classes for each power of two."""
    step = max(_SMALLEST, 1 << max(nbytes.bit_length() - 4, 0))
    return max(-(-nbytes // step), 1) * step


class Arena:
    """A free list of byte buffers by size class. Thread-safe: autograd runs backward in its own threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._free: dict[int, list[Tensor]] = defaultdict(list)
        self._bytes = 0
        self._lent = 0
        self.poison = False
        """Fill what is lent with NaN patterns (tests)."""

    @property
    def bytes(self) -> int:
        """Bytes held, lent or free."""
        return self._bytes

    @property
    def lent(self) -> int:
        """Buffers lent now."""
        return self._lent

    def borrow(self, shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Lease:
        """Lend an uninitialised contiguous CPU tensor for a ``with`` block; 64-byte aligned."""
        return Lease(self, shape, dtype)

    def tensor(self, shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.empty(shape, dtype=dtype)

    def release(self) -> int:
        """Give free buffers back to the system; returns their bytes."""
        with self._lock:
            freed = sum(size * len(buffers) for size, buffers in self._free.items())
            self._free.clear()
            self._bytes -= freed
        return freed

    def _take(self, nbytes: int) -> Tensor:
        size = _size_class(nbytes)
        with self._lock:
            free = self._free[size]
            if free:
                buffer = free.pop()
            else:
                buffer = torch.empty(size, dtype=torch.uint8)
                self._bytes += size
            self._lent += 1
        if self.poison:
            buffer.fill_(0xFF)  # all ones is NaN in every float type
        return buffer

    def _give(self, buffer: Tensor) -> None:
        with self._lock:
            self._lent -= 1
            self._free[buffer.numel()].append(buffer)


class Lease:
    """What :meth:`Arena.borrow` returns; a class because kernels of microseconds borrow too."""

    __slots__ = ("_arena", "_buffer", "_dtype", "_shape")

    def __init__(self, arena: Arena, shape: tuple[int, ...], dtype: torch.dtype) -> None:
        self._arena = arena
        self._shape = shape
        self._dtype = dtype

    def __enter__(self) -> Tensor:
        nbytes = prod(self._shape) * self._dtype.itemsize
        self._buffer = self._arena._take(nbytes)
        return self._buffer[:nbytes].view(self._dtype).view(self._shape)

    def __exit__(self, *exception) -> None:
        self._arena._give(self._buffer)


arena = Arena()
