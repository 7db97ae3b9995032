"""Spiking neural networks, sparse from the first iteration to the last.

A spike is one bit, a weight is a block, and nothing dense ever exists.
"""

from . import functional, nn
from ._backends import backends
from ._version import __version__
from .arena import arena
from .convert import densify, sparsify
from .energy import energy_report, measure_rates
from .memory import memory_report
from .nn import reset
from .packed import PackedSpikes
from .rewire import GROW_RULES, PRUNE_RULES, DeepR, Rewirer, RewireReport
from .topology import BlockLayout, BlockTopology

__all__ = [
    "GROW_RULES",
    "PRUNE_RULES",
    "BlockLayout",
    "BlockTopology",
    "DeepR",
    "PackedSpikes",
    "RewireReport",
    "Rewirer",
    "__version__",
    "arena",
    "backends",
    "densify",
    "energy_report",
    "functional",
    "measure_rates",
    "memory_report",
    "nn",
    "reset",
    "sparsify",
]
