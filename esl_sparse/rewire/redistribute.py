"""How the blocks pruned in all layers are shared out over the layers.

A rule is ``(values, grad, state) -> importance``: what each active weight of a layer is worth, ``[n, bm, bn]``, from
its values, its gradient (or None) and the optimiser's state for it. Layers grow in proportion to the mean magnitude
of that (Dettmers & Zettlemoyer 2019).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from .registry import Registry

Redistribution = Callable[[Tensor, Tensor | None, Mapping[str, Any]], Tensor]

REDISTRIBUTIONS: Registry[Redistribution] = Registry("redistribute")
"""By name: how much each layer is to grow, in proportion, where layers exchange blocks."""


@REDISTRIBUTIONS.register("magnitude")
def magnitude(values: Tensor, grad: Tensor | None, state: Mapping[str, Any]) -> Tensor:
    return values


@REDISTRIBUTIONS.register("gradient")
def gradient(values: Tensor, grad: Tensor | None, state: Mapping[str, Any]) -> Tensor:
    """Of the step just taken."""
    if grad is None:
        raise ValueError("there is no gradient: call rewirer.step() before zero_grad(), or use 'magnitude'")
    return grad


@REDISTRIBUTIONS.register("momentum")
def momentum(values: Tensor, grad: Tensor | None, state: Mapping[str, Any]) -> Tensor:
    """What the optimiser keeps: Adam's m / (sqrt(v) + 1e-8) (Adamax: m / u), SGD's or RMSprop's buffer."""
    first = state.get("exp_avg")
    if first is not None:
        if "exp_avg_sq" in state:
            return first / (state["exp_avg_sq"].sqrt() + 1e-8)
        return first / (state["exp_inf"] + 1e-8) if "exp_inf" in state else first
    buffer = state.get("momentum_buffer")
    if buffer is None:
        raise ValueError("the optimiser keeps no momentum; use 'gradient' or 'magnitude'")
    return buffer
