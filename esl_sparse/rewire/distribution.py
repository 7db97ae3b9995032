"""How an overall density is shared out over the layers of a model.

A layer is given by the shape of its dense weight: ``(out, in)`` or ``(out, in / groups, *kernel)``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from .registry import Registry

Distribution = Callable[[Sequence[Sequence[int]], float], list[float]]
"""``(shapes, density) -> densities``, one for each shape."""

DISTRIBUTIONS: Registry[Distribution] = Registry("distribution")
"""By name: the densities of layers that together have the density asked for."""


@DISTRIBUTIONS.register("uniform")
def uniform(shapes: Sequence[Sequence[int]], density: float) -> list[float]:
    """The same density everywhere."""
    _check(shapes, density, None)
    return [float(density)] * len(shapes)


@DISTRIBUTIONS.register("erdos_renyi")
def erdos_renyi(
    shapes: Sequence[Sequence[int]], density: float | None = None, *, epsilon: float | None = None
) -> list[float]:
    """Paper Eq. 1: ``p = epsilon (n_in + n_out) / (n_in n_out)``, at most 1; kernel dimensions do not count.

    Args:
        shapes: one weight shape for each layer.
        density: overall density; ``epsilon`` is solved for. epsilon: as in the paper. Exactly one is given.
    """
    _check(shapes, density, epsilon)
    return _share([(s[0] + s[1]) / (s[0] * s[1]) for s in shapes], shapes, density, epsilon)


@DISTRIBUTIONS.register("erk")
def erk(
    shapes: Sequence[Sequence[int]], density: float | None = None, *, epsilon: float | None = None
) -> list[float]:
    """Erdos-Renyi-kernel (Evci et al. 2020): ``p = epsilon * sum(dims) / prod(dims)``, at most 1.

    Arguments as for ``erdos_renyi``, of which it is the form for convolutions; they agree on linear
    layers.
    """
    _check(shapes, density, epsilon)
    return _share([sum(s) / math.prod(s) for s in shapes], shapes, density, epsilon)


def exact_counts(densities: Sequence[float], sizes: Sequence[int]) -> list[int]:
    """Whole numbers near ``densities * sizes`` that sum to the rounded sum of these (largest remainder)."""
    wanted = [p * n for p, n in zip(densities, sizes, strict=True)]
    counts = [min(math.floor(w), n) for w, n in zip(wanted, sizes, strict=True)]
    short = round(math.fsum(wanted)) - sum(counts)
    by_remainder = sorted(range(len(counts)), key=lambda i: counts[i] - wanted[i])
    for i in by_remainder[:short]:
        counts[i] += 1
    return counts


def _share(
    weights: list[float], shapes: Sequence[Sequence[int]], density: float | None, epsilon: float | None
) -> list[float]:
    """``p = epsilon * weight``. Layers with p >= 1 become dense, and epsilon is re-solved for the rest."""
    if density is None:
        assert epsilon is not None
        return [min(1.0, epsilon * w) for w in weights]
    sizes = [math.prod(s) for s in shapes]
    budget = density * sum(sizes)
    sparse = set(range(len(shapes)))
    epsilon = 0.0
    while sparse:
        epsilon = budget / sum(weights[i] * sizes[i] for i in sparse)
        full = {i for i in sparse if epsilon * weights[i] >= 1 - 1e-12}
        if not full:
            break
        budget -= sum(sizes[i] for i in full)
        sparse -= full
    return [epsilon * w if i in sparse else 1.0 for i, w in enumerate(weights)]


def _check(shapes: Sequence[Sequence[int]], density: float | None, epsilon: float | None) -> None:
    if (density is None) == (epsilon is None):
        raise ValueError("give either density or epsilon")
    if density is not None and not 0.0 <= density <= 1.0:
        raise ValueError(f"density: expected a fraction from 0 to 1, got {density!r}")
    if epsilon is not None and not epsilon >= 0.0:
        raise ValueError(f"epsilon: expected at least 0, got {epsilon!r}")
    for shape in shapes:
        if len(shape) < 2 or min(shape) < 1:
            raise ValueError(f"shapes: expected two or more positive sizes, got {tuple(shape)}")
