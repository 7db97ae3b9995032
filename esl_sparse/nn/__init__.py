"""Drop-in layers for spiking networks with block-sparse weights."""

from .block import SpikingBlock
from .container import MergeTime
from .conv import SparseConv1d, SparseConv2d
from .lif import LIF, reset
from .linear import SparseLinear
from .loss import TETLoss

__all__ = [
    "LIF",
    "MergeTime",
    "SparseConv1d",
    "SparseConv2d",
    "SparseLinear",
    "SpikingBlock",
    "TETLoss",
    "reset",
]
