"""The network of the paper's first experiment (Mostafa 2018): neurons fire at most once. 784-800-10 by default."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from ..nn import TemporalLinear, binary_times
from ..nn.temporal import INITIAL_SUM


def dense_layer(in_features: int, out_features: int) -> TemporalLinear:
    return TemporalLinear(in_features, out_features, density=1.0)


class SingleSpikeMLP(nn.Module):
    """Images ``[B, ...]`` of values from 0 to 1, ``in_features`` each, to outputs ``[1, B, classes]``: minus each
    output neuron's z = exp(spike time), so that the first to fire is the largest.

    Pixels above a half fire at time 0, the others at ln 6.

    ``layer(in_features, out_features)`` makes the hidden layers; the last one is dense. ``weight_sum`` is what the
    weights of a hidden neuron add up to on average at the start; the larger, the more neurons fire on bright pixels
    alone, before the dark ones have spoken. 4 is Mostafa's.

    Raises:
        ValueError: a weight_sum of 1 or less, with which no neuron would fire.
    """

    def __init__(
        self,
        in_features: int = 784,
        hidden: Sequence[int] = (800,),
        classes: int = 10,
        *,
        layer: Callable[[int, int], TemporalLinear] = dense_layer,
        weight_sum: float = 4.0,
    ) -> None:
        super().__init__()
        if not weight_sum > 1:
            raise ValueError(f"weight_sum: expected more than 1, got {weight_sum!r}")
        self.hidden = nn.ModuleList(layer(n, m) for n, m in pairwise((in_features, *hidden)))
        self.readout = dense_layer(hidden[-1], classes)
        with torch.no_grad():
            for param in self.hidden.parameters():
                param.mul_(weight_sum / INITIAL_SUM)

    def forward(self, images: Tensor) -> Tensor:
        z = binary_times(images.flatten(1))
        for layer in (*self.hidden, self.readout):
            z = layer(z)
        return -z.unsqueeze(0)
