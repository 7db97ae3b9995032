"""The stateless forms of the layers."""

from .ops.lif import SURROGATES, lif
from .ops.linear import linear, linear_packed
from .ops.pack import pack, unpack

__all__ = ["SURROGATES", "lif", "linear", "linear_packed", "pack", "unpack"]
