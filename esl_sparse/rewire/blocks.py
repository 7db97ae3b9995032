"""What rules see of a layer: the blocks that may go, and the places that may come."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ..ops.select import largest, smallest, splitmix64
from ..topology import BlockLayout, random_absent_ids
from .ever_active import EverActive
from .host import is_remote, read
from .layers import SparseLayer
from .sorted_ids import contains_sorted


@dataclass(frozen=True)
class ActiveBlocks:
    """The ``n`` blocks of one layer that a prune rule may choose from.

    Attributes:
        name: the layer's.
        ids: int64 ``[n]``: ``row_block * col_blocks + col_block``, sorted.
        values: ``[n, bm, bn]``. grad: likewise, or None. Entries outside the weight are 0.
        valid: which entries lie inside the weight, bool ``[n, bm, bn]``; None if all do.
        seed: of the order among equal scores.
        generator: source of a rule's own randomness.
    """

    name: str
    layout: BlockLayout
    ids: Tensor
    values: Tensor
    grad: Tensor | None
    valid: Tensor | None
    seed: int
    generator: torch.Generator

    @property
    def count(self) -> int:
        return self.ids.numel()

    def sum(self, entries: Tensor) -> Tensor:
        """Sum over each block's entries inside the weight: ``[n, bm, bn]`` -> float32 ``[n]``."""
        if self.valid is not None:
            entries = entries.masked_fill(~self.valid, 0)
        if entries.shape[1:] == (1, 1):
            return entries.reshape(-1).float()
        return entries.sum((1, 2), dtype=torch.float32)

    def mean(self, entries: Tensor) -> Tensor:
        """Mean over each block's entries inside the weight: ``[n, bm, bn]`` -> float32 ``[n]``."""
        if entries.shape[1:] == (1, 1):
            return self.sum(entries)
        return self.sum(entries) / self.layout.block_extent(self.ids)

    def smallest(
        self, score: Tensor, count: int, among: Tensor | None = None, *, finite: bool = False
    ) -> Tensor:
        """Positions of the ``count`` smallest scores; ties by seeded hash of the block.

        Args:
            score: ``[n]``. among: only these blocks are chosen from, int64 positions ``[m]``, or bool ``[n]``, of which
                at least ``count`` are set.
            finite: the caller knows the scores to be finite, so that a GPU need not be waited for.
        """
        if among is not None and among.dtype == torch.bool:
            if (
                is_remote(among) and finite
            ):  # what may not be chosen comes last, and nobody asks how much that is
                return smallest(score.masked_fill(~among, torch.inf), self.ids, count, self.seed, finite=True)
            among = among.nonzero().squeeze(1)
        if among is None:
            return smallest(score, self.ids, count, self.seed, finite)
        return among[smallest(score[among], self.ids[among], count, self.seed, finite)]


@dataclass(frozen=True)
class Candidates:
    """What is known of the gradient of one layer's absent places, for a ``GradientRule``.

    Attributes:
        ids: int64 ``[c]``, all different: the places followed, then those just pruned; each of the two sorted. No
            absent place had a larger gradient when the window began.
        score: mean |gradient| of each over its entries inside the weight, float32 ``[c]``; with a window
            longer than one step, of the gradient's moving average.
        followed: how many come first.
        row_mean: computes the mean score of each row block over these and over its active blocks, float32
            ``[row_blocks]``.
    """

    ids: Tensor
    score: Tensor
    followed: int
    row_mean: Callable[[], Tensor]

    def of_rows(self, layout: BlockLayout) -> tuple[Tensor, Callable[[int, int], Tensor]]:
        """How many candidates each row block has, and a function ``(first, end) -> positions`` of some rows'."""
        bounds = torch.arange(layout.row_blocks + 1, device=self.ids.device) * layout.col_blocks
        parts = (0, self.ids[: self.followed]), (self.followed, self.ids[self.followed :])
        starts = [at + torch.searchsorted(ids, bounds) for at, ids in parts]

        def positions(first: int, end: int) -> Tensor:
            ranges = [torch.arange(int(x[first]), int(x[end]), device=bounds.device) for x in starts]
            return torch.cat(ranges)

        return starts[0].diff() + starts[1].diff(), positions


