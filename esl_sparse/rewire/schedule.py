"""When connections are rewired, and which fraction of them."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass

from .registry import Registry

Decay = Callable[[float, float], float]
"""``(alpha, progress) -> fraction to rewire``; progress = iteration / t_end, more than 0 and at most 1."""

SCHEDULES: Registry[Decay] = Registry("schedule")
"""By name: `(alpha, t / t_end) -> fraction` of a layer's blocks that an update prunes."""


@SCHEDULES.register("cosine")
def cosine(alpha: float, progress: float) -> float:
    """Paper Eq. 2: ``alpha / 2 (1 + cos(pi t / T_end))``."""
    return alpha / 2 * (1 + math.cos(math.pi * progress))


@SCHEDULES.register("constant")
def constant(alpha: float, progress: float) -> float:
    return alpha


@SCHEDULES.register("linear")
def linear(alpha: float, progress: float) -> float:
    return alpha * (1 - progress)


@SCHEDULES.register("exponential")
def exponential(alpha: float, progress: float) -> float:
    """Falls to a hundredth of alpha at t_end."""
    return alpha * 0.01**progress


@dataclass(frozen=True)
class UpdateSchedule:
    """Updates at the multiples of ``interval`` from ``t_start`` to ``t_end``, both included; none at 0."""

    decay: Decay
    alpha: float
    interval: int
    t_end: int
    t_start: int = 0

    def __post_init__(self) -> None:
        if not 0.0 <= self.alpha <= 1.0:
            raise ValueError(f"alpha: expected a fraction from 0 to 1, got {self.alpha!r}")
        for name, least in (("interval", 1), ("t_end", 1), ("t_start", 0)):
            n = getattr(self, name)
            if not isinstance(n, int) or isinstance(n, bool):
                raise TypeError(f"{name}: expected a number of iterations (int), got {type(n).__name__}")
            if n < least:
                raise ValueError(f"{name}: expected at least {least}, got {n}")
        if self.updates < 3:
            since = f"from t_start={self.t_start} " if self.t_start else ""
            warnings.warn(
                f"t_end={self.t_end} leaves {self.updates} update{'' if self.updates == 1 else 's'} {since}at "
                f"interval={self.interval}: connections hardly evolve; use a smaller interval",
                stacklevel=5,
            )

    @property
    def updates(self) -> int:
        """How many there are in all."""
        return max(0, self.t_end // self.interval - self.first // self.interval + 1)

    @property
    def first(self) -> int:
        """Iteration of the first update, if it is not past t_end."""
        return max(1, -(-self.t_start // self.interval)) * self.interval

    def due(self, iteration: int) -> bool:
        return self.first <= iteration <= self.t_end and iteration % self.interval == 0

    def next(self, iteration: int) -> int | None:
        """The first update after an iteration; None: there is none any more."""
        coming = max(self.first, (iteration // self.interval + 1) * self.interval)
        return coming if coming <= self.t_end else None

    def fraction(self, iteration: int) -> float:
        """f_decay of this iteration, 0 to 1."""
        f = self.decay(self.alpha, iteration / self.t_end)
        if not 0.0 <= f <= 1.0:
            raise ValueError(f"schedule: expected a fraction from 0 to 1 at iteration {iteration}, got {f!r}")
        return f
