"""Surrogate derivatives of the spike, as functions of the distance ``d = u - v_threshold`` and a width.

All have the same shape parameter: ``width`` is the distance over which the derivative is large, in units of the
membrane potential.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor


def triangle(d: Tensor, width: float) -> Tensor:
    """``max(0, 1 - |d| / width) / width`` (Deng et al. 2022, TET; Bellec et al. 2018)."""
    return (1 - d.abs() / width).clamp(min=0) / width


def rectangle(d: Tensor, width: float) -> Tensor:
    """``1 / width`` where ``|d| < width / 2`` (Wu et al. 2018, STBP)."""
    return (d.abs() < width / 2).to(d.dtype) / width


def sigmoid(d: Tensor, width: float) -> Tensor:
    """Derivative of ``sigmoid(4 d / width)``; peak ``1 / width`` (SpikingJelly's alpha is ``4 / width``)."""
    s = torch.sigmoid(4 * d / width)
    return 4 / width * s * (1 - s)


def atan(d: Tensor, width: float) -> Tensor:
    """``1 / (width (1 + (pi d / width)^2))``; peak ``1 / width`` (Fang et al. 2021: alpha is ``2 / width``)."""
    return 1 / (width * (1 + (math.pi * d / width) ** 2))


SURROGATES: dict[str, Callable[[Tensor, float], Tensor]] = {
    "triangle": triangle,
    "rectangle": rectangle,
    "sigmoid": sigmoid,
    "atan": atan,
}
"""By name: `(u - v_threshold, width) -> derivative` of a spike, elementwise."""
