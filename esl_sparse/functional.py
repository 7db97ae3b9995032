"""The stateless forms of the layers."""

from .ops.conv2d import Geometry, conv2d, conv2d_packed
from .ops.lif import SURROGATES, lif
from .ops.linear import linear, linear_packed
from .ops.pack import pack, unpack
from .ops.pool import adaptive_avg_pool2d, avg_pool2d, max_pool2d
from .ops.temporal import temporal

__all__ = [
    "SURROGATES",
    "Geometry",
    "adaptive_avg_pool2d",
    "avg_pool2d",
    "conv2d",
    "conv2d_packed",
    "lif",
    "linear",
    "linear_packed",
    "max_pool2d",
    "pack",
    "temporal",
    "unpack",
]
