"""Op ``block_score``: how large the gradient of each block of a weight is, present or not, without that gradient.

Raw op: ``block_score``, for some block rows; ``BlockScorer`` goes through all of them in bounded memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..._backends import choose
from ...packed import PackedSpikes
from ...topology import BlockLayout
from .._library import define
from ..pack.op import unpack_op
from . import cuda, native, reference, triton

_STRIP_BYTES = 1 << 20
_STRIP_ROWS = 64  # at least: fewer rows would read the input too often
# Above this rate: torch.mm on floats. Events took .17 of its time at rate .1, .5 at .5 and .9 at 1 with AVX-512; with
# AVX2, against the same torch.mm, .3, .7 and 1.3.
_EVENT_RATE = 0.75


class LayerCall(NamedTuple):
    """One call of a linear layer: its input, spikes or rows ``[N, cols]``, and its output gradient ``[N, rows]``."""

    x: PackedSpikes | Tensor
    grad: Tensor


def _rows(x: Tensor, lanes: tuple[int, int, float], dtype: torch.dtype) -> Tensor:
    """Float rows ``[N, cols]`` of words or rows."""
    if x.dtype == torch.int64:
        T, B, scale = lanes
        return unpack_op(x, T, B, scale, dtype).view(T * B, x.shape[-1])
    return x.to(dtype)


def _by_events(x: Tensor, grad: Tensor) -> bool:
    """Whether the native kernel takes this call: words of binary spikes."""
    return (
        x.dtype == torch.int64
        and x.shape[0] == 1
        and choose("block_score", grad.device.type, grad.dtype) == "native"
    )


def _by_tiles(x: Sequence[Tensor], grad: Sequence[Tensor]) -> bool:
    """Whether the Triton kernel takes these calls: all words of as many planes, or all rows, and one dtype."""
    like = grad[0].dtype
    kinds = {("words", a.shape[0]) if a.dtype == torch.int64 else ("rows", a.dtype == like) for a in x}
    return (
        len(kinds) == 1
        and ("rows", False) not in kinds
        and all(g.dtype == like for g in grad)
        and choose("block_score", grad[0].device.type, like) == "triton"
    )


def _by_threads(grad: Sequence[Tensor]) -> bool:
    """Whether the CUDA kernel takes these calls: it reads words and float32 rows, and gradients of one dtype."""
    return all(choose("block_score", g.device.type, g.dtype) == "cuda" for g in grad)


def _for_threads(x: Sequence[Tensor], grad: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """The same calls as the CUDA kernel reads them; copies only of what is not so already."""
    dtype = grad[0].dtype if len({g.dtype for g in grad}) == 1 else torch.float32
    x = [(a if a.dtype == torch.int64 else a.float()).contiguous() for a in x]
    return x, [g.to(dtype).contiguous() for g in grad]


def _rate(x: Sequence[Tensor], lanes: Sequence[tuple[int, int, float]]) -> float:
    """Spikes per neuron, over the words of all calls."""
    size = sum(words.shape[-1] * T * B for words, (T, B, _) in zip(x, lanes, strict=True))
    return sum(map(native.count_spikes, x)) / max(size, 1)


def _block_score(x, grad, T, B, scale, rows, cols, bm, bn, first, count):
    if all(map(_by_events, x, grad)):
        x, grad = ([each.contiguous() for each in tensors] for tensors in (x, grad))
        return native.block_score(x, grad, T, B, scale, rows, cols, bm, bn, first, count)
    if _by_tiles(x, grad):
        x, grad = ([each.contiguous() for each in tensors] for tensors in (x, grad))
        return triton.block_score(x, grad, T, B, scale, rows, cols, bm, bn, first, count)
    if _by_threads(grad):
        return cuda.block_score(*_for_threads(x, grad), T, B, scale, rows, cols, bm, bn, first, count)
    dtype, lanes = reference.compute_dtype(grad), zip(T, B, scale, strict=True)
    x = [_rows(one, call, dtype) for one, call in zip(x, lanes, strict=True)]
    return reference.block_score(x, grad, BlockLayout(rows, cols, bm, bn), first, count)


def _block_score_fake(x, grad, T, B, scale, rows, cols, bm, bn, first, count):
    return grad[0].new_empty((count, -(-cols // bn)), dtype=torch.float32)


block_score_op = define(
    "block_score(Tensor[] x, Tensor[] grad, SymInt[] T, SymInt[] B, float[] scale, SymInt rows, SymInt cols,"
    " SymInt bm, SymInt bn, SymInt first, SymInt count) -> Tensor",
    _block_score,
    _block_score_fake,
)


class BlockScorer:
    """Scores of all blocks of a linear weight after one training step, strip by strip.

    The score of a block is the mean of ``|G|`` over its entries inside the weight, where ``G [rows, cols]`` is the
    sum of ``grad^T x`` over the calls of the layer. ``G`` is never made: a strip of its rows at a time.

    Args:
        calls: every call of the layer in the step, at least one. All gradients are on one device.
        layout: of the weight; one group, one tap.
        strip_bytes: of a strip and what is made on its way, unless 64 rows take more.
    """

    def __init__(
        self, calls: Sequence[LayerCall], layout: BlockLayout, strip_bytes: int = _STRIP_BYTES
    ) -> None:
        if layout.groups != 1 or layout.taps != 1:
            raise ValueError(
                f"layout: expected that of a linear layer, got {layout.groups} groups, {layout.taps} taps"
            )
        if not calls:
            raise ValueError("calls: expected at least one call of the layer")
        self.layout = layout
        for i, call in enumerate(calls):
            _check(i, call, layout, calls[0].grad)
        self._grad = [call.grad.detach().contiguous() for call in calls]
        self._lanes = [_lanes(call.x) for call in calls]
        self._x = [(x.words if isinstance(x, PackedSpikes) else x.detach()).contiguous() for x, _ in calls]
        events = all(map(_by_events, self._x, self._grad)) and _rate(self._x, self._lanes) <= _EVENT_RATE
        threads = _by_threads(self._grad)
        if threads:
            self._x, self._grad = _for_threads(self._x, self._grad)
        streams = events or threads or _by_tiles(self._x, self._grad)
        if not streams:
            dtype = reference.compute_dtype(self._grad)
            self._x = [_rows(x, lanes, dtype) for x, lanes in zip(self._x, self._lanes, strict=True)]
        # What a strip of rows makes: its scores, or the dense product that they come from.
        made = layout.col_blocks / layout.bm if streams else layout.cols
        rows = int(strip_bytes / 4 / max(made, 1))
        self._strip = max(rows // _STRIP_ROWS * _STRIP_ROWS, _STRIP_ROWS, layout.bm) // layout.bm

    def strips(self) -> Iterator[tuple[int, Tensor]]:
        """``(first_row_block, scores float32 [n, col_blocks])`` from the first to the last block row.

        A strip's scores are the caller's own: they may be kept or written to. A strip and all that is made on its way
        take about ``strip_bytes``, or 64 rows (``bm``, if more) where those are larger.
        """
        lay = self.layout
        T, B, scale = (list(each) for each in zip(*self._lanes, strict=True))
        for first in range(0, lay.row_blocks, self._strip):
            count = min(self._strip, lay.row_blocks - first)
            scores = block_score_op(
                self._x, self._grad, T, B, scale, lay.rows, lay.cols, lay.bm, lay.bn, first, count
            )
            yield first, scores


def _lanes(x: PackedSpikes | Tensor) -> tuple[int, int, float]:
    return (x.T, x.B, x.scale) if isinstance(x, PackedSpikes) else (1, x.shape[0], 1.0)


def _check(i: int, call: LayerCall, layout: BlockLayout, like: Tensor) -> None:
    x, grad = call
    if isinstance(x, PackedSpikes):
        if len(x.shape) != 3 or x.shape[2] != layout.cols:
            raise ValueError(f"calls[{i}].x: expected spikes of shape (T, B, {layout.cols}), got {x.shape}")
        x_rows, device = x.T * x.B, x.words.device
    elif isinstance(x, Tensor) and x.is_floating_point():
        if x.dim() != 2 or x.shape[1] != layout.cols:
            raise ValueError(f"calls[{i}].x: expected shape [N, {layout.cols}], got {tuple(x.shape)}")
        x_rows, device = x.shape[0], x.device
    else:
        got = getattr(x, "dtype", type(x).__name__)
        raise TypeError(f"calls[{i}].x: expected PackedSpikes or a floating-point tensor, got {got}")
    if not grad.is_floating_point():
        raise TypeError(f"calls[{i}].grad: expected a floating-point tensor, got {grad.dtype}")
    if grad.shape != (x_rows, layout.rows):
        raise ValueError(f"calls[{i}].grad: expected shape {(x_rows, layout.rows)}, got {tuple(grad.shape)}")
    if not device == grad.device == like.device:
        raise ValueError(f"calls[{i}]: expected x and grad on {like.device}, got {device} and {grad.device}")
