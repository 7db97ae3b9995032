"""Values that no argument should get: by the kind of the value that they stand in for."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import esl_sparse as esl
from esl_sparse.functional import Geometry

NUMBERS = (
    0,
    -1,
    True,
    2**31,
    2**40,
    2**63 - 1,
    2**63,
    -(2**63),
    10**30,
    1.5,
    1j,
    math.nan,
    math.inf,
    -math.inf,
)
OBJECTS = (None, "", "nope", b"x", (), (1, 2, 3), [1], {}, object())


def hostile(good: Any) -> Iterator[tuple[str, Any]]:
    """``(name, value)`` of everything that is tried in place of ``good``."""
    for value in OBJECTS:
        yield repr(value) if type(value) is not object else "object()", value
    for number in NUMBERS:
        yield repr(number), number
    yield "an array", np.ones(3)
    yield "a number in a tensor", torch.tensor(0.5)
    yield "two numbers in a tensor", torch.tensor([1, 2])
    yield "an empty module", nn.Module()
    yield "a generator", torch.Generator()
    if isinstance(good, Tensor):
        yield from _tensors(good if good.layout == torch.strided else good.to_dense())
    elif isinstance(good, esl.PackedSpikes):
        yield from _spikes(good)
    elif isinstance(good, esl.BlockTopology):
        yield from _topologies(good)
    elif isinstance(good, (esl.BlockLayout, Geometry)):
        for name in good._fields:
            for number in (*NUMBERS, 1, 2, 7, 100):
                yield f"{name} {number!r}", good._replace(**{name: number})
    elif isinstance(good, tuple):
        for i in range(len(good)):
            for number in NUMBERS:
                yield f"[{i}] = {number!r}", (*good[:i], number, *good[i + 1 :])


def _tensors(good: Tensor) -> Iterator[tuple[str, Tensor]]:
    base = good.detach()
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64, torch.int64,
                  torch.int32, torch.uint8, torch.bool, torch.float8_e5m2):  # fmt: skip
        if dtype != good.dtype:
            yield f"{dtype}", base.to(dtype)
    yield "0-dim", torch.ones((), dtype=good.dtype)
    yield "empty", torch.empty(0, dtype=good.dtype)
    yield "one dimension more", base[None]
    if base.dim():
        yield "one dimension fewer", base[0] if len(base) else base.flatten()
        yield "transposed", base.transpose(0, -1)
        yield "step over", torch.stack([base, base], -1)[..., 0]
    for dim in range(base.dim()):
        yield f"nothing in dimension {dim}", base.narrow(dim, 0, 0)
        if base.shape[dim]:
            yield f"one more in dimension {dim}", torch.cat([base, base.narrow(dim, 0, 1)], dim)
            yield f"one fewer in dimension {dim}", base.narrow(dim, 0, base.shape[dim] - 1)
            for size in (2**33, 2**61):
                first = base.narrow(dim, 0, 1)
                shape = [size if i == dim else n for i, n in enumerate(base.shape)]
                if math.prod(shape) < 2**63:
                    yield f"{size} in dimension {dim} by stride 0", first.expand(shape)
    yield "on meta", base.to("meta")
    yield "stride 0", base.flatten()[:1].expand(base.numel()).view(base.shape) if base.numel() else base
    yield "coo", base.to_sparse()
    if base.dim() == 2:
        yield "csr", base.to_sparse_csr()
    if base.is_floating_point():
        for value in (math.nan, math.inf, -math.inf, -1.0, 1e38, 0.0):
            spoiled = base.clone()
            spoiled.flatten()[:1] = value
            yield f"{value} in it", spoiled
        yield "quantised", torch.quantize_per_tensor(base.float(), 0.1, 0, torch.qint8)
        if base.dtype == torch.float32:
            yield "mkldnn", base.to_mkldnn()
        yield "requires grad", base.clone().requires_grad_()
        yield "negated lazily", torch.complex(base.float(), base.float()).conj().imag.to(base.dtype)
    elif base.dtype != torch.bool:
        for value in (-1, 2**31 - 1, 2**62, -(2**63)):
            if base.numel() and torch.iinfo(base.dtype).min <= value <= torch.iinfo(base.dtype).max:
                spoiled = base.clone()
                spoiled.flatten()[-1:] = value
                yield f"{value} in it", spoiled


def _spikes(good: esl.PackedSpikes) -> Iterator[tuple[str, esl.PackedSpikes]]:
    def spikes(**fields: Any) -> esl.PackedSpikes:
        own = {"carrier": good.carrier, "words": good.words, "T": good.T, "B": good.B, "scale": good.scale}
        return esl.PackedSpikes(**own | fields)

    for name in ("T", "B", "scale", "carrier", "words"):
        for number in (*NUMBERS, None, "x"):
            yield f"{name} = {number!r}", spikes(**{name: number})
    yield "twice the steps", spikes(T=2 * good.T)
    yield "half of the planes", spikes(words=good.words[:0])
    for planes in (5, 64):
        yield f"{planes} planes", spikes(words=good.words[:1].repeat(planes, 1, 1, 1, 1))
    for name, words in _tensors(good.words):
        yield f"words {name}", spikes(words=words)
    for name, carrier in _tensors(good.carrier):
        yield f"carrier {name}", spikes(carrier=carrier)


def _topologies(good: esl.BlockTopology) -> Iterator[tuple[str, esl.BlockTopology]]:
    for i, name in enumerate(good._fields[1:], 1):
        for what, index in _tensors(good[i]):
            if "in it" not in what:  # an index is checked where it is made: see BlockTopology
                yield f"{name} {what}", good._replace(**{name: index})
        yield f"{name} None", good._replace(**{name: None})
    for number in (*NUMBERS, None):
        for name in (
            good.layout._fields if number != 0 else ()
        ):  # a layout is checked where a topology is made
            yield f"{name} {number!r}", good._replace(layout=good.layout._replace(**{name: number}))
