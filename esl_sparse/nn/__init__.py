"""Drop-in layers for spiking networks with block-sparse weights."""

from .block import SpikingBlock
from .container import MergeTime
from .conv import SparseConv1d, SparseConv2d
from .lif import LIF, reset
from .linear import SparseLinear
from .loss import TETLoss
from .pool import AdaptiveAvgPool2d, AvgPool2d, MaxPool2d
from .temporal import (
    TemporalCrossEntropy,
    TemporalLinear,
    binary_times,
    clip_neuron_grad_norm_,
    latency_times,
)

__all__ = [
    "LIF",
    "AdaptiveAvgPool2d",
    "AvgPool2d",
    "MaxPool2d",
    "MergeTime",
    "SparseConv1d",
    "SparseConv2d",
    "SparseLinear",
    "SpikingBlock",
    "TETLoss",
    "TemporalCrossEntropy",
    "TemporalLinear",
    "binary_times",
    "clip_neuron_grad_norm_",
    "latency_times",
    "reset",
]
