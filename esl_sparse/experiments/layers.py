"""The layers that hold weights, dense, masked or block-sparse, and what they cost."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn

from ..nn import LIF, SparseLinear
from .masked import MaskedLinear
from .records import WeightState


def weight_layers(model: nn.Module) -> Iterator[tuple[str, SparseLinear | nn.Linear]]:
    for name, module in model.named_modules():
        if isinstance(module, (SparseLinear, nn.Linear)):
            yield name, module


def active_weights(layer: SparseLinear | nn.Linear) -> int:
    return layer.nnz if isinstance(layer, (SparseLinear, MaskedLinear)) else layer.weight.numel()


def total_weights(layer: SparseLinear | nn.Linear) -> int:
    return layer.in_features * layer.out_features


def densities(model: nn.Module) -> dict[str, float]:
    return {name: active_weights(layer) / total_weights(layer) for name, layer in weight_layers(model)}


def weight_state(model: nn.Module, optimizer: torch.optim.Optimizer) -> WeightState:
    """Count after a step, while the gradients are there. Biases are left out on both sides."""
    values = index = gradient = slots = dense = 0
    for _, layer in weight_layers(model):
        weight = layer.values if isinstance(layer, SparseLinear) else layer.weight
        state = [slot for slot in optimizer.state[weight].values() if torch.is_tensor(slot)]
        like_weight = sum(slot.shape == weight.shape for slot in state)
        values += weight.nbytes
        index += sum(buffer.nbytes for buffer in layer.buffers(recurse=False))
        gradient += weight.grad.nbytes if weight.grad is not None else 0
        slots += sum(slot.nbytes for slot in state)
        dense += total_weights(layer) * weight.element_size() * (2 + like_weight)
    return WeightState(values, index, gradient, slots, dense)


class FiringRates:
    """Mean spikes per neuron and step of every LIF layer's last training call."""

    def __init__(self, model: nn.Module) -> None:
        self.last: dict[str, float] = {}
        for name, module in model.named_modules():
            if isinstance(module, LIF):
                module.register_forward_hook(self._hook(name))

    def _hook(self, name: str):
        def record(module: nn.Module, args: object, spikes: torch.Tensor) -> None:
            if module.training:
                self.last[name] = spikes.detach().mean().item()

        return record
