from __future__ import annotations

import math
import weakref
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ..topology import BlockTopology
from .ever_active import EverActive
from .host import Asking, is_remote, magnitude, read, side_by_side
from .journal import Journal
from .layers import SparseLayer, following_layers, rewirable_layers, stamp
from .optimizer_state import InitialSlots, param_group, slots
from .progress import Progress, last
from .ranks import ranks_of
from .report import LayerReport, RewireReport
from .rewiring import Rewiring
from .sorted_ids import contains_sorted


@dataclass(frozen=True)
class LayerUpdate:
    """What one update is going to do to one layer."""

    name: str
    rewiring: Rewiring
    topologies: list[BlockTopology]  # of the layer and its followers: rewritten
    carried: list[tuple[Tensor, Tensor | float]]  # what goes with the blocks, and what grown ones get of it
    pruned: int
    ever_active: EverActive
    note: str = ""

    def report(self, weights: int) -> LayerReport:
        """``weights``: how many there are now."""
        layout, grown = self.rewiring.topology.layout, self.rewiring.grown.numel()
        density = weights / max(1, layout.rows * layout.cols)
        return LayerReport(self.name, self.pruned, grown, density, self.ever_active.share, self.note)

    def write(self, journal: Journal) -> None:
        if self.rewiring.grown.numel() == 0 and self.rewiring.topology.nnzb == self.topologies[0].nnzb:
            return
        for tensor, fill in self.carried:
            journal.write_(tensor, self.rewiring.carry(tensor, fill))
        for i, topology in enumerate(self.topologies):
            for own, new in zip(
                topology.index_tensors(), self.rewiring.topology.index_tensors(), strict=True
            ):
                journal.write_(own, new.clone() if i else new)  # a copy has an index of its own


@dataclass(frozen=True)
class ChosenPlaces:
    """What the host knows of a layer's chosen places: on a GPU, where it asked for all layers together; elsewhere None.

    Attributes:
        regrown: those that hold a block before the update. fresh: those that never held one.
    """

    regrown: int | None = None
    fresh: int | None = None


