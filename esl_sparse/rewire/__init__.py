"""Evolving topology: which connections are pruned, which are grown, when, and what moves with them."""

from .blocks import AbsentBlocks, ActiveBlocks
from .distribution import DISTRIBUTIONS, erdos_renyi, erk, exact_counts, uniform
from .ever_active import EverActive
from .grow import GROW_RULES
from .layers import SparseLayer, sparse_layers
from .prune import PRUNE_RULES
from .report import LayerReport, RewireReport
from .rewirer import Rewirer
from .schedule import SCHEDULES

__all__ = [
    "DISTRIBUTIONS",
    "GROW_RULES",
    "PRUNE_RULES",
    "SCHEDULES",
    "AbsentBlocks",
    "ActiveBlocks",
    "EverActive",
    "LayerReport",
    "RewireReport",
    "Rewirer",
    "SparseLayer",
    "erdos_renyi",
    "erk",
    "exact_counts",
    "sparse_layers",
    "uniform",
]
