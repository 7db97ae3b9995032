"""Whole numbers in given proportions."""

from __future__ import annotations

import math
from collections.abc import Sequence


def apportion(count: int, weights: Sequence[float], most: Sequence[int]) -> list[int]:
    """Share out ``count`` in proportion to ``weights``, at most ``most[i]`` to each, by largest remainder.

    What one cannot take goes to the others in proportion to their weights; once only weights of 0 are left,
    in proportion to what they can still take. The sum is exactly ``count``; equal remainders: to the first.

    Raises:
        ValueError: more than all can take together.
    """
    if count > sum(most):
        raise ValueError(f"count: expected at most {sum(most)}, got {count}")
    given = [0] * len(weights)
    while left := count - sum(given):
        takers = [i for i in range(len(weights)) if given[i] < most[i] and weights[i] > 0]
        share = {i: float(weights[i]) for i in takers}
        if not takers:
            share = {i: float(most[i] - given[i]) for i in range(len(weights)) if given[i] < most[i]}
        total = math.fsum(share.values())
        exact = {i: left * x / total for i, x in share.items()}
        full = [i for i in share if exact[i] >= most[i] - given[i]]
        if full:  # these take what they can; the rest is shared again without them
            for i in full:
                given[i] = most[i]
            continue
        parts = {i: int(x) for i, x in exact.items()}
        by_remainder = sorted(exact, key=lambda i: parts[i] - exact[i])
        for i in by_remainder[: left - sum(parts.values())]:
            parts[i] += 1
        for i, part in parts.items():
            given[i] += part
    return given
