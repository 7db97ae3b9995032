"""What the Triton kernels share. Imported by them only, at the first launch: Triton is optional."""

from __future__ import annotations

import os
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

    Inside a graph capture nothing can be timed: what was not tuned before takes the first configuration.
    """
    return configs[:1] if _capturing() or options["PRECISION"] == "ieee" else configs


def _time(call: Callable[[], object], quantiles: Sequence[float]) -> Any:
    """For 25 ms: a network has dozens of shapes, each with three kernels.

    Triton before 3.9 times a single configuration too, and would wait for the GPU while a graph is captured.
    """
    return [0.0] * len(quantiles) if _capturing() else do_bench(call, warmup=5, rep=20, quantiles=quantiles)


def autotune(*configs: Config, key: list[str], zeros: Sequence[str] = ()):
    """Tuned once per weight; the sizes that change from call to call (lanes, blocks) do not tune again.

    The first configuration fits 99 KB of shared memory, all that sm_86 has, with any dtype and block. The
    others pay on larger chips; the autotuner passes over what does not fit. All run on the buffers of the call that is
    tuned: ``zeros`` names those that a kernel may leave partly as they were, which then are zero again.
    """
    # The interpreter would time every configuration on the CPU.
    interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    return triton.autotune(
        list(configs[: 1 if interpreted else None]),
        key=[*key, "BM", "BN", "PRECISION"],
        prune_configs_by={"early_config_prune": _affordable},
        reset_to_zero=list(zeros),
        do_bench=_time,
    )


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
