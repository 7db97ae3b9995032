"""The layers that hold weights, dense, masked or block-sparse, what they cost, and how often neurons fire."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

from ..energy import mean_of
from ..nn import LIF, SparseConv2d, SparseLinear, SpikingBlock, TemporalLinear
from .masked import MaskedLayer
from .records import WeightState

SparseWeight = SparseLinear | SparseConv2d | TemporalLinear
WeightLayer = SparseWeight | nn.Linear | nn.Conv2d


def weight_layers(model: nn.Module) -> Iterator[tuple[str, WeightLayer]]:
    for name, module in model.named_modules():
        if isinstance(module, WeightLayer):
            yield name, module


def active_weights(layer: WeightLayer) -> int:
    return layer.nnz if isinstance(layer, (SparseWeight, MaskedLayer)) else layer.weight.numel()


def total_weights(layer: WeightLayer) -> int:
    if not isinstance(layer, SparseWeight):
        return layer.weight.numel()
    layout = layer.topology.layout
    return layout.rows * layout.cols


def densities(model: nn.Module) -> dict[str, float]:
    return {name: active_weights(layer) / total_weights(layer) for name, layer in weight_layers(model)}


def weight_state(model: nn.Module, optimizer: torch.optim.Optimizer) -> WeightState:
    """Count after a step, while the gradients are there. Biases are left out on both sides."""
    values = index = gradient = slots = dense = 0
    for _, layer in weight_layers(model):
        weight = layer.values if isinstance(layer, SparseWeight) else layer.weight
        state = [slot for slot in optimizer.state[weight].values() if torch.is_tensor(slot)]
        like_weight = sum(slot.shape == weight.shape for slot in state)
        values += weight.nbytes
        index += sum(buffer.nbytes for buffer in layer.buffers(recurse=False))
        gradient += weight.grad.nbytes if weight.grad is not None else 0
        slots += sum(slot.nbytes for slot in state)
        dense += total_weights(layer) * weight.element_size() * (2 + like_weight)
    return WeightState(values, index, gradient, slots, dense)


class FiringRates:
    """Mean spikes per neuron and step of every layer of neurons in its last training call; of neurons that fire once,
    how many do.

    That of a `SpikingBlock` is the mean of what leaves it: averages over pixels keep the mean, but for the last row and
    column where the pool leaves them out.
    """

    def __init__(self, model: nn.Module) -> None:
        self.last: dict[str, float] = {}
        inside = {block.lif for block in model.modules() if isinstance(block, SpikingBlock)}
        for name, module in model.named_modules():
            if isinstance(module, SpikingBlock) or (isinstance(module, LIF) and module not in inside):
                module.register_forward_hook(self._hook(name, mean_of))
            elif isinstance(module, TemporalLinear):
                module.register_forward_hook(self._hook(name, lambda z: mean_of(z.isfinite().float())))

    def _hook(self, name: str, rate: Callable[[Any], float]) -> Callable[..., None]:
        def record(module: nn.Module, args: object, spikes: Any) -> None:
            if module.training:
                self.last[name] = rate(spikes)

        return record
