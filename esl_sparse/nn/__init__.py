"""Drop-in layers for spiking networks with block-sparse weights."""

from .container import MergeTime
from .lif import LIF, reset
from .linear import SparseLinear
from .loss import TETLoss

__all__ = ["LIF", "MergeTime", "SparseLinear", "TETLoss", "reset"]
