"""From a configuration to the parts of a run: model, loss, optimiser, schedule and rewiring."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import ConstantLR, CosineAnnealingLR, ExponentialLR, LRScheduler

from ..convert import sparsify
from ..data import Dataset
from ..models import SingleSpikeMLP, SpikingMLP, convnet, resnet19, vggsnn
from ..nn import (
    SparseConv2d,
    SparseLinear,
    TemporalCrossEntropy,
    TemporalLinear,
    TETLoss,
    clip_neuron_grad_norm_,
)
from ..rewire import GROW_RULES, DeepR, DrawnCount, GradientRule, Rewirer, bernoulli
from ..rewire.distribution import DISTRIBUTIONS
from ..rewire.evolver import Evolver
from .config import TrainConfig
from .masked import MaskedLinear, MaskRewirer, mask_layers
from .processes import ALONE, Processes


class Parts(NamedTuple):
    model: nn.Module
    network: nn.Module  # what is trained: the model, or what averages its gradients over processes
    loss: nn.Module
    optimizer: torch.optim.Optimizer
    scheduler: LRScheduler
    rewirer: Evolver | MaskRewirer | None


class MeanLoss(nn.Module):
    """Cross-entropy of the output averaged over time (`[T, N, classes]`)."""

    def forward(self, outputs: Tensor, target: Tensor) -> Tensor:
        return F.cross_entropy(outputs.mean(0), target)


class SingleSpikeLoss(nn.Module):
    """Eq. 6 and what keeps neurons firing and weights small (Mostafa 2018), of outputs `[1, N, classes]`, minus z."""

    def __init__(self, model: SingleSpikeMLP, weight_sum_cost: float, l2: float, scale: float) -> None:
        super().__init__()
        self.layers = [module for module in model.modules() if isinstance(module, TemporalLinear)]
        self.weight_sum_cost, self.l2 = weight_sum_cost, l2
        self.cross_entropy = TemporalCrossEntropy(scale)

    def forward(self, outputs: Tensor, target: Tensor) -> Tensor:
        loss = self.cross_entropy(-outputs.squeeze(0), target)
        for layer in self.layers:
            loss = (
                loss + self.weight_sum_cost * layer.weight_sum_cost() + self.l2 * layer.values.square().sum()
            )
        return loss


def build_model(config: TrainConfig, dataset: Dataset) -> nn.Module:
    """The network alone, as ``build`` makes it; errors likewise."""
    torch.manual_seed(config.seed)
    generator = torch.Generator().manual_seed(config.seed)
    make: Any = {"mlp": _perceptron, "single-spike": _single_spike}.get(config.model, _convolutional)
    model: nn.Module = make(config, dataset, generator)
    return model


def build(config: TrainConfig, dataset: Dataset, total_steps: int, processes: Processes = ALONE) -> Parts:
    """Seeds torch's global generator: the parts depend on the configuration alone.

    Raises:
        ValueError: the model cannot take the data set's samples.
    """
    model = build_model(config, dataset).to(processes.device)
    network = processes.wrap(model)
    optimizer = _optimizer(config, model)
    if config.schedule == "cosine":
        scheduler: LRScheduler = CosineAnnealingLR(optimizer, total_steps)
    elif config.schedule == "exponential":
        scheduler = ExponentialLR(optimizer, 0.01 ** (1 / total_steps))
    else:
        scheduler = ConstantLR(optimizer, factor=1.0)
    return Parts(
        model,
        network,
        _loss(config, model),
        optimizer,
        scheduler,
        _rewirer(config, model, network, optimizer, total_steps),
    )


def _loss(config: TrainConfig, model: nn.Module) -> nn.Module:
    if isinstance(model, SingleSpikeMLP):
        return SingleSpikeLoss(model, config.weight_sum_cost, config.l2, config.z_scale)
    return TETLoss() if config.loss == "tet" else MeanLoss()


def _hidden_densities(config: TrainConfig, dataset: Dataset) -> Iterator[float]:
    if dataset.event:
        raise ValueError(f"model: {config.model} takes still images, {dataset.name} gives frames of events")
    shapes = [(m, n) for n, m in pairwise((dataset.features, *config.hidden))]
    return iter(DISTRIBUTIONS.resolve(config.sharing)(shapes, config.density))


def _single_spike(config: TrainConfig, dataset: Dataset, generator: torch.Generator) -> SingleSpikeMLP:
    densities = _hidden_densities(config, dataset)

    def layer(n: int, m: int) -> TemporalLinear:
        density = 1.0 if config.structure == "dense" else next(densities)
        block_size = "auto" if config.structure == "dense" else config.block_size
        return TemporalLinear(n, m, density=density, block_size=block_size, generator=generator)

    return SingleSpikeMLP(
        dataset.features, config.hidden, dataset.classes, layer=layer, weight_sum=config.weight_sum
    )


def _perceptron(config: TrainConfig, dataset: Dataset, generator: torch.Generator) -> SpikingMLP:
    densities = _hidden_densities(config, dataset)

    def linear(n: int, m: int, input: str) -> nn.Module:
        if config.structure == "dense":
            return nn.Linear(n, m)
        density = next(densities)
        if config.structure == "mask":
            return MaskedLinear(n, m, density=density, generator=generator)
        return SparseLinear(
            n, m, density=density, block_size=config.block_size, input=input, generator=generator
        )

    return SpikingMLP(
        dataset.features,
        config.hidden,
        dataset.classes,
        T=config.T,
        tau=config.tau,
        readout=config.readout,
        linear=linear,
    )


def _convolutional(config: TrainConfig, dataset: Dataset, generator: torch.Generator) -> nn.Module:
    *frames, channels, height, width = dataset.shape
    if height != width:
        raise ValueError(f"data: {config.model} takes square images, {dataset.name} has {height}x{width}")
    if frames and frames[0] != config.T:
        raise ValueError(f"T: expected {frames[0]}, the frames of a sample of {dataset.name}, got {config.T}")
    options: dict[str, Any] = {"T": config.T, "tau": config.tau, "readout": config.readout}
    options |= {"in_channels": channels, "classes": dataset.classes}
    model: nn.Module
    if config.model == "resnet19":
        model = resnet19(**options)
    elif config.model == "vggsnn":
        model = vggsnn(size=height, **options)
    else:
        model = convnet(size=height, channels=config.channels, **options)
    if config.has_blocks:
        sparsify(model, config.density, config.block_size, config.sharing, generator=generator)
        _fix_inputs(model, dataset.event)
    elif config.structure == "mask":
        mask_layers(model, config.density, config.sharing, generator)
    return model


def _fix_inputs(model: nn.Module, binary: bool) -> None:
    """Tensors go to float kernels, except for the network's input if it is binary; packed spikes travel as bits anyway.

    So no batch of images is searched for bits, and no layer does by what it remembers of an earlier batch, of which
    a resumed run knows nothing.
    """
    layers = [m for m in model.modules() if isinstance(m, (SparseConv2d, SparseLinear))]
    for layer in layers[1 if binary else 0 :]:
        layer.input = "float"


def _optimizer(config: TrainConfig, model: nn.Module) -> torch.optim.Optimizer:
    if config.optimizer == "sgd":
        optimizer: torch.optim.Optimizer = torch.optim.SGD(model.parameters(), config.lr, momentum=0.9)
    else:
        kinds = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}
        optimizer = kinds[config.optimizer](model.parameters(), config.lr, fused=True)
    layers = [module for module in model.modules() if isinstance(module, TemporalLinear)]

    def limit(*_: object) -> None:
        for layer in layers:
            clip_neuron_grad_norm_(layer, config.grad_limit)

    if layers:
        optimizer.register_step_pre_hook(limit)
    return optimizer


def _exact(name: str) -> GradientRule:
    rule = GROW_RULES[name]
    assert isinstance(rule, GradientRule)
    return replace(rule, exact=True)


# For comparisons: momentum that follows every absent weight, in dense memory; ITOP's draw, after which densities drift.
EXTRA_GROW_RULES: dict[str, Any] = {
    "momentum_exact": _exact("momentum"),
    "random_bernoulli": DrawnCount(GROW_RULES["random"], bernoulli),
}


def _rewirer(
    config: TrainConfig,
    model: nn.Module,
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    total_steps: int,
) -> Evolver | MaskRewirer | None:
    if not config.evolves:
        return None
    generator = torch.Generator().manual_seed(config.seed)
    t_end = max(1, round(config.t_end * total_steps))
    if config.structure == "deep_r":
        return DeepR(network, optimizer, t_end=t_end, generator=generator)
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
        network,
        optimizer,
        grow=EXTRA_GROW_RULES.get(config.grow, config.grow),
        t_start=round(config.t_start * total_steps),
        redistribute=None if config.redistribute == "none" else config.redistribute,
        **common,
    )
