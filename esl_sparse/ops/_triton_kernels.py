"""What the Triton kernels share. Imported by them only, at the first launch: Triton is optional."""

from __future__ import annotations

import functools
import math
import os
import threading
from collections.abc import Callable, Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from triton import Config
from triton.testing import do_bench


def _capturing() -> bool:
    return torch.cuda.is_available() and torch.cuda.is_current_stream_capturing()


def _affordable(configs: list[Config], arguments: dict, **options) -> list[Config]:
    """Products in full float32 use no tensor cores but many registers: only small tiles do not spill.

    Inside a graph capture nothing can be timed: what was not tuned before takes the first configuration. So does all
    where torch's deterministic algorithms are asked for: tiles decide the order of sums, and a clock decides the tiles.
    """
    given = [x.dtype for x in arguments.values() if isinstance(x, torch.Tensor)]
    in_full = options["PRECISION"] == "ieee" and not {torch.float16, torch.bfloat16}.intersection(given)
    return configs[:1] if in_full or _capturing() or torch.are_deterministic_algorithms_enabled() else configs


def _time(call: Callable[[], object], quantiles: Sequence[float]) -> Any:
    """For 25 ms: a network has dozens of shapes, each with three kernels.

    Triton before 3.9 times a single configuration too, and would wait for the GPU while a graph is captured. Timing
    takes 256 MB: where these are not left no configuration is better than another, and the first one is taken.
    """
    if _capturing():
        return [0.0] * len(quantiles)
    try:
        return do_bench(call, warmup=5, rep=20, quantiles=quantiles)
    except torch.OutOfMemoryError:
        return [math.inf] * len(quantiles)


def autotune(*configs: Config, key: list[str], zeros: Sequence[str] = ()):
    """Tuned once per weight; the sizes that change from call to call (lanes, blocks) do not tune again.

    The first configuration fits 99 KB of shared memory, all that sm_86 has, with any dtype and block. The
    others pay on larger chips; the autotuner passes over what does not fit. All run on the buffers of the call that is
    tuned: ``zeros`` names those that a kernel may leave partly as they were, which then are zero again.
    """
    # The interpreter would time every configuration on the CPU.
    interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    decorate = triton.autotune(
        list(configs[: 1 if interpreted else None]),
        key=[*key, "BM", "BN", "PRECISION"],
        prune_configs_by={"early_config_prune": _affordable},
        reset_to_zero=list(zeros),
        do_bench=_time,
    )
    return lambda kernel: _one_at_a_time(decorate(kernel))


_launching = threading.RLock()


def _one_at_a_time(tuned):
    """The autotuner keeps a call's arguments in itself, and backward has a thread for each GPU: calls take turns. What
    was chosen on one kind of GPU need not fit another, so each kind has its own choices."""
    run = tuned.run
    chosen: dict[Any, dict] = {}

    def launch(*args, **kwargs):
        with _launching:
            tuned.cache = chosen.setdefault((_capability(), torch.are_deterministic_algorithms_enabled()), {})
            return run(*args, **kwargs)

    tuned.run = launch
    return tuned


def _capability() -> tuple[int, int] | None:
    return _capability_of(torch.cuda.current_device()) if torch.cuda.is_initialized() else None


@functools.cache
def _capability_of(device: int) -> tuple[int, int]:
    return torch.cuda.get_device_capability(device)


@triton.jit
def levels(pointer, mask, plane_stride, PLANES: tl.constexpr, AXIS: tl.constexpr):
    """Load words and put their 64 lanes along a new axis; integers of PLANES bits."""
    lane = tl.expand_dims(tl.arange(0, 64), (0, 3 - AXIS))
    for plane in tl.static_range(PLANES):
        words = tl.expand_dims(tl.load(pointer + plane * plane_stride, mask=mask, other=0), AXIS)
        bits = (words >> lane).to(tl.int32) & 1
        if plane == 0:
            result = bits
        else:
            result |= bits << plane
    return result
