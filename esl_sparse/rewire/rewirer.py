from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ..topology import BlockTopology
from .blocks import AbsentBlocks, ActiveBlocks, checked_choice, inside
from .ever_active import EverActive
from .grow import GROW_RULES, GrowRule
from .journal import Journal
from .layers import SparseLayer, following_layers, rewirable_layers
from .optimizer_state import param_group, slots
from .progress import Progress, last
from .prune import PRUNE_RULES, PruneRule
from .report import LayerReport, RewireReport
from .rewiring import Rewiring
from .schedule import SCHEDULES, Decay, UpdateSchedule
from .select import contains_sorted


@dataclass(frozen=True)
class _LayerUpdate:
    """What one update is going to do to one layer."""

    name: str
    rewiring: Rewiring
    topologies: list[BlockTopology]  # of the layer and its followers: rewritten
    carried: list[tuple[Tensor, Tensor | float]]  # what goes with the blocks, and what grown ones get of it
    pruned: int
    ever_active: EverActive

    def report(self) -> LayerReport:
        topology = self.rewiring.topology
        grown = self.rewiring.grown.numel()
        return LayerReport(self.name, self.pruned, grown, topology.density, self.ever_active.share)

    def write(self, journal: Journal) -> None:
        if self.rewiring.grown.numel() == 0:
            return
        for tensor, fill in self.carried:
            journal.write_(tensor, self.rewiring.carry(tensor, fill))
        for topology in self.topologies:
            for own, new in zip(
                topology.index_tensors(), self.rewiring.topology.index_tensors(), strict=True
            ):
                journal.write_(own, new)


