from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..topology import random_absent_ids
from .host import taken
from .sorted_ids import contains_sorted, merge_sorted

_CHUNK = 1 << 17  # bytes of the bitmap looked at together
_IDS = 1 << 20  # ids set together


@dataclass(frozen=True)
class EverActive:
    """Which of a layer's ``total`` blocks have ever been active: a value that never changes.

    ``data`` is whatever is smaller: a bitmap (uint8 ``[ceil(total / 8)]``, bits past the end set) or the
    sorted ids (int32 or int64 ``[size]``). So the record costs O(size) and never more than one bit a place.
    """

    total: int
    size: int
    data: Tensor

    @classmethod
    def of(cls, ids: Tensor, total: int) -> EverActive:
        """The record of sorted, unique int64 ids."""
        dtype = torch.int32 if total <= torch.iinfo(torch.int32).max else torch.int64
        return cls(total, 0, torch.empty(0, dtype=dtype, device=ids.device)).including(ids)

    @property
    def share(self) -> float:
        """R_s: the share of all places explored so far (Liu et al. 2021)."""
        return self.size / self.total if self.total else 0.0

    @property
    def nbytes(self) -> int:
        return self.data.nbytes

    @property
    def is_bitmap(self) -> bool:
        return self.data.dtype == torch.uint8

    def to(self, device: torch.device) -> EverActive:
        return EverActive(self.total, self.size, self.data.to(device))

    def contains(self, ids: Tensor) -> Tensor:
        """Which of the ids have been active, bool."""
        if not self.is_bitmap:
            return contains_sorted(self.data, ids)
        return (self.data[ids >> 3] >> (ids & 7).to(torch.uint8)) & 1 == 1

    def including(self, ids: Tensor, fresh: int | None = None) -> EverActive:
        """A record with these sorted, unique ids added; this one stays as it is.

        ``fresh`` says how many of them are not in it yet; unless it is given, the host waits for a GPU to learn it.
        """
        is_fresh = ~self.contains(ids)
        number = int(is_fresh.sum()) if fresh is None else fresh
        if number == 0:
            return self
        size = self.size + number
        new = taken(ids, is_fresh, number)
        if self.is_bitmap:
            return EverActive(self.total, size, _set_bits(self.data.clone(), new))
        if size * self.data.element_size() <= -(-self.total // 8):
            merged, _ = merge_sorted(self.data, new.to(self.data.dtype))
            return EverActive(self.total, size, merged)
        bitmap = torch.zeros(-(-self.total // 8), dtype=torch.uint8, device=self.data.device)
        if spare := -self.total % 8:
            bitmap[-1] = 256 - (1 << (8 - spare))
        return EverActive(self.total, size, _set_bits(_set_bits(bitmap, self.data), new))

    def random_never_active(self, count: int, generator: torch.Generator | None = None) -> Tensor:
        """``count`` ids drawn uniformly without replacement among those never active; sorted int64."""
        if not self.is_bitmap:
            return random_absent_ids(self.data, self.total, count, generator)
        ranks = random_absent_ids(
            torch.empty(0, dtype=torch.int64, device=self.data.device),
            self.total - self.size,
            count,
            generator,
        )
        count_clear, position_of_clear = (table.to(ranks.device) for table in _clear_bits())
        found = []
        end = 0  # never-active places up to this chunk's end
        for i, chunk in enumerate(self.data.split(_CHUNK)):
            chunk = chunk.int()
            up_to = count_clear[chunk].cumsum(0) + end  # likewise up to each byte's end
            start, end = end, int(up_to[-1])
            low, high = torch.searchsorted(ranks, ranks.new_tensor([start, end])).tolist()
            byte = torch.searchsorted(up_to, ranks[low:high], right=True)
            rank = ranks[low:high] - up_to[byte] + count_clear[chunk[byte]]
            found.append((i * _CHUNK + byte) * 8 + position_of_clear[chunk[byte], rank])
        return torch.cat(found)

    def state_dict(self) -> dict[str, Any]:
        return {"total": self.total, "size": self.size, "data": self.data}

    @classmethod
    def from_state_dict(cls, state: dict[str, Any], total: int) -> EverActive:
        """Undo ``state_dict`` after checking all of it against ``total``; raises ``ValueError``."""
        found, size, data = state["total"], state["size"], state["data"]
        if not isinstance(found, int) or not isinstance(size, int):
            raise ValueError(f"ever-active record: expected two counts, got {found!r} and {size!r}")
        if found != total:
            raise ValueError(f"ever-active record: expected {total} places, got {found}")
        if not isinstance(data, Tensor) or data.dim() != 1:
            raise ValueError("ever-active record: expected a tensor of one dimension")
        record = cls(total, size, data)
        if record.is_bitmap:
            if data.numel() != -(-total // 8):
                raise ValueError(f"ever-active record: expected {-(-total // 8)} bytes, got {data.numel()}")
            count_clear, _ = _clear_bits()
            clear = sum(int(count_clear[chunk.long().cpu()].sum()) for chunk in data.split(_CHUNK))
            spare = -total % 8  # set bits past the end
            if total - clear != size or int(data[-1]) >> (8 - spare) != (1 << spare) - 1:
                raise ValueError(f"ever-active record: its bits do not add up to {size}")
        elif data.dtype not in (torch.int32, torch.int64) or data.numel() != size:
            raise ValueError(f"ever-active record: expected {size} ids, got {data.numel()} of {data.dtype}")
        elif size and (data[0] < 0 or data[-1] >= total or bool((data[1:] <= data[:-1]).any())):
            raise ValueError(f"ever-active record: ids are not sorted, unique and in [0, {total})")
        return record


def _set_bits(bitmap: Tensor, ids: Tensor) -> Tensor:
    """Set bits that are clear, in place: adding is the same as or-ing, and adds up within a byte."""
    for some in ids.split(_IDS):
        some = some.long()
        bits = torch.ones_like(some, dtype=torch.uint8) << (some & 7).to(torch.uint8)
        bitmap.index_put_((some >> 3,), bits, accumulate=True)
    return bitmap


@functools.cache
def _clear_bits() -> tuple[Tensor, Tensor]:
    """Of each byte: the number of clear bits ``[256]``, and the position of the r-th of them ``[256, 8]``."""
    bits = torch.arange(8, device="cpu")
    is_clear = (torch.arange(256, device="cpu")[:, None] >> bits) & 1 == 0
    return is_clear.sum(1), (~is_clear).sort(dim=1, stable=True).indices
