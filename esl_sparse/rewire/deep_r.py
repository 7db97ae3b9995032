from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from .._cuda import sent
from ..topology import random_absent_ids
from .blocks import inside
from .ever_active import EverActive
from .evolver import Evolver, LayerUpdate, check_finite
from .host import Asking, side_by_side, taken
from .journal import Journal
from .layers import SparseLayer, stamp
from .report import RewireReport


class DeepR(Evolver):
    """Deep R (Bellec et al. 2018): synapses of fixed sign walk at random and are replaced where they reach zero.

    After each optimiser step, with the learning rate eta of the layer's parameter group, every weight moves by
    ``-eta * l1 * sign + sqrt(2 * eta * temperature) * normal``. Every ``interval`` steps the connections whose
    weight has changed its sign are removed, and as many are grown, uniformly among all places without one, with
    weight 0 and a random sign. A block counts by the sum of its weights; with 1x1 blocks it is the connection.
    What moves with a block, followers and the guarantees are those of ``Rewirer``; a removed place that is
    drawn again starts anew.

        deep_r = esl.DeepR(model, optimizer)
        for x, y in loader:
            ...
            optimizer.step()
            deep_r.step()

    Args:
        model, optimizer, followers, generator: as for ``Rewirer``.
        l1: strength of the pull towards zero (alpha in the reference). temperature: of the walk.
        interval: iterations between replacements; 1 in the reference.
        t_end: the last iteration at which weights walk and connections change; None: there is no end.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        *,
        l1: float = 1e-4,
        temperature: float = 1e-8,
        interval: int = 1,
        t_end: int | None = None,
        followers: Iterable[nn.Module] = (),
        generator: torch.Generator | None = None,
    ) -> None:
        for name, number in (("l1", l1), ("temperature", temperature)):
            if not 0 <= number < math.inf:
                raise ValueError(f"{name}: expected a number of at least 0, got {number!r}")
        for name, n in (("interval", interval), ("t_end", 1 if t_end is None else t_end)):
            if not isinstance(n, int) or isinstance(n, bool):
                raise TypeError(f"{name}: expected a number of iterations (int), got {type(n).__name__}")
            if n < 1:
                raise ValueError(f"{name}: expected at least 1, got {n}")
        super().__init__(model, optimizer, protect=0, followers=followers, generator=generator)
        self.l1, self.temperature, self.interval, self.t_end = l1, temperature, interval, t_end
        self._signs = {name: self._signs_of(layer) for name, layer in self._layers.items()}
        self._prepare()

    def step(self) -> RewireReport | None:
        """Call after each ``optimizer.step()``; as ``Rewirer.step``."""
        report = super().step()
        return report if report is not None and report.layers else None

    def _due(self, iteration: int) -> bool:
        return self.t_end is None or iteration <= self.t_end

    def _plan(self, iteration: int, journal: Journal) -> tuple[float, list[LayerUpdate]]:
        layers = self._trained_layers()
        check_finite(layers)
        for name, layer in layers.items():
            if self._stamps[name] != stamp(layer):  # other blocks were loaded
                signs = dict(self._signs)
                signs[name] = self._signs_of(layer)
                journal.assign(self, "_signs", signs)
            self._walk(name, layer, journal)
        if iteration % self.interval:
            return 0.0, []
        self._check_followers(layers)
        records = self._records(layers)
        replaced = side_by_side(
            {name: self._replace(name, layer, records[name]) for name, layer in layers.items()}
        )
        updates = [*replaced.values()]
        active = sum(layer.topology.nnzb for layer in layers.values())
        return sum(update.pruned for update in updates) / max(1, active), updates

    def _prepare(self) -> None:
        self._stamps = {name: stamp(layer) for name, layer in self._layers.items()}

    def _walk(self, name: str, layer: SparseLayer, journal: Journal) -> None:
        values, eta = layer.values, float(self._group(name, layer)["lr"])
        sign = self._signs[name].to(values.device)[:, None, None]
        moved = values.detach() - (eta * self.l1) * sign.to(values.dtype)
        if self.temperature:
            device = self.generator.device
            noise = torch.randn(values.shape, generator=self.generator, device=device, dtype=torch.float32)
            noise = sent(noise, values.device).to(values.dtype)
            moved.add_(noise, alpha=math.sqrt(2 * eta * self.temperature))
        journal.write_(values, moved)

    def _replace(self, name: str, layer: SparseLayer, record: EverActive) -> Asking[LayerUpdate]:
        signs = self._signs[name]
        stays = inside(layer)[0].sum((1, 2), dtype=torch.float32) * signs.to(layer.values.device) >= 0
        (number,) = yield [stays.sum()]
        staying, count = int(number), len(stays) - int(number)
        active = taken(self._block_ids(name, layer), stays, staying)
        chosen = random_absent_ids(active, layer.topology.layout.blocks, count, self.generator)
        del active
        more = [(signs, sent(self._random_signs(count), signs.device))]
        known = yield from self._known_places(name, layer, chosen, record)
        return self._moved(name, layer, stays, count, chosen, record, known, more=more, renew=True)

    def _signs_of(self, layer: SparseLayer) -> Tensor:
        """int8 ``[nnzb]``, -1 or 1: that of each block's sum; zero blocks get a random one."""
        sums = inside(layer)[0].sum((1, 2), dtype=torch.float32)
        return torch.where(
            sums == 0, sent(self._random_signs(len(sums)), sums.device), sums.sign().to(torch.int8)
        )

    def _random_signs(self, count: int) -> Tensor:
        device = self.generator.device
        return (torch.randint(2, (count,), generator=self.generator, device=device) * 2 - 1).to(torch.int8)

    # Checkpoints

    def state_dict(self) -> dict[str, Any]:
        """As ``Rewirer.state_dict``, with the synapses' signs."""
        return {**super().state_dict(), "signs": dict(self._signs)}

    def _load(self, state: Mapping[str, Any]) -> None:
        saved, signs = state.get("signs"), {}
        if not isinstance(saved, dict):
            raise ValueError("state_dict: expected signs by layer")
        for name, layer in self._layers.items():
            sign, n = saved.get(name), layer.topology.nnzb
            if not isinstance(sign, Tensor) or sign.dtype != torch.int8 or tuple(sign.shape) != (n,):
                raise ValueError(
                    f"state_dict: {name}: expected {n} signs as int8; load the model's state first"
                )
            if not bool((sign.abs() == 1).all()):
                raise ValueError(f"state_dict: {name}: signs are not all -1 or 1")
            signs[name] = sign.to(layer.values.device, copy=True)
        self._signs = signs
        self._prepare()
