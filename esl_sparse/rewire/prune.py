"""Prune rules: which ``count`` blocks of a layer go.

A rule is ``(blocks: ActiveBlocks, count: int) -> positions``: int64 ``[count]``, all different, below
``blocks.count``. On 1x1 blocks a rule on blocks is the rule on weights.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from .._cuda import sent
from ..ops.select import smallest
from .blocks import ActiveBlocks
from .host import Asking, side_by_side
from .registry import Registry


@dataclass(frozen=True)
class AcrossLayers:
    """A prune rule that looks at all layers together.

    ``rule(layers: list[ActiveBlocks], count: int)`` returns the positions to prune in each layer, ``count``
    in all.
    """

    rule: Callable[[Sequence[ActiveBlocks], int], Sequence[Tensor]]


@dataclass(frozen=True)
class OwnCount:
    """A prune rule that takes the count as a hint: ``rule(blocks, count)`` returns any number of positions.

    As many blocks are grown as it prunes.
    """

    rule: Callable[[ActiveBlocks, int], Tensor]


@dataclass(frozen=True)
class AsksFirst:
    """A prune rule that needs numbers out of its blocks before it chooses: ``rule(blocks, count)`` is a generator.

    It yields tensors of one element, is sent their values, and returns the positions. What the layers on a GPU ask is
    read in one wait; numbers that a rule reads by itself take one wait a layer. Draw from ``blocks.generator`` before
    the first ``yield``: after it layers on a GPU draw in another order than elsewhere.
    """

    rule: Callable[[ActiveBlocks, int], Asking[Tensor]]

    def __call__(self, blocks: ActiveBlocks, count: int) -> Tensor:
        return side_by_side({blocks.name: self.asking(blocks, count)})[blocks.name]

    def asking(self, blocks: ActiveBlocks, count: int) -> Asking[Tensor]:
        work = self.rule(blocks, count)
        if not isinstance(work, Generator):
            raise TypeError(
                f"prune: expected the rule in AsksFirst to be a generator, got {type(work).__name__}"
            )
        return work


PruneRule = Callable[[ActiveBlocks, int], Tensor] | AcrossLayers | OwnCount

PRUNE_RULES: Registry[PruneRule] = Registry("prune", (AcrossLayers, OwnCount))
"""Prune rules by name; `@PRUNE_RULES.register("mine")` adds one."""


@PRUNE_RULES.register("magnitude")
def magnitude(blocks: ActiveBlocks, count: int) -> Tensor:
    """The smallest mean |w|. (A sum would prune blocks at the weight's edge first.)"""
    return blocks.smallest(blocks.mean(blocks.values.abs()), count, finite=True)


@PRUNE_RULES.register("global_magnitude")
@AcrossLayers
def global_magnitude(layers: Sequence[ActiveBlocks], count: int) -> list[Tensor]:
    """The smallest mean |w| of all layers: one threshold, so layers of smaller weights lose more blocks."""
    scores = [blocks.mean(blocks.values.abs()) for blocks in layers]
    device = scores[0].device
    # An id names a place in its layer; shifted, it names one in the model.
    shifts = accumulate((blocks.layout.blocks for blocks in layers), initial=0)
    ids = [(blocks.ids + shift).to(device) for blocks, shift in zip(layers, shifts, strict=False)]
    every = torch.cat([x.to(device) for x in scores])
    chosen = smallest(every, torch.cat(ids), count, layers[0].seed, finite=True).sort().values
    starts = [*accumulate((blocks.count for blocks in layers), initial=0)]
    bounds = torch.searchsorted(chosen, sent(starts, device)).tolist()
    return [
        (chosen[bounds[i] : bounds[i + 1]] - starts[i]).to(blocks.ids.device)
        for i, blocks in enumerate(layers)
    ]


@PRUNE_RULES.register("set")
@AsksFirst
def set_per_sign(blocks: ActiveBlocks, count: int) -> Asking[Tensor]:
    """SET (Mocanu et al. 2018): the same fraction of the weakest positive and the weakest negative weights.

    Zero blocks have no sign and go first. The rest of ``count`` is split in proportion to the numbers of
    positive and negative blocks by largest remainder, so that the sum is exact. A block has the sign of its
    sum.
    """
    score, is_negative, zeros, positives, negatives = yield from _by_sign(blocks)
    from_zeros = min(zeros, count)
    from_positives, from_negatives = _split(count - from_zeros, positives, negatives)
    return torch.cat(
        [
            # Zeros have the least score of those that are not negative.
            blocks.smallest(score, from_zeros + from_positives, ~is_negative, finite=True),
            blocks.smallest(score, from_negatives, is_negative, finite=True),
        ]
    )


@PRUNE_RULES.register("set_itop")
@OwnCount
@AsksFirst
def set_itop(blocks: ActiveBlocks, count: int) -> Asking[Tensor]:
    """For replication only: what the code of ITOP (Liu et al. 2021) does under the name of SET.

    It orders the negative weights from the wrong end: half of ``count`` *strongest* negative weights, less one,
    are all that stay of them. With as many negative as positive weights about half of all weights go, whatever
    the fraction (known: sparse_learning issue 19). Zeros go too. Use ``set``.
    """
    score, is_negative, zeros, positives, negatives = yield from _by_sign(blocks)
    half = -(-count // 2)
    kept = max(0, min(half, negatives) - 1)
    return torch.cat(
        [
            blocks.smallest(score, zeros + min(half, positives), ~is_negative, finite=True),
            blocks.smallest(score, negatives - kept, is_negative, finite=True),
        ]
    )


def _by_sign(blocks: ActiveBlocks) -> Asking[tuple[Tensor, Tensor, int, int, int]]:
    """Scores, which blocks are negative, and how many zero, positive and negative ones there are.

    A block whose entries cancel counts as positive.
    """
    score = blocks.mean(blocks.values.abs())
    is_zero = score == 0
    is_negative = ~((blocks.sum(blocks.values) >= 0) | is_zero)
    zeros, negatives = map(int, (yield [is_zero.sum(), is_negative.sum()]))
    return score, is_negative, zeros, blocks.count - zeros - negatives, negatives


def _split(count: int, a: int, b: int) -> tuple[int, int]:
    """``count`` in the proportion a : b by largest remainder (equal remainders: to a)."""
    if count == 0:
        return 0, 0
    from_a, remainder = divmod(count * a, a + b)
    from_a += 2 * remainder >= a + b
    return from_a, count - from_a
