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
    """Updates at ``interval, 2 interval, ...`` up to and including ``t_end``; none at iteration 0."""

    decay: Decay
    alpha: float
    interval: int
    t_end: int

    def __post_init__(self) -> None:
        if not 0.0 <= self.alpha <= 1.0:
            raise ValueError(f"alpha: expected a fraction from 0 to 1, got {self.alpha!r}")
        for name in ("interval", "t_end"):
            n = getattr(self, name)
            if not isinstance(n, int) or isinstance(n, bool):
                raise TypeError(f"{name}: expected a number of iterations (int), got {type(n).__name__}")
            if n < 1:
                raise ValueError(f"{name}: expected at least 1, got {n}")
        if self.t_end < 3 * self.interval:
            updates = self.t_end // self.interval
            warnings.warn(
                f"t_end={self.t_end} leaves {updates} update{'' if updates == 1 else 's'} at "
                f"interval={self.interval}: connections hardly evolve; use a smaller interval",
                stacklevel=4,
            )

    def due(self, iteration: int) -> bool:
        return 0 < iteration <= self.t_end and iteration % self.interval == 0

    def fraction(self, iteration: int) -> float:
        """f_decay of this iteration, 0 to 1."""
        f = self.decay(self.alpha, iteration / self.t_end)
        if not 0.0 <= f <= 1.0:
            raise ValueError(f"schedule: expected a fraction from 0 to 1 at iteration {iteration}, got {f!r}")
        return f
