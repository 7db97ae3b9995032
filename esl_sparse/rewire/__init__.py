"""Evolving topology: which connections are pruned, which are grown, when, and what moves with them."""

from .blocks import AbsentBlocks, ActiveBlocks, Candidates
from .deep_r import DeepR
from .distribution import DISTRIBUTIONS, erdos_renyi, erk, exact_counts, uniform
from .ever_active import EverActive
from .grow import GROW_RULES, DrawnCount, GradientRule, bernoulli
from .layers import SparseLayer, sparse_layers
from .prune import PRUNE_RULES, AcrossLayers, AsksFirst, OwnCount
from .redistribute import REDISTRIBUTIONS
from .report import LayerReport, RewireReport
from .rewirer import Rewirer
from .schedule import SCHEDULES

__all__ = [
    "DISTRIBUTIONS",
    "GROW_RULES",
    "PRUNE_RULES",
    "REDISTRIBUTIONS",
    "SCHEDULES",
    "AbsentBlocks",
    "AcrossLayers",
    "ActiveBlocks",
    "AsksFirst",
    "Candidates",
    "DeepR",
    "DrawnCount",
    "EverActive",
    "GradientRule",
    "LayerReport",
    "OwnCount",
    "RewireReport",
    "Rewirer",
    "SparseLayer",
    "bernoulli",
    "erdos_renyi",
    "erk",
    "exact_counts",
    "sparse_layers",
    "uniform",
]
