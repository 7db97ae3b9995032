"""Grow rules: which ``count`` absent places of a layer become active.

A rule is ``(absent: AbsentBlocks, count: int) -> ids``: int64 ``[count]``, all different, all absent, any
order.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..topology import random_absent_ids
from .blocks import AbsentBlocks
from .registry import Registry
from .select import merge_sorted

GrowRule = Callable[[AbsentBlocks, int], Tensor]

GROW_RULES: Registry[GrowRule] = Registry("grow")


@GROW_RULES.register("random")
def random(absent: AbsentBlocks, count: int) -> Tensor:
    """Uniform among all absent places."""
    return absent.random(count)


@GROW_RULES.register("random_unfired")
def random_unfired(absent: AbsentBlocks, count: int) -> Tensor:
    """Uniform among places never active; if fewer are left, all of them and uniform for the rest."""
    record = absent.ever_active
    unfired = record.random_never_active(min(count, record.total - record.size), absent.generator)
    taken, _ = merge_sorted(absent.active, unfired)
    others = random_absent_ids(taken, absent.layout.blocks, count - unfired.numel(), absent.generator)
    return torch.cat([unfired, others])
