"""Reused memory: scratch of kernels, and their large results.

A fresh large tensor costs more in page faults than the kernel that fills it (a 151 MB panel: 40 ms against 5), so
kernels borrow scratch here, and large results are made of the same buffers. A request takes the smallest free buffer
that holds it, unless that is more than four times as large; what is handed out is uninitialised. CPU only: GPUs have
torch's caching allocator.
"""

from __future__ import annotations

import bisect
import threading
import weakref
from collections import deque
from math import prod

import torch
from torch import Tensor

_SMALLEST = 1 << 12
_WASTE = 4  # times the size; docs/decisions.md
_LARGE = 1 << 20  # bytes of a tensor whose page faults cost more than the bookkeeping


def _size_class(nbytes: int) -> int:
    """Eight classes for each power of two."""
    step = max(_SMALLEST, 1 << max(nbytes.bit_length() - 4, 0))
    return max(-(-nbytes // step), 1) * step


class Arena:
    """A free list of byte buffers. Thread-safe: autograd runs backward in its own threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._free: list[Tensor] = []  # by size
        # What came back and is not sorted in yet. A tensor may be freed anywhere, by the garbage collector even while
        # this thread holds the lock, so giving back takes no lock.
        self._returned: deque[Tensor] = deque()
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
        with self._lock:
            self._collect()
            return self._lent

    def borrow(self, shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Lease:
        """Lend an uninitialised contiguous CPU tensor for a ``with`` block; 64-byte aligned."""
        return Lease(self, shape, dtype)

    def tensor(self, shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Tensor:
        """An uninitialised contiguous CPU tensor whose memory comes back when its storage is freed.

        The storage is freed with the last tensor that shares it, also inside autograd. It cannot be resized. Below
        1 MB this is ``torch.empty``.
        """
        nbytes = prod(shape) * dtype.itemsize
        if nbytes < _LARGE:
            tensor = torch.empty(shape, dtype=dtype, device="cpu")
            if self.poison:
                tensor.reshape(-1).view(torch.uint8).fill_(0xFF)
            return tensor
        buffer = self._take(nbytes)
        # The new storage owns this array and nothing else does: when it dies, so has the last tensor.
        array = buffer.numpy()[:nbytes]
        weakref.finalize(array, self._returned.append, buffer).atexit = False
        storage = torch.from_numpy(array).untyped_storage()
        return torch.empty(0, dtype=dtype, device="cpu").set_(storage, 0, shape)  # type: ignore[call-overload]

    def release(self) -> int:
        """Give free buffers back to the system; returns their bytes."""
        with self._lock:
            self._collect()
            freed = sum(buffer.numel() for buffer in self._free)
            self._free.clear()
            self._bytes -= freed
        return freed

    def _take(self, nbytes: int) -> Tensor:
        size = _size_class(nbytes)
        with self._lock:
            self._collect()
            at = bisect.bisect_left(self._free, nbytes, key=torch.Tensor.numel)
            if at < len(self._free) and self._free[at].numel() <= _WASTE * size:
                buffer = self._free.pop(at)
            else:
                buffer = torch.empty(size, dtype=torch.uint8, device="cpu")
                self._bytes += size
            self._lent += 1
        if self.poison:
            buffer.fill_(0xFF)  # all ones is NaN in every float type
        return buffer

    def _collect(self) -> None:
        """Sort in what came back; the caller holds the lock."""
        while self._returned:
            buffer = self._returned.popleft()
            self._lent -= 1
            bisect.insort(self._free, buffer, key=torch.Tensor.numel)


class Lease:
    """What ``Arena.borrow`` returns; a class because kernels of microseconds borrow too."""

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
        self._arena._returned.append(self._buffer)


arena = Arena()
"""The one that all layers use."""
