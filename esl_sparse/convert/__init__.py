"""A dense model's layers become block-sparse ones in place, and back."""

from .report import LayerConversion, SparsifyReport
from .sparsify import densify, sparsify

__all__ = ["LayerConversion", "SparsifyReport", "densify", "sparsify"]