class Evolver:
    """Base of the methods that rewire a model while it trains.

    It counts the optimiser's steps, moves blocks with all that belongs to them (gradient, optimiser slots,
    followers), remembers which blocks were ever active, and makes an update happen whole or not at all. A
    subclass says when (`_due`) and what (`_plan`).
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        *,
        protect: int,
        followers: Iterable[nn.Module],
        generator: torch.Generator | None,
    ) -> None:
        if not isinstance(optimizer, Optimizer):
            raise TypeError(f"optimizer: expected a torch.optim.Optimizer, got {type(optimizer).__name__}")
        if not isinstance(protect, int) or protect < 0:
            raise ValueError(f"protect: expected a number of updates, 0 or more, got {protect!r}")
        self.optimizer = optimizer
        self.protect = protect
        model, self._ranks = ranks_of(model, optimizer)
        self._layers = rewirable_layers(model)
        self._followers = [following_layers(self._layers, follower) for follower in followers]
        if generator is None:
            seed = int(torch.randint(torch.iinfo(torch.int64).max, (), device="cpu"))
            generator = torch.Generator(device="cpu").manual_seed(seed)
        self.generator = generator
        if self._ranks is not None:
            self._ranks.share(generator)
        self._initial_slots = InitialSlots(optimizer)
        self._ids: dict[str, Tensor] = {}
        self._progress = Progress.start(self._layers)
        self._recorded = {name: stamp(layer) for name, layer in self._layers.items()}  # blocks that it knows
        self._check_followers(self._trained_layers())
        for name, layer in self._trained_layers().items():
            self._carried(name, layer, self._copies(name))  # can all of it follow? Say so now
        self._stepped = False
        _after_each_step(self)

    @property
    def iteration(self) -> int:
        """Optimiser steps that ``step`` was called for."""
        return self._progress.iteration

    @property
    def ever_active(self) -> Mapping[str, EverActive]:
        """By layer: the record of the blocks that have been active at any time."""
        return self._progress.ever_active

    @torch.no_grad()
    def step(self) -> RewireReport | None:
        """Call after each ``optimizer.step()``. Rewires when it is time, and then says what it did.

        A call without an optimiser step since the last one (``GradScaler`` skips those with an overflow) is not
        counted. If anything raises, model, optimiser, followers and this object are as before the call.
        """
        if not self._stepped:
            self._skipped()
            return None
        iteration = self.iteration + 1
        try:
            report = self._update(iteration) if self._due(iteration) else None
        except BaseException:
            self._failed()
            raise
        finally:
            self._ids.clear()
        if report is None:
            self._progress = replace(self._progress, iteration=iteration)
        self._stepped = False
        self._prepare()
        return report

    def _update(self, iteration: int) -> RewireReport:
        with Journal() as journal:
            generator_state = self.generator.get_state()
            journal.note(lambda: self.generator.set_state(generator_state))
            fraction, updates = self._plan(iteration, journal)
            weights = numbers_of_weights([update.rewiring.topology for update in updates])
            layers = tuple(map(LayerUpdate.report, updates, weights))
            report = RewireReport(iteration, fraction, layers)
            if self._ranks is not None:
                self._ranks.check_same({update.name: update.rewiring.topology for update in updates})
            progress = self._progress_after(iteration, updates)
            for update in updates:
                update.write(journal)
            journal.assign(self, "_progress", progress)
        self._recorded |= {update.name: stamp(self._layers[update.name]) for update in updates}
        return report

    # What a method decides

    def _due(self, iteration: int) -> bool:
        raise NotImplementedError

    def _plan(self, iteration: int, journal: Journal) -> tuple[float, list[LayerUpdate]]:
        """The fraction to rewire and what becomes of each layer, chosen and checked before anything is written.

        What is written on the way goes into the journal.
        """
        raise NotImplementedError

    def _prepare(self) -> None:
        """Look ahead to the next training step."""

    def _failed(self) -> None:
        """The update was taken back; the same iteration will be tried again."""

    def _skipped(self) -> None:
        """The optimiser did not take the step whose gradients may have been seen."""

    def _after_optimizer_step(self) -> None:
        """The optimiser has taken a step; gradients are still there."""

    # For subclasses

    def _moved(
        self,
        name: str,
        layer: SparseLayer,
        stays: Tensor,
        pruned: int,
        chosen: Tensor,
        record: EverActive,
        known: ChosenPlaces,
        *,
        more: Iterable[tuple[Tensor, Tensor | float]] = (),
        renew: bool = False,
        note: str = "",
    ) -> LayerUpdate:
        """The update that leaves the blocks that stay, all but ``pruned``, and adds the chosen ids.

        ``record`` is the ever-active one before. ``more`` goes with the blocks.
        """
        record = record.including(chosen, known.fresh)
        ids = self._ids.pop(name, None)
        staying = stays.numel() - pruned
        rewiring = Rewiring.of(layer.topology, ids, stays, staying, chosen, renew, known.regrown)
        copies = self._copies(name)
        topologies = [layer.topology, *(copy.topology for copy in copies)]
        carried = [*self._carried(name, layer, copies), *more]
        return LayerUpdate(name, rewiring, topologies, carried, pruned, record, note)

    def _known_places(
        self, name: str, layer: SparseLayer, chosen: Tensor, record: EverActive
    ) -> Asking[ChosenPlaces]:
        """What the host is to know of the ids chosen for a layer on a GPU; elsewhere nothing."""
        if not is_remote(chosen):
            return ChosenPlaces()
        is_there, was_there = contains_sorted(self._block_ids(name, layer), chosen), record.contains(chosen)
        regrown, fresh = yield [is_there.sum(), (~was_there).sum()]
        return ChosenPlaces(int(regrown), int(fresh))

    def _block_ids(self, name: str, layer: SparseLayer) -> Tensor:
        """Of the present topology. On a GPU, where launches take longer than memory, made once an update."""
        if not is_remote(layer.values):
            return layer.topology.block_ids()
        if name not in self._ids:
            self._ids[name] = layer.topology.block_ids()
        return self._ids[name]

    def _records(self, layers: Mapping[str, SparseLayer]) -> dict[str, EverActive]:
        """The ever-active records with the blocks that are there: some may have been loaded since."""

        def record(name: str, layer: SparseLayer) -> Asking[EverActive]:
            before = self._progress.ever_active[name].to(layer.values.device)
            if self._recorded.get(name) == stamp(layer):
                return before
            ids = self._block_ids(name, layer)
            (fresh,) = yield [(~before.contains(ids)).sum()]
            return before.including(ids, int(fresh))

        return side_by_side({name: record(name, layer) for name, layer in layers.items()})

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
        group = self._group(name, layer)
        initial = self._initial_slots.of(name, group, layer.values)
        carried.extend(slots(self.optimizer, group, layer.values, initial))
        return carried

    def _copies(self, name: str) -> list[SparseLayer]:
        """The followers' copies of a layer."""
        return [follower[name] for follower in self._followers]

    def _check_followers(self, layers: Mapping[str, SparseLayer]) -> None:
        """Raise unless the blocks of all copies stand where the layers' do. On a GPU the host waits once."""
        doubts = []
        for name, layer in layers.items():
            for copy in self._copies(name):
                pairs = [*zip(copy.topology.index_tensors(), layer.topology.index_tensors(), strict=True)]
                if any(theirs.shape != ours.shape for theirs, ours in pairs):
                    doubts.append((name, torch.ones((), dtype=torch.bool, device=layer.values.device)))
                else:
                    doubts.extend((name, (theirs.to(ours.device) != ours).any()) for theirs, ours in pairs)
        for (name, _), differs in zip(doubts, read([doubt for _, doubt in doubts]), strict=True):
            if differs:
                raise ValueError(f"followers: the blocks of {name} stand elsewhere than in the model")

    def _progress_after(self, iteration: int, updates: list[LayerUpdate]) -> Progress:
        ever_active, recent = dict(self._progress.ever_active), dict(self._progress.recent)
        for update in updates:
            ever_active[update.name] = update.ever_active
            grown = update.rewiring.topology.block_ids()[update.rewiring.grown] if self.protect else None
            recent[update.name] = () if grown is None else last((*recent[update.name], grown), self.protect)
        return Progress(iteration, ever_active, recent)

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
        """Continue from ``state_dict``, once the model's is loaded.

        Nothing is changed unless all of it fits; else ``ValueError``.
        """
        progress = Progress.from_state_dict(state, self._layers, self.protect)
        with Journal() as journal:
            before = self.generator.get_state()
            journal.note(lambda: self.generator.set_state(before))
            try:
                self.generator.set_state(state["generator"])
            except (KeyError, RuntimeError, TypeError) as error:
                raise ValueError(f"state_dict: generator: {error!r}") from error
            journal.assign(self, "_progress", progress)
            self._load(state)
        self._stepped = False
        self._recorded = {}

    def _load(self, state: Mapping[str, Any]) -> None:
        """Take over what a subclass saved beside this class's state; the last thing that can fail."""


