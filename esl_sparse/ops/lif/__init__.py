from .op import lif
from .surrogate import SURROGATES

__all__ = ["SURROGATES", "lif"]
