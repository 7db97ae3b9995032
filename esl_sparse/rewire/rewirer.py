from __future__ import annotations

import weakref
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from .apportion import apportion
from .blocks import AbsentBlocks, ActiveBlocks, Choice, check_form, checked, inside
from .ever_active import EverActive
from .evolver import Evolver, LayerUpdate, check_finite, numbers_of_weights
from .grow import GROW_RULES, DrawnCount, GradientRule, GrowRule
from .host import Asking, positions, read, side_by_side, taken
from .journal import Journal
from .layers import SparseLayer, follows_gradients
from .prune import PRUNE_RULES, AcrossLayers, AsksFirst, OwnCount, PruneRule
from .ranks import no_ranks
from .redistribute import REDISTRIBUTIONS, Redistribution
from .schedule import SCHEDULES, Decay, UpdateSchedule
from .sorted_ids import contains_sorted
from .watch import CallCounter, EagerSteps, Watch


class Rewirer(Evolver):
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
            skipped. One of several processes gives its ``DistributedDataParallel``: all ranks then choose the same
            blocks, by the gradient of all (see docs/rewiring.md).
        optimizer: any ``torch.optim`` optimiser whose state holds one slot a weight; it holds the layers'
            values.
        prune: name in ``esl.PRUNE_RULES`` or a function; by default SET's rule.
        grow: name in ``esl.GROW_RULES`` or a function; by default ``"momentum"``: the absent places of largest
            gradient, averaged over the last 20 steps. In these steps ``torch.compile`` steps aside.
        alpha: fraction of the blocks rewired at first. interval: iterations between updates (paper: T_iter).
        t_end: the last iteration at which connections may change (paper: T_end). t_start: the first.
        schedule: how the fraction falls: ``"cosine"`` (paper Eq. 2), ``"linear"``, ``"exponential"``,
            ``"constant"``, or a function ``(alpha, t / t_end) -> fraction``.
        protect: updates for which grown blocks cannot be pruned; the fraction is of the other blocks then.
        redistribute: None: each layer grows as many blocks as it lost. ``"momentum"``, ``"magnitude"``,
            ``"gradient"`` or a function (see ``esl.rewire.REDISTRIBUTIONS``): layers grow in proportion to the
            mean of that over their weights; the total of layers with the same block size stays exact, the
            parameters stay the same objects.
        followers: modules of the same structure that follow ``model``, such as an EMA copy
            (``torch.optim.swa_utils.AveragedModel``).
        generator: source of randomness; by default a new one, seeded from torch's own. Of several ranks that of rank 0
            counts: the others' take over its state.

    Raises:
        ValueError: no sparse layer; sharded parameters; a model that is not wrapped though there are several processes;
            values that the optimiser does not hold; optimiser state that cannot
            follow (LBFGS); followers of another structure; a layer that cannot follow gradients under a rule
            that needs them; at an update, weights or gradients that are NaN or infinite.
        RuntimeError: at an update, ranks that would choose different blocks.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        *,
        prune: str | PruneRule = "set",
        grow: str | GrowRule = "momentum",
        alpha: float = 0.5,
        interval: int = 1000,
        t_end: int,
        t_start: int = 0,
        schedule: str | Decay = "cosine",
        protect: int = 0,
        redistribute: str | Redistribution | None = None,
        followers: Iterable[nn.Module] = (),
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__(model, optimizer, protect=protect, followers=followers, generator=generator)
        self.schedule = UpdateSchedule(SCHEDULES.resolve(schedule), alpha, interval, t_end, t_start)
        self._prune_rule = PRUNE_RULES.resolve(prune)
        self._grow_rule = GROW_RULES.resolve(grow)
        self._redistribution = None if redistribute is None else REDISTRIBUTIONS.resolve(redistribute)
        if redistribute is not None:
            no_ranks(self._ranks, "redistribute")
        if isinstance(self._grow_rule, DrawnCount):
            no_ranks(self._ranks, "grow: a rule that draws its own counts")
        if isinstance(self._grow_rule, DrawnCount) and redistribute is not None:
            raise ValueError("redistribute: the grow rule draws its own counts: leave redistribute out")
        if isinstance(self._grow_rule, GradientRule):
            for name, layer in self._layers.items():
                if not follows_gradients(layer):
                    raise ValueError(
                        f"grow: {name} ({type(layer).__name__}) cannot say what its absent weights' gradients "
                        "are; use 'random' or 'random_unfired'"
                    )
        self._watches: dict[str, Watch] = {}
        self._counters: dict[str, CallCounter] = {}
        self._several: dict[str, bool] = {}
        self._eager = EagerSteps()
        weakref.finalize(self, _close, self._watches, self._counters, self._eager)
        self._prepare()

    @property
    def watched_bytes(self) -> dict[str, int]:
        """By layer: bytes held now to follow gradients; no layer outside of an update's window."""
        return {name: watch.nbytes for name, watch in self._watches.items()}

    # Plan: everything is chosen and checked before anything is written

    def _due(self, iteration: int) -> bool:
        return self.schedule.due(iteration)

    def _plan(self, iteration: int, journal: Journal) -> tuple[float, list[LayerUpdate]]:
        """Prune all layers, then grow all layers."""
        fraction = self.schedule.fraction(iteration)
        layers = self._trained_layers()
        check_finite(layers)
        self._check_followers(layers)
        pruned = self._prune(layers, fraction)
        return fraction, self._grow(layers, pruned, self._counts(layers, pruned))

    def _prune(self, layers: dict[str, SparseLayer], fraction: float) -> dict[str, Tensor]:
        """Positions of the blocks that go, int64 and sorted, by layer."""
        rule = self._prune_rule
        if isinstance(rule, AcrossLayers):
            return self._prune_across(rule, layers, fraction)
        among = self._unprotected(layers)

        def choose(name: str, layer: SparseLayer) -> Asking[Choice]:
            blocks = self._prunable(name, layer, among[name])
            count = round(fraction * blocks.count)
            if count == 0:
                return Choice(blocks.ids.new_empty(0), 0, blocks.count)
            of_blocks = rule.rule if isinstance(rule, OwnCount) else rule
            if isinstance(of_blocks, AsksFirst):
                found = yield from of_blocks.asking(blocks, count)
            else:
                found = of_blocks(blocks, count)
            choice = Choice(found, None if isinstance(rule, OwnCount) else count, blocks.count)
            return check_form("prune", name, choice)

        choices = side_by_side({name: choose(name, layer) for name, layer in layers.items()})
        return _positions(checked("prune", choices), among)

    def _prune_across(
        self, rule: AcrossLayers, layers: dict[str, SparseLayer], fraction: float
    ) -> dict[str, Tensor]:
        among = self._unprotected(layers)
        every = [self._prunable(name, layer, among[name]) for name, layer in layers.items()]
        count = sum(round(fraction * blocks.count) for blocks in every)
        found = rule.rule(every, count) if count else [blocks.ids.new_empty(0) for blocks in every]
        if (got := len(found)) != len(every):
            raise ValueError(
                f"prune: expected the rule to return positions of {len(every)} layers, got {got}"
            )
        chosen = {
            name: check_form("prune", name, Choice(chosen_there, None, blocks.count))
            for name, blocks, chosen_there in zip(layers, every, found, strict=True)
        }
        if (got := sum(choice.found.numel() for choice in chosen.values())) != count:
            raise ValueError(f"prune: expected the rule to choose {count} blocks in all, got {got}")
        return _positions(checked("prune", chosen), among)

    def _unprotected(self, layers: Mapping[str, SparseLayer]) -> dict[str, Tensor | None]:
        """By layer: positions of the blocks that are not protected, None: all."""

        def unprotected(name: str, layer: SparseLayer) -> Asking[Tensor | None]:
            if not (recent := self._progress.recent[name]):
                return None
            ids = self._block_ids(name, layer)
            mask = ~contains_sorted(torch.cat(recent).to(ids.device).sort().values, ids)
            (number,) = yield [mask.sum()]
            return positions(mask, int(number))

        return side_by_side({name: unprotected(name, layer) for name, layer in layers.items()})

    def _prunable(self, name: str, layer: SparseLayer, among: Tensor | None) -> ActiveBlocks:
        """The blocks at these positions, None: all."""
        ids = self._block_ids(name, layer)
        values, valid = inside(layer)
        grad = layer.values.grad
        if grad is not None and valid is not None:
            grad = grad.masked_fill(~valid, 0)
        if among is not None:
            ids, values = ids[among], values[among]
            grad, valid = (None if entries is None else entries[among] for entries in (grad, valid))
        return ActiveBlocks(
            name, layer.topology.layout, ids, values, grad, valid, self._seed(), self.generator
        )

    def _counts(self, layers: dict[str, SparseLayer], pruned: dict[str, Tensor]) -> dict[str, int]:
        """How many blocks each layer grows."""
        counts = {name: positions.numel() for name, positions in pruned.items()}
        if isinstance(self._grow_rule, DrawnCount):
            return {name: self._drawn(self._grow_rule, layers[name], n) for name, n in counts.items()}
        if self._redistribution is None:
            return counts
        worth = self._worth(layers)
        for names in _of_one_block_size(layers):
            room = [
                layers[name].topology.layout.blocks - layers[name].topology.nnzb + counts[name]
                for name in names
            ]
            shared = apportion(sum(counts[name] for name in names), [worth[name] for name in names], room)
            counts.update(zip(names, shared, strict=True))
        return counts

    def _drawn(self, rule: DrawnCount, layer: SparseLayer, pruned: int) -> int:
        topology = layer.topology
        places = topology.layout.blocks - topology.nnzb + pruned
        count = rule.draw(places, pruned, self.generator)
        if not 0 <= count <= places:
            raise ValueError(f"grow: expected a count from 0 to {places}, the rule drew {count}")
        return count

    def _worth(self, layers: dict[str, SparseLayer]) -> dict[str, float]:
        """By layer: mean magnitude of what counts in redistribution. On a GPU the host waits once or twice."""
        sums = read([self._total_worth(name, layer) for name, layer in layers.items()])
        weights = numbers_of_weights([layer.topology for layer in layers.values()])
        worth = {}
        for name, total, number in zip(layers, sums, weights, strict=True):
            mean = worth[name] = total / max(1, number)
            if not mean < float("inf"):
                raise ValueError(f"redistribute: {name}: expected finite numbers, their mean is {mean}")
        return worth

    def _total_worth(self, name: str, layer: SparseLayer) -> Tensor:
        """Sum of magnitudes over the weights that there are, float64 ``[]``."""
        assert self._redistribution is not None
        values, valid = inside(layer)
        try:
            worth = self._redistribution(
                values, layer.values.grad, self.optimizer.state.get(layer.values, {})
            )
        except ValueError as error:
            raise ValueError(f"redistribute: {name}: {error}") from error
        if valid is not None:
            worth = worth.masked_fill(~valid, 0)
        return worth.abs().sum(dtype=torch.float64)

    def _grow(
        self, layers: dict[str, SparseLayer], pruned: dict[str, Tensor], counts: dict[str, int]
    ) -> list[LayerUpdate]:
        stays, choices, notes = {}, {}, {}
        records = self._records(layers)
        sizes = self._gradient_sizes([name for name in layers if counts[name]])
        for name, layer in layers.items():
            stays[name] = torch.ones(layer.topology.nnzb, dtype=torch.bool, device=pruned[name].device)
            stays[name].index_fill_(0, pruned[name], False)
            choices[name], notes[name] = self._choose(
                name, layer, stays[name], pruned[name], counts[name], records[name], sizes.get(name, [])
            )
        grown = checked("grow", choices)

        def moved(name: str, layer: SparseLayer) -> Asking[LayerUpdate]:
            known = yield from self._known_places(name, layer, grown[name], records[name])
            stay, record, count = stays.pop(name), records.pop(name), pruned[name].numel()
            return self._moved(name, layer, stay, count, grown[name], record, known, note=notes[name])

        return [*side_by_side({name: moved(name, layer) for name, layer in layers.items()}).values()]

    def _choose(
        self,
        name: str,
        layer: SparseLayer,
        stays: Tensor,
        pruned: Tensor,
        count: int,
        record: EverActive,
        sizes: list[float],
    ) -> tuple[Choice, str]:
        """Ids to grow, and what could not be done.

        ``record`` is what was ever active till now, ``sizes`` are those of the watch that follows the layer's gradient.
        """
        ids, layout = self._block_ids(name, layer), layer.topology.layout
        seed = self._seed()
        if count == 0:
            return Choice(ids.new_empty(0), 0, layout.blocks), ""
        rule, candidates, note = self._grow_rule, None, ""
        active, gone = taken(ids, stays, ids.numel() - pruned.numel()), ids[pruned]
        del ids  # with blocks of 1x1 ids are what takes memory
        if isinstance(rule, GradientRule):
            if name in self._watches:
                candidates, note = self._watches[name].candidates(pruned, gone, sizes)
            else:
                note = "frozen when its gradient was to be followed: grown at random"
            if candidates is None:
                rule = GROW_RULES["random"]
        del gone
        absent = AbsentBlocks(name, layout, active, record, seed, self.generator, candidates)
        choice = check_form("grow", name, Choice(rule(absent, count), count, layout.blocks))
        del absent, candidates
        is_active = contains_sorted(active, choice.found).any()
        why = f"the rule chose blocks of {name} that are active"
        return replace(choice, at_odds=is_active, why=why), note

    # Gradients of absent places

    def _gradient_sizes(self, names: Iterable[str]) -> dict[str, list[float]]:
        """Of the watches of these layers, where a rule needs them. On a GPU the host waits once."""
        if not isinstance(self._grow_rule, GradientRule):
            return {}
        asked = {name: self._watches[name].sizes() for name in names if name in self._watches}
        found = iter(read([size for sizes in asked.values() for size in sizes]))
        return {name: [next(found) for _ in sizes] for name, sizes in asked.items()}

    def _after_optimizer_step(self) -> None:
        for watch in self._watches.values():
            watch.commit()

    def _failed(self) -> None:
        for watch in self._watches.values():
            watch.failed()

    def _skipped(self) -> None:
        for watch in self._watches.values():
            watch.discard()
        for counter in self._counters.values():
            counter.calls = 0

    def _prepare(self) -> None:
        """Watch the coming step if it belongs to the window of an update; count calls in the one before."""
        rule = self._grow_rule
        if not isinstance(rule, GradientRule):
            return
        calls = {name: counter.calls for name, counter in self._counters.items()}
        calls.update({name: watch.calls for name, watch in self._watches.items()})
        self._several.update({name: n > 1 for name, n in calls.items() if n})
        into = self._into_window(rule)
        if into is None or into <= 0:
            _clear(self._watches)
        _clear(self._counters)
        if into == 0:
            self._watches.update(self._new_watches(rule))
        elif into == -1:
            self._counters.update({name: CallCounter(x) for name, x in self._trained_layers().items()})
        for watch in self._watches.values():
            watch.calls = 0
        self._eager.switch(on=bool(self._watches or self._counters))

    def _into_window(self, rule: GradientRule) -> int | None:
        """Steps from the start of the next update's window to the coming step; None: there is no next update."""
        update = self.schedule.next(self.iteration)
        return None if update is None else self.iteration + self._window(rule) - update

    def _is_watching(self, rule: GradientRule) -> bool:
        into = self._into_window(rule)
        return into is not None and into >= 0

    def _window(self, rule: GradientRule) -> int:
        return min(rule.window, self.schedule.interval)

    def _new_watches(
        self, rule: GradientRule, saved: Mapping[str, Mapping[str, Any]] | None = None
    ) -> dict[str, Watch]:
        """Of all layers; with what was saved of them, where it was."""
        update = self.schedule.next(self.iteration)
        assert update is not None
        layers = self._trained_layers()
        most = self._most_grown(layers, self.schedule.fraction(update))
        watches: dict[str, Watch] = {}
        try:
            for name, layer in layers.items():
                seed = 0 if saved and name in saved else self._seed()
                several = self._several.get(name)
                watch = Watch(name, layer, rule, most[name], self._window(rule), seed, several, self._ranks)
                watches[name] = watch
                if saved and name in saved:
                    watch.load_state_dict(saved[name])
        except BaseException:
            _clear(watches)
            raise
        return watches

    def _most_grown(self, layers: dict[str, SparseLayer], fraction: float) -> dict[str, int]:
        """The most blocks that an update can make each layer grow."""
        most = {name: layer.topology.nnzb for name, layer in layers.items()}
        if not isinstance(self._prune_rule, OwnCount):
            pruned = {name: round(fraction * nnzb) for name, nnzb in most.items()}
            if isinstance(self._prune_rule, AcrossLayers):
                total = sum(pruned.values())
                pruned = {name: min(total, nnzb) for name, nnzb in most.items()}
            most = pruned
        if self._redistribution is not None:
            for names in _of_one_block_size(layers):
                most.update(dict.fromkeys(names, sum(most[name] for name in names)))
        return most

    # Checkpoints

    def state_dict(self) -> dict[str, Any]:
        """Iteration, random state, what was ever active, and gradients followed so far.

        With it a resumed run chooses as this one would. Tensors and plain values: ``torch.load(weights_only=True)``
        reads it. Taken between ``step`` and the next backward.
        """
        watches = {name: watch.state_dict() for name, watch in self._watches.items()}
        return {**super().state_dict(), "watches": watches, "several": dict(self._several)}

    def _load(self, state: Mapping[str, Any]) -> None:
        rule, watches = self._grow_rule, {}
        several, saved = state.get("several"), state.get("watches")
        if not isinstance(several, dict) or not isinstance(saved, dict):
            raise ValueError("state_dict: expected watches and several by layer")
        for name, flag in several.items():
            if name not in self._layers or not isinstance(flag, bool):
                raise ValueError(
                    f"state_dict: several: expected a flag for each layer, got {name!r}: {flag!r}"
                )
        if saved and not self._trained_layers().keys() <= saved.keys() <= self._layers.keys():
            raise ValueError(f"state_dict: watches: expected one for each layer, got {[*saved]}")
        if isinstance(rule, GradientRule) and self._is_watching(rule):
            try:
                watches = self._new_watches(rule, saved)
            except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
                raise ValueError(f"state_dict: watches: {error!r}") from error
        _clear(self._watches)
        self._watches.update(watches)
        self._several.clear()
        self._several.update(several)
        _clear(self._counters)
        if isinstance(rule, GradientRule) and self._into_window(rule) == -1:
            self._counters.update({name: CallCounter(x) for name, x in self._trained_layers().items()})
        self._eager.switch(on=bool(self._watches or self._counters))


def _positions(chosen: dict[str, Tensor], among: dict[str, Tensor | None]) -> dict[str, Tensor]:
    """Positions among a layer's blocks, of those among the ones that could be chosen (None: all)."""
    for name, some in among.items():
        if some is not None:
            chosen[name] = some[chosen[name]]
    return chosen


def _of_one_block_size(layers: Mapping[str, SparseLayer]) -> list[list[str]]:
    """Names of the layers whose blocks hold equally many weights: blocks can move between them."""
    groups: dict[int, list[str]] = {}
    for name, layer in layers.items():
        layout = layer.topology.layout
        groups.setdefault(layout.bm * layout.bn, []).append(name)
    return list(groups.values())


def _clear(watches: dict[str, Any]) -> None:
    for watch in watches.values():
        watch.close()
    watches.clear()


def _close(watches: dict[str, Watch], counters: dict[str, CallCounter], eager: EagerSteps) -> None:
    _clear(watches)
    _clear(counters)
    eager.switch(on=False)
