"""Prune rules: which ``count`` blocks of a layer go.

A rule is ``(blocks: ActiveBlocks, count: int) -> positions``: int64 ``[count]``, all different, below
``blocks.count``. On 1x1 blocks a rule on blocks is the rule on weights.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .blocks import ActiveBlocks
from .registry import Registry

PruneRule = Callable[[ActiveBlocks, int], Tensor]

PRUNE_RULES: Registry[PruneRule] = Registry("prune")


@PRUNE_RULES.register("magnitude")
def magnitude(blocks: ActiveBlocks, count: int) -> Tensor:
    """The smallest mean |w|. (A sum would prune blocks at the weight's edge first.)"""
    return blocks.smallest(blocks.mean(blocks.values.abs()), count)


@PRUNE_RULES.register("set")
def set_per_sign(blocks: ActiveBlocks, count: int) -> Tensor:
    """SET (Mocanu et al. 2018): the same fraction of the weakest positive and the weakest negative weights.

    Zero blocks have no sign and go first. The rest of ``count`` is split in proportion to the numbers of
    positive and negative blocks by largest remainder, so that the sum is exact. A block has the sign of its
    sum.
    """
    score = blocks.mean(blocks.values.abs())
    positive = blocks.sum(blocks.values) >= 0
    is_zero = score == 0
    zeros, positives, negatives = (
        group.nonzero().squeeze(1) for group in (is_zero, positive & ~is_zero, ~positive & ~is_zero)
    )
    from_zeros = min(zeros.numel(), count)
    from_positives, from_negatives = _split(count - from_zeros, positives.numel(), negatives.numel())
    return torch.cat(
        [
            blocks.smallest(score, from_zeros, zeros),
            blocks.smallest(score, from_positives, positives),
            blocks.smallest(score, from_negatives, negatives),
        ]
    )


def _split(count: int, a: int, b: int) -> tuple[int, int]:
    """``count`` in the proportion a : b by largest remainder (equal remainders: to a)."""
    if count == 0:
        return 0, 0
    from_a, remainder = divmod(count * a, a + b)
    from_a += 2 * remainder >= a + b
    return from_a, count - from_a
