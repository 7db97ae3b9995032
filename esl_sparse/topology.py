"""Block-sparse topology: which blocks of a weight exist, and the index that finds them.

A logical weight ``[rows, cols]`` is cut into blocks of ``(bm, bn)``; only active blocks are stored, as
``values [nnzb, bm, bn]``. Names follow torch's BSR layout. Any shape works with any block: the last block of a
row or column may *overhang* the weight, and what it holds there counts nowhere.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from . import _native
from ._backends import choose
from ._cuda import launch
from .sampling import distinct

MAX_BLOCK = 128
_INT32_MAX = 2**31 - 1


def next_power_of_two(n: int) -> int:
    return 1 << max(n - 1, 0).bit_length()


def resolve_block_size(
    block_size: str | int | tuple[int, int], rows: int, cols: int, device_type: str
) -> tuple[int, int]:
    """The block actually used: ``"auto"`` by device, then each side clamped to the weight's own size."""
    if block_size == "auto":
        block = (16, 16) if device_type == "cuda" else (4, 4)
    elif isinstance(block_size, int) and not isinstance(block_size, bool):
        block = (block_size, block_size)
    elif isinstance(block_size, (tuple, list)) and len(block_size) == 2:
        block = (block_size[0], block_size[1])
    else:
        raise TypeError(f"block_size: expected 'auto', an int or a pair of ints, got {block_size!r}")
    for side in block:
        if not isinstance(side, int) or isinstance(side, bool):
            raise TypeError(f"block_size: expected ints, got {block_size!r}")
        if not 1 <= side <= MAX_BLOCK or side & (side - 1):
            raise ValueError(f"block_size: expected powers of two from 1 to {MAX_BLOCK}, got {block_size!r}")
    return min(block[0], next_power_of_two(rows)), min(block[1], next_power_of_two(cols))


