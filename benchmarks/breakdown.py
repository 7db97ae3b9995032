"""Where a training step of ours spends its time: each raw op of the fused blocks, and what surrounds them."""

from __future__ import annotations

import importlib
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

_BLOCK = "esl_sparse.ops.spiking_block"
_PACK = "esl_sparse.ops.pack.op"

# Where the callers find an op, and what the table calls it.
OPS = (
    (_PACK, "pack_op", "pack"),
    ("esl_sparse.ops.pack.panels", "to_panels_op", "pack"),
    (_BLOCK, "repeat_steps", "repeat steps"),
    (_BLOCK, "norm_lif_op", "norm_lif"),
    (_BLOCK, "panel_stats", "norm_lif"),
    (_BLOCK, "avg_pool_op", "pool"),
    ("esl_sparse.ops.pool.op", "global_avg_pool_op", "pool"),
    ("esl_sparse.ops.pool.op", "global_avg_pool_backward_op", "pool"),
    (_PACK, "unpack_op", "unpack"),
    (_PACK, "to_panels_op", "unpack"),
    (_BLOCK, "norm_lif_backward_op", "norm_lif backward"),
    (_BLOCK, "sum_steps", "repeat steps"),
)
STEP, OPTIMIZER, REST = "step", "optimizer", "rest"


class Clock:
    """Seconds and calls by name, of one step."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self.calls: dict[str, int] = defaultdict(int)

    def timed(self, name: str, run: Callable, *args: Any) -> Any:
        start = time.perf_counter()
        result = run(*args)
        self.seconds[name] += time.perf_counter() - start
        self.calls[name] += 1
        return result


@contextmanager
def _replaced(replacements: list[tuple[str, str, Callable[[Callable], Callable]]]) -> Iterator[None]:
    before = []
    try:
        for module_name, name, wrap in replacements:
            module = importlib.import_module(module_name)
            before.append((module, name, getattr(module, name)))
            setattr(module, name, wrap(getattr(module, name)))
        yield
    finally:
        for module, name, original in before:
            setattr(module, name, original)


@contextmanager
def timed_ops(clock: Clock) -> Iterator[None]:
    """Time every raw op that a step of a fused network calls."""

    def wrapper(label: str) -> Callable[[Callable], Callable]:
        return lambda op: lambda *args: clock.timed(label, op, *args)

    def convolution(op: Callable) -> Callable:
        def run(*args: Any) -> Any:
            # Forward asks for statistics (of a norm that is training), the backward that repeats it does not.
            return clock.timed("conv forward" if args[-1] else "conv forward again", op, *args)

        return run

    def convolution_backward(op: Callable) -> Callable:
        def run(*args: Any) -> Any:
            *call, needs = args
            grad_x, values, bias = torch.empty(0), None, None
            if needs & 1:
                grad_x = clock.timed("conv grad-input", op, *call, 1)[0]
            if needs & 6:
                _, values, bias = clock.timed("conv grad-values", op, *call, needs & 6)
            return grad_x, values, bias

        return run

    special = [(_BLOCK, "conv2d_op", convolution), (_BLOCK, "conv2d_backward_op", convolution_backward)]
    with _replaced([*((module, name, wrapper(label)) for module, name, label in OPS), *special]):
        yield


def breakdown(step: Callable[[Clock | None], object], rounds: int) -> list[dict]:
    """Median ms of each op over some steps, and its share of the step; the largest first, what is left last."""
    clocks = []
    for _ in range(1 + rounds):
        clock = Clock()
        with timed_ops(clock):
            clock.timed(STEP, step, clock)
        clocks.append(clock)
    del clocks[0]  # warm-up
    for clock in clocks:
        clock.seconds[REST] = 2 * clock.seconds[STEP] - sum(clock.seconds.values())
    medians = {name: statistics.median(c.seconds[name] for c in clocks) for name in clocks[0].seconds}
    names = sorted(medians.keys() - {STEP, REST}, key=lambda name: -medians[name])
    return [
        {
            "op": name,
            "calls": clocks[0].calls[name],
            "ms": float(f"{medians[name] * 1e3:.4g}"),
            "share": round(medians[name] / medians[STEP], 4),
        }
        for name in [*names, REST, STEP]
    ]