@dataclass(frozen=True)
class AbsentBlocks:
    """The places of one layer that a grow rule may choose from: those just pruned are among them.

    Attributes:
        name: the layer's.
        active: int64 ids of the blocks that stay, sorted; every other id below ``layout.blocks`` may be
            grown.
        ever_active: record of the places that have been active before, ``active`` and those just pruned
            included.
        seed: of the order among equal scores.
        generator: source of randomness.
        candidates: for a ``GradientRule``, what it has seen; None for other rules.
    """

    name: str
    layout: BlockLayout
    active: Tensor
    ever_active: EverActive
    seed: int
    generator: torch.Generator
    candidates: Candidates | None = None

    @property
    def count(self) -> int:
        return self.layout.blocks - self.active.numel()

    def contains(self, ids: Tensor) -> Tensor:
        """Which of the ids are absent, bool."""
        return ~contains_sorted(self.active, ids)

    def random(self, count: int) -> Tensor:
        """``count`` absent ids, uniform without replacement; sorted int64."""
        return random_absent_ids(self.active, self.layout.blocks, count, self.generator)

    def largest(self, score: Tensor, ids: Tensor, count: int, *, finite: bool = False) -> Tensor:
        """The ``count`` of these absent ids with the largest score; ties by seeded hash of the id.

        ``finite``: the caller knows the scores to be so, and a GPU need not be waited for.
        """
        return ids[largest(score, ids, count, self.seed, finite)]

    def ranked(self, score: Tensor, ids: Tensor) -> Tensor:
        """Positions of all these ids by falling score; ties as in ``largest``."""
        order = splitmix64(ids, self.seed).sort().indices
        return order[score[order].sort(descending=True, stable=True).indices]


def inside(layer: SparseLayer) -> tuple[Tensor, Tensor | None]:
    """Values with 0 outside the weight, and which entries lie inside it (None: all)."""
    values, topology = layer.values.detach(), layer.topology
    if not topology.layout.overhangs:
        return values, None
    valid = topology.valid()
    return values.masked_fill(~valid, 0), valid


@dataclass(frozen=True)
class Choice:
    """What a rule returned for one layer.

    Attributes:
        found: ids or positions, or whatever a rule of somebody else may return.
        count: how many there must be; None: any number. bound: they lie in ``[0, bound)``.
        at_odds: bool ``[]``, whether the choice contradicts something else, which `why` names.
    """

    found: Tensor
    count: int | None
    bound: int
    at_odds: Tensor | None = None
    why: str = ""


def checked(kind: str, choices: Mapping[str, Choice]) -> dict[str, Tensor]:
    """What the rule returned for each layer, sorted: different integers within bounds, of the right number.

    On a GPU the host waits once for all layers.
    """
    found = {name: _sorted(choice.found) for name, choice in choices.items()}
    doubts = [choices[name].at_odds for name in choices]
    flags = [_is_faulty(found[name], choice.bound) for name, choice in choices.items()]
    flags += [doubt for doubt in doubts if doubt is not None]
    if any(read(flags)):
        for name, choice in choices.items():
            if bool(_is_faulty(found[name], choice.bound)):
                raise ValueError(f"{kind}: the rule returned repeated or out-of-range choices for {name}")
            if choice.at_odds is not None and bool(choice.at_odds):
                raise ValueError(f"{kind}: {choice.why}")
    return found


def check_form(kind: str, name: str, choice: Choice) -> Choice:
    """Raise unless the rule returned an int64 tensor of the right length."""
    found, count = choice.found, choice.count
    shape = tuple(found.shape) if isinstance(found, Tensor) else None
    expected = (count,) if count is not None else shape if shape is not None and len(shape) == 1 else ("n",)
    if not isinstance(found, Tensor) or found.dtype != torch.int64 or shape != expected:
        got = f"{found.dtype} {shape}" if isinstance(found, Tensor) else type(found).__name__
        wanted = f"({count},)" if count is not None else "of one dimension"
        raise ValueError(f"{kind}: expected the rule to return int64 {wanted} for {name}, got {got}")
    return choice


def _sorted(found: Tensor) -> Tensor:
    # Most rules choose in order, and sorting takes memory and time; but to ask takes a GPU as long.
    if not is_remote(found) and bool((found[1:] > found[:-1]).all()):
        return found
    return found.sort().values


def _is_faulty(found: Tensor, bound: int) -> Tensor:
    """Of a sorted choice, bool ``[]``."""
    if found.numel() == 0:
        return torch.zeros((), dtype=torch.bool, device=found.device)
    return (found[1:] == found[:-1]).any() | (found[0] < 0) | (found[-1] >= bound)
