"""The stateless forms of the layers."""

from .ops.lif import SURROGATES, lif
from .ops.linear import linear, linear_packed
from .ops.pack import pack, unpack
from .ops.pool import adaptive_avg_pool2d, avg_pool2d, max_pool2d

__all__ = [
    "SURROGATES",
    "adaptive_avg_pool2d",
    "avg_pool2d",
    "lif",
    "linear",
    "linear_packed",
    "max_pool2d",
    "pack",
    "unpack",
]