def numbers_of_weights(topologies: Sequence[BlockTopology]) -> list[int]:
    """``nnz`` of each. For those whose blocks overhang the host waits once, on a GPU."""
    counted = [t.layout.overhangs for t in topologies]
    found = iter(
        read([t.count_entries() for t, is_counted in zip(topologies, counted, strict=True) if is_counted])
    )
    return [
        int(next(found)) if is_counted else t.nnz for t, is_counted in zip(topologies, counted, strict=True)
    ]


def check_finite(layers: Mapping[str, SparseLayer]) -> None:
    """Raise unless all weights, and the gradients if there are any, are finite. On a GPU the host waits once."""
    whose = [(name, what) for name in layers for what in ("weights", "gradients")]
    sizes = read([magnitude(_entries(layers[name], what)) for name, what in whose])
    for (name, what), size in zip(whose, sizes, strict=True):
        if not math.isfinite(size):
            bad, nnz = int((~_entries(layers[name], what).isfinite()).sum()), layers[name].topology.nnz
            raise ValueError(f"{name}: {bad} of {nnz} {what} are NaN or infinite")


def _entries(layer: SparseLayer, what: str) -> Tensor:
    """Those inside the weight; of no gradients, none."""
    tensor = layer.values.detach() if what == "weights" else layer.values.grad
    if tensor is None:
        return layer.values.new_empty(0)
    topology = layer.topology
    return tensor.masked_fill(~topology.valid(), 0) if topology.layout.overhangs else tensor


def _after_each_step(evolver: Evolver) -> None:
    """Tell the evolver, as long as there is one, of every step that its optimiser takes."""
    there = weakref.ref(evolver)

    def stepped(optimizer: Optimizer, *_: Any) -> None:
        found_inf = getattr(optimizer, "found_inf", None)  # given by GradScaler to fused optimisers
        owner = there()
        if owner is not None and not (found_inf is not None and bool(found_inf)):
            owner._stepped = True
            with torch.no_grad():
                owner._after_optimizer_step()

    weakref.finalize(evolver, evolver.optimizer.register_step_post_hook(stepped).remove)
