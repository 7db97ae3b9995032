"""From a configuration to the parts of a run: model, loss, optimiser, schedule and rewiring."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import ConstantLR, CosineAnnealingLR, LRScheduler

from ..data import Dataset
from ..models import SpikingMLP
from ..nn import SparseLinear, TETLoss
from ..rewire import GROW_RULES, DeepR, GradientRule, Rewirer
from ..rewire.evolver import Evolver
from .config import TrainConfig
from .masked import MaskedLinear, MaskRewirer


class Parts(NamedTuple):
    model: nn.Module
    loss: nn.Module
    optimizer: torch.optim.Optimizer
    scheduler: LRScheduler
    rewirer: Evolver | MaskRewirer | None


class MeanLoss(nn.Module):
    """Cross-entropy of the output averaged over time (`[T, N, classes]`)."""

    def forward(self, outputs: Tensor, target: Tensor) -> Tensor:
        return F.cross_entropy(outputs.mean(0), target)


def build(config: TrainConfig, dataset: Dataset, total_steps: int) -> Parts:
    """Seeds torch's global generator: the parts depend on the configuration alone.

    Raises:
        ValueError: the model cannot take the data set's samples.
    """
    if config.model == "mlp" and dataset.event:
        raise ValueError(f"model: {config.model} takes still images, {dataset.name} gives frames of events")
    torch.manual_seed(config.seed)
    model = SpikingMLP(
        dataset.features,
        config.hidden,
        dataset.classes,
        T=config.T,
        tau=config.tau,
        readout=config.readout,
        linear=partial(_linear, config, torch.Generator().manual_seed(config.seed)),
    )
    optimizer = _optimizer(config, model)
    if config.schedule == "cosine":
        scheduler: LRScheduler = CosineAnnealingLR(optimizer, total_steps)
    else:
        scheduler = ConstantLR(optimizer, factor=1.0)
    return Parts(
        model,
        TETLoss() if config.loss == "tet" else MeanLoss(),
        optimizer,
        scheduler,
        _rewirer(config, model, optimizer, total_steps),
    )


def _linear(config: TrainConfig, generator: torch.Generator, n: int, m: int, input: str) -> nn.Module:
    if config.structure == "dense":
        return nn.Linear(n, m)
    if config.structure == "mask":
        return MaskedLinear(n, m, density=config.density, generator=generator)
    return SparseLinear(
        n, m, density=config.density, block_size=config.block_size, input=input, generator=generator
    )


def _optimizer(config: TrainConfig, model: nn.Module) -> torch.optim.Optimizer:
    if config.optimizer == "sgd":
        return torch.optim.SGD(model.parameters(), config.lr, momentum=0.9)
    kinds = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}
    return kinds[config.optimizer](model.parameters(), config.lr, fused=True)


def _exact(name: str) -> GradientRule:
    rule = GROW_RULES[name]
    assert isinstance(rule, GradientRule)
    return replace(rule, exact=True)


# For comparisons: momentum that follows every absent weight, in dense memory.
EXTRA_GROW_RULES = {"momentum_exact": _exact("momentum")}


def _rewirer(
    config: TrainConfig, model: nn.Module, optimizer: torch.optim.Optimizer, total_steps: int
) -> Evolver | MaskRewirer | None:
    if not config.evolves:
        return None
    generator = torch.Generator().manual_seed(config.seed)
    t_end = round(config.t_end * total_steps)
    if config.structure == "deep_r":
        return DeepR(model, optimizer, t_end=t_end, generator=generator)
    common: dict[str, Any] = {
        "prune": config.prune,
        "alpha": config.alpha,
        "interval": config.interval,
        "t_end": t_end,
        "generator": generator,
    }
    if config.structure == "mask":
        return MaskRewirer(model, optimizer, grow=config.grow, **common)
    return Rewirer(
        model,
        optimizer,
        grow=EXTRA_GROW_RULES.get(config.grow, config.grow),
        t_start=round(config.t_start * total_steps),
        redistribute=None if config.redistribute == "none" else config.redistribute,
        **common,
    )