class BlockLayout(NamedTuple):
    """How a logical weight ``[rows, cols]`` is cut into blocks.

    ``rows`` splits into ``groups`` equal parts and ``cols`` into ``taps`` equal parts; no block straddles a part.
    A linear layer has one of each; a convolution has one tap per kernel position, and ``cols / taps`` input channels
    of the row's own group.
    """

    rows: int
    cols: int
    bm: int
    bn: int
    groups: int = 1
    taps: int = 1

    @property
    def row_blocks(self) -> int:
        return self.groups * -(-(self.rows // self.groups) // self.bm)

    @property
    def col_blocks(self) -> int:
        return self.taps * -(-(self.cols // self.taps) // self.bn)

    @property
    def blocks(self) -> int:
        """Potential blocks, ``row_blocks * col_blocks`` (may exceed int32)."""
        return self.row_blocks * self.col_blocks

    @property
    def overhangs(self) -> bool:
        return bool((self.rows // self.groups) % self.bm or (self.cols // self.taps) % self.bn)

    def row_extent(self, row_block: Tensor) -> Tensor:
        """Valid rows of each given row block, 1..bm."""
        per_group = self.rows // self.groups
        return (per_group - (row_block % -(-per_group // self.bm)) * self.bm).clamp(max=self.bm)

    def col_extent(self, col_block: Tensor) -> Tensor:
        """Valid columns of each given column block, 1..bn."""
        per_tap = self.cols // self.taps
        return (per_tap - (col_block % -(-per_tap // self.bn)) * self.bn).clamp(max=self.bn)

    def block_extent(self, block_ids: Tensor) -> Tensor | int:
        """Entries inside the weight of each given block; a number where it is the same for all."""
        if not self.overhangs:
            return self.bm * self.bn
        row_block = block_ids // self.col_blocks
        return self.row_extent(row_block) * self.col_extent(block_ids - row_block * self.col_blocks)


class TransposedIndex(NamedTuple):
    """The same blocks in column order; ``block_offsets_t[p]`` says where block ``p`` stands in ``values``."""

    ccol_indices: Tensor
    row_indices_t: Tensor
    block_offsets_t: Tensor


def row_indices(crow_indices: Tensor, nnzb: int) -> Tensor:
    """Row block of each stored block, int64 ``[nnzb]``."""
    counts = crow_indices.diff()
    rows = torch.arange(counts.numel(), device=counts.device)
    return torch.repeat_interleave(rows, counts, output_size=nnzb)


def transpose_index(crow_indices: Tensor, col_indices: Tensor, col_blocks: int) -> TransposedIndex:
    """Derive the column-order index. Natively O(nnzb + col_blocks) time, and no memory beyond the result."""
    backend = choose("transpose_index", col_indices.device.type, torch.float32)
    if backend == "native":
        return _transpose_index_native(crow_indices.int(), col_indices.int(), col_blocks)
    if backend == "cuda":
        return _transpose_index_cuda(crow_indices.int(), col_indices.int(), col_blocks)
    nnzb = col_indices.numel()
    order = torch.sort(col_indices, stable=True).indices
    ccol = torch.zeros(col_blocks + 1, dtype=torch.int64, device=col_indices.device)
    ccol[1:] = torch.bincount(col_indices, minlength=col_blocks).cumsum(0)
    rows_t = row_indices(crow_indices, nnzb).int()[order]
    return TransposedIndex(ccol.int(), rows_t, order.int())


def _transpose_index_native(crow: Tensor, col: Tensor, col_blocks: int) -> TransposedIndex:
    crow, col = crow.contiguous(), col.contiguous()
    ccol = torch.empty(col_blocks + 1, dtype=torch.int32)
    row_t, offset_t = torch.empty_like(col), torch.empty_like(col)
    tensors = (crow, col, ccol, row_t, offset_t)
    args = (crow.numel() - 1, col_blocks, *(t.data_ptr() for t in tensors), torch.get_num_threads())
    run = _native.lib().transpose_index
    scratch = torch.empty(run(*args, 0), dtype=torch.uint8)
    run(*args, scratch.data_ptr())
    return TransposedIndex(ccol, row_t, offset_t)


def _transpose_index_cuda(crow: Tensor, col: Tensor, col_blocks: int) -> TransposedIndex:
    crow, col, device = crow.contiguous(), col.contiguous(), col.device
    ccol = torch.empty(col_blocks + 1, dtype=torch.int32, device=device)
    row_t, offset_t = torch.empty_like(col), torch.empty_like(col)
    tensors = (crow, col, ccol, row_t, offset_t)
    args = (crow.numel() - 1, col_blocks, col.numel(), *(t.data_ptr() for t in tensors))
    # The address 0 asks how much scratch there must be, so there is always some.
    needed = launch("transpose_index", device, *args, 0)
    scratch = torch.empty(max(needed or 0, 1), dtype=torch.uint8, device=device)
    launch("transpose_index", device, *args, scratch.data_ptr())
    return TransposedIndex(ccol, row_t, offset_t)


def index_from_block_ids(block_ids: Tensor, layout: BlockLayout) -> tuple[Tensor, Tensor]:
    """``(crow_indices, col_indices)`` int32 of sorted, unique linear block ids ``row * col_blocks + col``."""
    bounds = torch.arange(layout.row_blocks + 1, device=block_ids.device) * layout.col_blocks
    crow = torch.searchsorted(block_ids, bounds, out_int32=True)
    return crow, (block_ids % layout.col_blocks).int()


def _first(bad: Tensor) -> int:
    return int(bad.nonzero()[0])


def check_layout(layout: BlockLayout) -> None:
    """Raise unless a weight can be cut so: whole parts, blocks of powers of two, ids of 63 bits."""
    for name, size in zip(layout._fields, layout, strict=True):
        if not isinstance(size, int) or isinstance(size, bool) or size < 1:
            raise ValueError(f"layout: expected {name} to be an int of 1 at least, got {size!r}")
    if max(layout.bm, layout.bn) > MAX_BLOCK or layout.bm & (layout.bm - 1) or layout.bn & (layout.bn - 1):
        raise ValueError(f"layout: expected powers of two up to {MAX_BLOCK} as bm and bn, got {layout}")
    if layout.rows % layout.groups or layout.cols % layout.taps:
        raise ValueError(f"layout: expected rows in whole groups and columns in whole taps, got {layout}")
    if max(layout.row_blocks, layout.col_blocks) >= _INT32_MAX:
        raise ValueError(f"layout: expected fewer than {_INT32_MAX} rows and columns of blocks, got {layout}")


def check_count(nnzb: int) -> None:
    """Raise unless int32 can number so many blocks."""
    if nnzb > _INT32_MAX:
        raise ValueError(
            f"block_ids: expected at most {_INT32_MAX} active blocks, got {nnzb}; use larger blocks or a lower density"
        )


def check_block_ids(block_ids: Tensor, layout: BlockLayout) -> None:
    """Raise unless the ids are int64 ``[nnzb]``, in range, sorted and unique; names the first bad entry."""
    check_layout(layout)
    if not isinstance(block_ids, Tensor):
        raise TypeError(f"block_ids: expected a tensor, got {type(block_ids).__name__}")
    if block_ids.dtype != torch.int64 or block_ids.dim() != 1:
        raise TypeError(
            f"block_ids: expected int64 of one dimension, got {block_ids.dtype} {tuple(block_ids.shape)}"
        )
    check_count(block_ids.numel())
    outside = (block_ids < 0) | (block_ids >= layout.blocks)
    if outside.any():
        i = _first(outside)
        raise ValueError(f"block_ids[{i}] = {int(block_ids[i])} is outside [0, {layout.blocks})")
    unsorted = block_ids[1:] <= block_ids[:-1]
    if unsorted.any():
        i = _first(unsorted) + 1
        raise ValueError(
            f"block_ids[{i}] = {int(block_ids[i])} does not exceed block_ids[{i - 1}] = {int(block_ids[i - 1])}: "
            "ids must be sorted and unique"
        )


def check_index(crow_indices: Tensor, col_indices: Tensor, layout: BlockLayout) -> None:
    """Raise ``ValueError`` naming the first bad entry unless the index is consistent with ``layout``.

    Everything from outside passes here before it is written: kernels trust the index.
    """
    for name, index in (("crow_indices", crow_indices), ("col_indices", col_indices)):
        if not isinstance(index, Tensor):
            raise TypeError(f"{name}: expected a tensor, got {type(index).__name__}")
        if index.dtype not in (torch.int32, torch.int64) or index.dim() != 1:
            raise ValueError(
                f"{name}: expected int32 or int64 of one dimension, got {index.dtype} {tuple(index.shape)}"
            )
    if crow_indices.numel() != layout.row_blocks + 1:
        raise ValueError(
            f"crow_indices: expected {layout.row_blocks + 1} entries (row blocks + 1), got {crow_indices.numel()}"
        )
    nnzb = col_indices.numel()
    if nnzb > min(layout.blocks, _INT32_MAX):
        raise ValueError(f"col_indices: {nnzb} blocks, at most {min(layout.blocks, _INT32_MAX)} possible")
    if int(crow_indices[0]) != 0:
        raise ValueError(f"crow_indices[0] = {int(crow_indices[0])}, expected 0")
    if int(crow_indices[-1]) != nnzb:
        raise ValueError(
            f"crow_indices[{layout.row_blocks}] = {int(crow_indices[-1])}, expected the number of blocks {nnzb}"
        )
    falling = crow_indices[1:] < crow_indices[:-1]
    if falling.any():
        i = _first(falling) + 1
        raise ValueError(f"crow_indices[{i}] = {int(crow_indices[i])} is less than the entry before it")
    outside = (col_indices < 0) | (col_indices >= layout.col_blocks)
    if outside.any():
        i = _first(outside)
        raise ValueError(f"col_indices[{i}] = {int(col_indices[i])} is outside [0, {layout.col_blocks})")
    rows = row_indices(crow_indices, nnzb)
    unsorted = (rows[1:] == rows[:-1]) & (col_indices[1:] <= col_indices[:-1])
    if unsorted.any():
        i = _first(unsorted) + 1
        raise ValueError(
            f"col_indices[{i}] = {int(col_indices[i])} does not exceed the entry before it in block row "
            f"{int(rows[i])}: columns must be sorted and unique"
        )


def random_absent_ids(
    active_ids: Tensor, total: int, count: int, generator: torch.Generator | None = None
) -> Tensor:
    """``count`` ids drawn uniformly without replacement from ``[0, total)`` minus ``active_ids``; sorted int64.

    ``active_ids`` (int64, or int32 where that holds ``total``) is sorted and unique. Exact count, O(k log nnz) time and
    O(nnz + k) memory: ranks among the absent ids are drawn, then shifted past the active ids below them.
    """
    absent = total - active_ids.numel()
    if not 0 <= count <= absent:
        raise ValueError(f"count: expected 0 to {absent} (absent places), got {count}")
    ranks = distinct(absent, count, active_ids.device, generator)
    if active_ids.numel() == 0:
        return ranks
    absent_below = torch.arange(active_ids.numel(), dtype=active_ids.dtype, device=active_ids.device)
    absent_below.neg_().add_(active_ids)
    return ranks.add_(torch.searchsorted(absent_below, ranks.to(active_ids.dtype), right=True))


class BlockTopology(NamedTuple):
    """A view over a layer's index buffers: reads and writes go to the layer, nothing is copied.

    Attributes:
        layout: the block grid.
        crow_indices: int32 ``[row_blocks + 1]``.
        col_indices: int32 ``[nnzb]``, sorted inside a row.
        ccol_indices, row_indices_t, block_offsets_t: the same blocks in column order (derived).
    """

    layout: BlockLayout
    crow_indices: Tensor
    col_indices: Tensor
    ccol_indices: Tensor
    row_indices_t: Tensor
    block_offsets_t: Tensor

    @classmethod
    def from_block_ids(cls, block_ids: Tensor, layout: BlockLayout, check: bool = True) -> BlockTopology:
        """A free-standing topology of sorted, unique ids, which are validated unless the caller has made them so."""
        if check:
            check_block_ids(block_ids, layout)
        crow, col = index_from_block_ids(block_ids, layout)
        return cls(layout, crow, col, *transpose_index(crow, col, layout.col_blocks))

    @property
    def nnzb(self) -> int:
        """Active blocks."""
        return self.col_indices.numel()

    @property
    def nnz(self) -> int:
        """Active weights: entries of active blocks inside the weight."""
        if not self.layout.overhangs:
            return self.nnzb * self.layout.bm * self.layout.bn
        return int(self.count_entries())

    def count_entries(self) -> Tensor:
        """``nnz`` as an int64 ``[]``, for whom its number can wait."""
        rows = self.layout.row_extent(self.row_indices())
        return (rows * self.layout.col_extent(self.col_indices.long())).sum()

    @property
    def density(self) -> float:
        """Active weights over potential weights."""
        total = self.layout.rows * self.layout.cols
        return self.nnz / total if total else 0.0

    def index_tensors(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        return self[1:]

    def row_indices(self) -> Tensor:
        """Row block of each stored block, int64 ``[nnzb]``."""
        return row_indices(self.crow_indices, self.nnzb)

    def block_ids(self) -> Tensor:
        """Linear id ``row * col_blocks + col`` of each stored block, int64 ``[nnzb]``, sorted."""
        return self.row_indices().mul_(self.layout.col_blocks).add_(self.col_indices)

    def valid(self) -> Tensor:
        """Which entries of ``values`` lie inside the weight, bool ``[nnzb, bm, bn]``."""
        lay, device = self.layout, self.col_indices.device
        rows = torch.arange(lay.bm, device=device) < lay.row_extent(self.row_indices())[:, None]
        cols = torch.arange(lay.bn, device=device) < lay.col_extent(self.col_indices.long())[:, None]
        return rows[:, :, None] & cols[:, None, :]

    def assign_(self, block_ids: Tensor) -> None:
        """Make ``block_ids`` (sorted, unique, the same number as now) the active blocks, in place."""
        if block_ids.numel() != self.nnzb:
            raise ValueError(
                f"block_ids: expected {self.nnzb} ids (the layer's own count), got {block_ids.numel()}"
            )
        new = BlockTopology.from_block_ids(block_ids, self.layout)
        for own, fresh in zip(self.index_tensors(), new.index_tensors(), strict=True):
            own.copy_(fresh)

    def to_dense(self, values: Tensor) -> Tensor:
        """The logical weight ``[rows, cols]`` with zeros where no block is. For reading, tests and references."""
        lay = self.layout
        grid = values.new_zeros(lay.row_blocks, lay.bm, lay.col_blocks, lay.bn)
        grid[self.row_indices(), :, self.col_indices.long(), :] = values
        parts = grid.view(lay.groups, -1, lay.taps, lay.col_blocks // lay.taps * lay.bn)
        inside = parts[:, : lay.rows // lay.groups, :, : lay.cols // lay.taps]
        return inside.reshape(lay.rows, lay.cols)

    def gather_dense(self, dense: Tensor) -> Tensor:
        """``values [nnzb, bm, bn]`` of a dense ``[rows, cols]`` tensor at this topology; overhang is 0."""
        grid = to_blocks(dense, self.layout)
        return grid[self.row_indices(), :, self.col_indices.long(), :].contiguous()


def check_arrays(topology: BlockTopology) -> None:
    """Raise unless the arrays are as kernels read them. What they hold is checked where a topology is made."""
    lay, crow, col, ccol, row_t, offset_t = topology
    n = col.shape
    if (
        crow.shape != (lay.row_blocks + 1,)
        or ccol.shape != (lay.col_blocks + 1,)
        or not n == row_t.shape == offset_t.shape
        or not crow.dtype == col.dtype == ccol.dtype == row_t.dtype == offset_t.dtype == torch.int32
        or not (crow.is_contiguous() and col.is_contiguous() and ccol.is_contiguous())
        or not (row_t.is_contiguous() and offset_t.is_contiguous())
        or not crow.device == col.device == ccol.device == row_t.device == offset_t.device
    ):
        got = ", ".join(f"{index.dtype} {tuple(index.shape)} on {index.device}" for index in topology[1:])
        raise ValueError(
            f"topology: expected contiguous int32 arrays of {lay.row_blocks + 1}, nnzb, {lay.col_blocks + 1}, nnzb "
            f"and nnzb entries on one device, got {got}"
        )


def to_blocks(dense: Tensor, layout: BlockLayout) -> Tensor:
    """A dense ``[rows, cols]`` tensor as ``[row_blocks, bm, col_blocks, bn]``; zeros overhang. A view if it can be."""
    if tuple(dense.shape) != (layout.rows, layout.cols):
        raise ValueError(f"dense: expected shape {(layout.rows, layout.cols)}, got {tuple(dense.shape)}")
    rows, cols = layout.rows // layout.groups, layout.cols // layout.taps
    right = layout.col_blocks // layout.taps * layout.bn - cols
    below = layout.row_blocks // layout.groups * layout.bm - rows
    parts = dense.reshape(layout.groups, rows, layout.taps, cols)
    if right or below:
        parts = torch.nn.functional.pad(parts, (0, right, 0, 0, 0, below))
    return parts.reshape(layout.row_blocks, layout.bm, layout.col_blocks, layout.bn)