class Rewirer:
    """Prunes and regrows the block-sparse layers of a model while it trains (paper Algorithm 1).

    Every ``interval`` iterations a fraction f_decay of each layer's blocks goes, and as many come: exact
    counts, in place, with the gradient, every optimiser slot and the followers. A place that is pruned and
    chosen again in the same update keeps its weights and slots; blocks that are new start at 0, their slots
    as the optimiser starts them. An update takes O(active + rewired) memory. It happens whole or not at all.

        rewirer = esl.Rewirer(model, optimizer, t_end=10_000)
        for x, y in loader:
            ...
            optimizer.step()
            rewirer.step()

    Args:
        model: holds layers with ``values`` and ``topology``. Those whose values do not require a gradient are
            skipped.
        optimizer: any ``torch.optim`` optimiser whose state holds one slot a weight; it holds the layers'
            values.
        prune: name in ``esl.PRUNE_RULES`` or a function; by default SET's rule.
        grow: name in ``esl.GROW_RULES`` or a function; by default ``"random"``, which needs no gradients.
        alpha: fraction of the blocks rewired at first. interval: iterations between updates (paper: T_iter).
        t_end: the last iteration at which connections may change (paper: T_end).
        schedule: how the fraction falls: ``"cosine"`` (paper Eq. 2), ``"linear"``, ``"exponential"``,
            ``"constant"``, or a function ``(alpha, t / t_end) -> fraction``.
        protect: updates for which grown blocks cannot be pruned; the fraction is of the other blocks then.
        followers: modules of the same structure that follow ``model``, such as an EMA copy
            (``torch.optim.swa_utils.AveragedModel``).
        generator: source of randomness; by default a new one, seeded from torch's own.

    Raises:
        ValueError: no sparse layer; values that the optimiser does not hold; optimiser state that cannot
            follow (LBFGS); followers of another structure; at an update, weights that are NaN or infinite.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        *,
        prune: str | PruneRule = "set",
        grow: str | GrowRule = "random",
        alpha: float = 0.5,
        interval: int = 1000,
        t_end: int,
        schedule: str | Decay = "cosine",
        protect: int = 0,
        followers: Iterable[nn.Module] = (),
        generator: torch.Generator | None = None,
    ) -> None:
        if not isinstance(optimizer, Optimizer):
            raise TypeError(f"optimizer: expected a torch.optim.Optimizer, got {type(optimizer).__name__}")
        if not isinstance(protect, int) or protect < 0:
            raise ValueError(f"protect: expected a number of updates, 0 or more, got {protect!r}")
        self.optimizer = optimizer
        self.schedule = UpdateSchedule(SCHEDULES.resolve(schedule), alpha, interval, t_end)
        self.protect = protect
        self._prune_rule = PRUNE_RULES.resolve(prune)
        self._grow_rule = GROW_RULES.resolve(grow)
        self._layers = rewirable_layers(model)
        self._followers = [following_layers(self._layers, follower) for follower in followers]
        if generator is None:
            seed = int(torch.randint(torch.iinfo(torch.int64).max, (), device="cpu"))
            generator = torch.Generator(device="cpu").manual_seed(seed)
        self.generator = generator
        self._progress = Progress.start(self._layers)
        for name, layer in self._trained_layers().items():
            self._carried(name, layer, self._copies(name, layer))  # can all of it follow? Say so now

    @property
    def iteration(self) -> int:
        """Calls of :meth:`step` so far."""
        return self._progress.iteration

    @property
    def ever_active(self) -> Mapping[str, EverActive]:
        """By layer: the record of the blocks that have been active at any time."""
        return self._progress.ever_active

    @torch.no_grad()
    def step(self) -> RewireReport | None:
        """Call after each ``optimizer.step()``. Rewires when it is time, and then says what it did.

        If anything raises, model, optimiser, followers and this object are as before the call.
        """
        iteration = self.iteration + 1
        if not self.schedule.due(iteration):
            self._progress = replace(self._progress, iteration=iteration)
            return None
        with Journal() as journal:
            generator_state = self.generator.get_state()
            journal.note(lambda: self.generator.set_state(generator_state))
            fraction = self.schedule.fraction(iteration)
            updates = self._plan(fraction)
            report = RewireReport(iteration, fraction, tuple(update.report() for update in updates))
            progress = self._progress_after(iteration, updates)
            for update in updates:
                update.write(journal)
            journal.assign(self, "_progress", progress)
        return report

    # Plan: everything is chosen and checked before anything is written

    def _plan(self, fraction: float) -> list[_LayerUpdate]:
        """Prune all layers, then grow all layers."""
        layers = self._trained_layers()
        for name, layer in layers.items():
            _check_finite(name, layer)
        pruned = {name: self._prune(name, layer, fraction) for name, layer in layers.items()}
        return [self._grow(name, layer, pruned[name]) for name, layer in layers.items()]

    def _prune(self, name: str, layer: SparseLayer, fraction: float) -> Tensor:
        """Positions of the blocks that go, int64."""
        ids = layer.topology.block_ids()
        values, valid = inside(layer)
        grad = layer.values.grad
        if grad is not None and valid is not None:
            grad = grad.masked_fill(~valid, 0)
        prunable = self._prunable(name, ids)
        if prunable is not None:
            ids, values = ids[prunable], values[prunable]
            grad, valid = (None if entries is None else entries[prunable] for entries in (grad, valid))
        count = round(fraction * ids.numel())
        if count == 0:
            return ids.new_empty(0)
        blocks = ActiveBlocks(
            name, layer.topology.layout, ids, values, grad, valid, self._seed(), self.generator
        )
        chosen = checked_choice("prune", name, self._prune_rule(blocks, count), count, ids.numel())
        return chosen if prunable is None else prunable[chosen]

    def _prunable(self, name: str, ids: Tensor) -> Tensor | None:
        """Positions of the blocks that are not protected; None: all."""
        recent = self._progress.recent[name]
        if not recent:
            return None
        protected = torch.cat(recent).to(ids.device).sort().values
        return (~contains_sorted(protected, ids)).nonzero().squeeze(1)

    def _grow(self, name: str, layer: SparseLayer, pruned: Tensor) -> _LayerUpdate:
        stays = torch.ones(layer.topology.nnzb, dtype=torch.bool, device=pruned.device)
        stays[pruned] = False
        chosen, record = self._choose(name, layer, stays, pruned.numel())
        rewiring = Rewiring.of(layer.topology, stays, chosen)
        copies = self._copies(name, layer)
        topologies = [layer.topology, *(copy.topology for copy in copies)]
        carried = self._carried(name, layer, copies)
        return _LayerUpdate(name, rewiring, topologies, carried, pruned.numel(), record)

    def _choose(self, name: str, layer: SparseLayer, stays: Tensor, count: int) -> tuple[Tensor, EverActive]:
        """Ids to grow, sorted, and the ever-active record that includes them."""
        ids, layout = layer.topology.block_ids(), layer.topology.layout
        # Blocks may have been loaded into the layer since the last update.
        record = self._progress.ever_active[name].to(ids.device).including(ids)
        if count == 0:
            return ids.new_empty(0), record
        absent = AbsentBlocks(name, layout, ids[stays], record, self._seed(), self.generator)
        chosen = checked_choice("grow", name, self._grow_rule(absent, count), count, layout.blocks)
        if not absent.contains(chosen).all():
            raise ValueError(f"grow: the rule chose blocks of {name} that are active")
        return chosen, record.including(chosen)

    def _seed(self) -> int:
        return int(torch.randint(1 << 62, (), generator=self.generator, device=self.generator.device))

    def _carried(
        self, name: str, layer: SparseLayer, copies: list[SparseLayer]
    ) -> list[tuple[Tensor, Tensor | float]]:
        """Tensors ``[nnzb, ...]`` that go with a layer's blocks, and what a grown block gets of each."""
        carried: list[tuple[Tensor, Tensor | float]] = [(layer.values, 0.0)]
        if layer.values.grad is not None:
            carried.append((layer.values.grad, 0.0))
        carried.extend((copy.values, 0.0) for copy in copies)
        carried.extend(slots(self.optimizer, self._group(name, layer), layer.values))
        return carried

    def _copies(self, name: str, layer: SparseLayer) -> list[SparseLayer]:
        """The followers' copies of a layer; raises unless their blocks stand where the layer's do."""
        copies = [follower[name] for follower in self._followers]
        for copy in copies:
            pairs = zip(copy.topology.index_tensors(), layer.topology.index_tensors(), strict=True)
            if not all(torch.equal(theirs.to(ours.device), ours) for theirs, ours in pairs):
                raise ValueError(f"followers: the blocks of {name} stand elsewhere than in the model")
        return copies

    def _progress_after(self, iteration: int, updates: list[_LayerUpdate]) -> Progress:
        ever_active, recent = dict(self._progress.ever_active), dict(self._progress.recent)
        for update in updates:
            ever_active[update.name] = update.ever_active
            grown = update.rewiring.topology.block_ids()[update.rewiring.grown]
            recent[update.name] = last((*recent[update.name], grown), self.protect)
        return Progress(iteration, ever_active, recent)

    # Layers

    def _trained_layers(self) -> dict[str, SparseLayer]:
        trained = {name: layer for name, layer in self._layers.items() if layer.values.requires_grad}
        for name, layer in trained.items():
            self._group(name, layer)
        return trained

    def _group(self, name: str, layer: SparseLayer) -> dict[str, Any]:
        group = param_group(self.optimizer, layer.values)
        if group is None:
            raise ValueError(
                f"optimizer: does not hold {name}.values; make it from the sparse model's parameters, "
                "or give it to sparsify(..., optimizer=)"
            )
        return group

    # Checkpoints

    def state_dict(self) -> dict[str, Any]:
        """Iteration, random state, what was ever active: with it a resumed run chooses as this one would.

        Tensors and plain values: ``torch.load(weights_only=True)`` reads it.
        """
        return {**self._progress.state_dict(), "generator": self.generator.get_state()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from :meth:`state_dict`. Nothing is changed unless all of it fits; else ``ValueError``."""
        progress = Progress.from_state_dict(state, self._layers, self.protect)
        try:
            self.generator.set_state(state["generator"])
        except (KeyError, RuntimeError, TypeError) as error:
            raise ValueError(f"state_dict: generator: {error!r}") from error
        self._progress = progress


def _check_finite(name: str, layer: SparseLayer) -> None:
    values, _ = inside(layer)
    if values.numel() and not all(end.isfinite() for end in values.aminmax()):
        bad = int((~values.isfinite()).sum())
        raise ValueError(f"{name}: {bad} of {layer.topology.nnz} weights are NaN or infinite")
