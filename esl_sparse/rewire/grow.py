"""Grow rules: which ``count`` absent places of a layer become active.

A rule is ``(absent: AbsentBlocks, count: int) -> ids``: int64 ``[count]``, all different, all absent, any
order. A ``GradientRule`` around it has the gradients of absent places followed for it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .._cuda import sent
from ..topology import random_absent_ids
from .apportion import apportion
from .blocks import AbsentBlocks, Candidates
from .registry import Registry
from .sorted_ids import merge_sorted

GrowRule = Callable[[AbsentBlocks, int], Tensor]

GROW_RULES: Registry[GrowRule] = Registry("grow")
"""Grow rules by name; `@GROW_RULES.register("mine")` adds one."""


@dataclass(frozen=True)
class GradientRule:
    """A grow rule that finds ``absent.candidates``: the absent places of largest gradient.

    In the first of the ``window`` steps before an update all places are scored, tile by tile, and the best ones
    stay as candidates; over the window a moving average of their gradients is kept. So memory goes with the
    number of candidates and never with the dense weight. A window ends where the update before it was.

    Attributes:
        rule: ``(absent, count) -> ids``.
        window: training steps, the last one being that of the update; 1: only its gradient counts.
        beta: decay of the moving average in one step.
        candidates: how many for each block to grow (no fewer than one).
        budget: at most so many candidates for each active block.
        exact: every absent place is a candidate. Takes dense memory: for tests and comparisons.
    """

    rule: GrowRule
    window: int = 1
    beta: float = 0.9
    candidates: float = 1.0
    budget: float = 1.0
    exact: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.window, int) or self.window < 1:
            raise ValueError(f"window: expected a number of steps, 1 or more, got {self.window!r}")
        if not 0.0 <= self.beta < 1.0:
            raise ValueError(f"beta: expected at least 0 and less than 1, got {self.beta!r}")
        for name, least in (("candidates", 1.0), ("budget", 0.0)):
            if not getattr(self, name) >= least:
                raise ValueError(f"{name}: expected at least {least:g}, got {getattr(self, name)!r}")

    def __call__(self, absent: AbsentBlocks, count: int) -> Tensor:
        return self.rule(absent, count)

    def followed(self, grow: int, active: int, places: int) -> int:
        """Candidates of a layer that grows up to ``grow`` blocks and has ``places`` absent ones."""
        if self.exact:
            return places
        wanted = min(round(self.candidates * grow), round(self.budget * active))
        return min(max(wanted, grow), places)


@dataclass(frozen=True)
class DrawnCount:
    """A grow rule that does not replace what was pruned one for one: ``draw(places, pruned, generator)`` says how many
    of the absent places grow. Layers change size, and so does the model. For replication.
    """

    rule: GrowRule
    draw: Callable[[int, int, torch.Generator], int]

    def __call__(self, absent: AbsentBlocks, count: int) -> Tensor:
        return self.rule(absent, count)


def bernoulli(places: int, pruned: int, generator: torch.Generator) -> int:
    """How many grow if every absent place does with the probability ``pruned / places``, as in ITOP's code."""
    if not places:
        return 0
    n, p = (torch.tensor(float(x), dtype=torch.float64) for x in (places, pruned / places))
    return int(torch.binomial(n, p, generator=generator))


@GROW_RULES.register("random")
def random(absent: AbsentBlocks, count: int) -> Tensor:
    """Uniform among all absent places."""
    return absent.random(count)


@GROW_RULES.register("random_unfired")
def random_unfired(absent: AbsentBlocks, count: int) -> Tensor:
    """Uniform among places never active; if fewer are left, all of them and uniform for the rest."""
    record = absent.ever_active
    unfired = record.random_never_active(min(count, record.total - record.size), absent.generator)
    taken, _ = merge_sorted(absent.active, unfired)
    others = random_absent_ids(taken, absent.layout.blocks, count - unfired.numel(), absent.generator)
    return torch.cat([unfired, others])


def largest_score(absent: AbsentBlocks, count: int) -> Tensor:
    """The candidates of largest score."""
    known = _candidates(absent)
    return absent.largest(known.score, known.ids, count, finite=True)


def shared_over_neurons(absent: AbsentBlocks, count: int) -> Tensor:
    """Every output neuron (row of blocks) grows in proportion to its mean score, its own best candidates first.

    What a neuron cannot take, for want of candidates, goes to the others in the same proportion.
    """
    known = _candidates(absent)
    available, of_rows = known.of_rows(absent.layout)
    quota = sent(apportion(count, known.row_mean().tolist(), available.tolist()), available.device)
    chosen = []
    ends = available.cumsum(0)
    first = 0
    at_once = min(_AT_ONCE, max(1024, known.ids.numel() // 8))  # candidates: sorting takes memory
    while first < ends.numel():
        end = int(torch.searchsorted(ends, ends[first] - available[first] + at_once, right=True))
        end = max(end, first + 1)
        here = of_rows(first, end)
        ids = known.ids[here]
        row = ids // absent.layout.col_blocks - first
        order = absent.ranked(known.score[here], ids)
        order = order[row[order].sort(stable=True).indices]  # by row, in each the best first
        ranked_row = row[order]
        start = ends[first:end] - available[first:end] - (ends[first] - available[first])
        rank = torch.arange(order.numel(), device=order.device) - start[ranked_row]
        chosen.append(ids[order[rank < quota[first:end][ranked_row]]])
        first = end
    return torch.cat(chosen)


_AT_ONCE = 1 << 14

GROW_RULES["gradient"] = GradientRule(largest_score)
GROW_RULES["momentum"] = GradientRule(largest_score, window=20, candidates=8.0)
GROW_RULES["momentum_neuron"] = GradientRule(shared_over_neurons, window=20, candidates=8.0)


def _candidates(absent: AbsentBlocks) -> Candidates:
    if absent.candidates is None:
        raise ValueError("grow: this rule needs gradients: make it a GradientRule")
    return absent.candidates
