"""Reused scratch memory.

A fresh large tensor costs more in page faults than the kernel that fills it (a 151 MB panel: 40 ms against 5), so
kernels borrow scratch here instead. Buffers are kept by power-of-two size and handed out again; what is borrowed is
uninitialised. CPU only: GPUs have torch's caching allocator.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from math import prod

import torch
from torch import Tensor

_SMALLEST = 1 << 12


class Arena:
    """A free list of byte buffers by power-of-two size. Thread-safe: autograd runs backward in its own threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._free: dict[int, list[Tensor]] = {}
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

    @contextmanager
    def borrow(self, shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Iterator[Tensor]:
        """Lend an uninitialised contiguous CPU tensor for the ``with`` block; 64-byte aligned."""
        nbytes = prod(shape) * dtype.itemsize
        size = max(_SMALLEST, 1 << max(nbytes - 1, 0).bit_length())
        with self._lock:
            free = self._free.setdefault(size, [])
            buffer = free.pop() if free else None
            if buffer is None:
                buffer = torch.empty(size, dtype=torch.uint8)
                self._bytes += size
            self._lent += 1
        if self.poison:
            buffer.fill_(0xFF)  # all ones is NaN in every float type
        try:
            yield buffer[:nbytes].view(dtype).view(shape)
        finally:
            with self._lock:
                self._lent -= 1
                free.append(buffer)

    def release(self) -> int:
        """Give free buffers back to the system; returns their bytes."""
        with self._lock:
            freed = sum(size * len(buffers) for size, buffers in self._free.items())
            for buffers in self._free.values():
                buffers.clear()
            self._bytes -= freed
        return freed


arena = Arena()
