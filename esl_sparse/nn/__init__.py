"""Drop-in layers for spiking networks with block-sparse weights."""

from .container import MergeTime
from .lif import LIF, reset
from .linear import SparseLinear
from .loss import TETLoss
from .pool import AdaptiveAvgPool2d, AvgPool2d, MaxPool2d

__all__ = [
    "LIF",
    "AdaptiveAvgPool2d",
    "AvgPool2d",
    "MaxPool2d",
    "MergeTime",
    "SparseLinear",
    "TETLoss",
    "reset",
]
