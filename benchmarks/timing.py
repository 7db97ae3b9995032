"""Interleaved timing.

Speed on a shared machine drifts by more than what is measured, so every round runs all competitors one after
the other, and a ratio is taken inside a round before the median is taken over rounds.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

ROUNDS = 9
# Five rounds where a round takes seconds; what is slow and far behind is taken once, warm.
LONG_ROUND_SECONDS, LONG_ROUNDS = 2.0, 5
HOPELESS_SECONDS, HOPELESS_RATIO = 2.0, 3.0
RULE = (
    f"a warm run of over {HOPELESS_SECONDS:g} s and {HOPELESS_RATIO:g}x the baseline counts alone (marked *);"
    f" rounds of over {LONG_ROUND_SECONDS:g} s are done {LONG_ROUNDS} times"
)


class Quartiles(NamedTuple):
    low: float
    median: float
    high: float

    @classmethod
    def of(cls, samples: list[float]) -> Quartiles:
        if len(samples) == 1:
            return cls(*samples * 3)
        return cls(*statistics.quantiles(samples, n=4, method="inclusive"))

    def rounded(self, scale: float = 1.0) -> list[float]:
        """Four significant digits, for storage."""
        return [float(f"{value * scale:.4g}") for value in self]


@dataclass(frozen=True)
class Timing:
    """Seconds of one competitor beside the baseline's in the same rounds."""

    seconds: list[float]
    baseline: list[float]

    @property
    def speedup(self) -> Quartiles:
        """Times faster than the baseline, round by round."""
        return Quartiles.of([b / s for s, b in zip(self.seconds, self.baseline, strict=True)])

    @property
    def cost(self) -> Quartiles:
        """Times the baseline's time, round by round."""
        return Quartiles.of([s / b for s, b in zip(self.seconds, self.baseline, strict=True)])

    def as_row(self) -> dict:
        """Quartiles of the time, and the number of runs that they come from."""
        return {"ms": Quartiles.of(self.seconds).rounded(1e3), "runs": len(self.seconds)}


def method(rounds: int) -> str:
    """How figures came about, to stand beside them."""
    return f"medians of {rounds} interleaved runs in one process"


@contextmanager
def no_garbage_collection() -> Iterator[None]:
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def once(run: Callable[[], object], number: int = 1) -> float:
    """Seconds per call over ``number`` calls."""
    start = time.perf_counter()
    for _ in range(number):
        run()
    return (time.perf_counter() - start) / number


def measure(
    runs: Mapping[str, Callable[[], object]],
    baseline: str,
    rounds: int = ROUNDS,
    number: int = 1,
    clock: Callable[[Callable[[], object]], float] | None = None,
) -> dict[str, Timing]:
    """Time all of ``runs`` against ``runs[baseline]``, interleaved and warm; see ``RULE`` for long ones.

    ``clock``: seconds of one call; by default :func:`once` over ``number`` calls.
    """
    clock = clock or partial(once, number=number)
    with no_garbage_collection():
        for _ in range(2):  # the first run also loads and allocates what later ones find
            warm = {name: clock(run) for name, run in runs.items()}
        limit = max(HOPELESS_SECONDS, HOPELESS_RATIO * warm[baseline])
        names = [name for name in runs if name == baseline or warm[name] <= limit]
        if sum(warm[name] for name in names) > LONG_ROUND_SECONDS:
            rounds = min(rounds, LONG_ROUNDS)
        seconds: dict[str, list[float]] = {name: [] for name in names}
        for i in range(rounds):
            shift = i % len(names)  # nobody always runs in the caches that the same neighbour left
            for name in names[shift:] + names[:shift]:
                seconds[name].append(clock(runs[name]))
    typical = statistics.median(seconds[baseline])
    return {
        name: Timing(seconds[name], seconds[baseline]) if name in names else Timing([warm[name]], [typical])
        for name in runs
    }


def beside_fastest(timings: Mapping[str, Timing], candidates: Iterable[str]) -> tuple[str, dict[str, Timing]]:
    """The fastest of some competitors, and all of them beside it."""
    name = min(candidates, key=lambda name: statistics.median(timings[name].seconds))
    seconds = timings[name].seconds
    typical = statistics.median(seconds)

    def beside(other: list[float]) -> Timing:
        """Round by round, unless one of the two was timed once only."""
        return Timing(other, seconds if len(other) == len(seconds) else [typical] * len(other))

    return name, {other: beside(timing.seconds) for other, timing in timings.items()}
