"""Spiking neural networks, sparse from the first iteration to the last.

A spike is one bit, a weight is a block, and nothing dense ever exists.
"""

from . import functional, nn
from ._backends import backends
from ._version import __version__
from .arena import arena
from .nn import reset
from .packed import PackedSpikes
from .topology import BlockLayout, BlockTopology

__all__ = [
    "BlockLayout",
    "BlockTopology",
    "PackedSpikes",
    "__version__",
    "arena",
    "backends",
    "functional",
    "nn",
    "reset",
]
