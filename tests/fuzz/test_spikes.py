"""Packing, pooling, neurons and selection of drawn sizes against numpy and torch in float64; all of it is exact."""

from __future__ import annotations

from functools import partial

import numpy as np
import torch
from hypothesis import strategies as st
from torch.nn import functional as F

from esl_sparse import functional
from esl_sparse.functional import pack
from esl_sparse.ops.select import largest, smallest

from .. import oracle
from ..rewire.oracle import tie_order
from . import draws
from .profiles import fuzz

maps = st.tuples(
    st.integers(0, 5), st.integers(0, 40), st.integers(1, 9), st.integers(1, 7), st.integers(1, 7)
)


@fuzz(
    60,
    draws.options(
        shape=maps, levels=st.booleans(), rate=draws.rates, form=draws.forms, seed=draws.seeds,
        dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16]),
    ),
)  # fmt: skip
def test_pack(case):
    x = draws.Random(case.seed).inputs(case.shape, "levels" if case.levels else "binary", case.rate)
    x = draws.formed(x, case.form).to(case.dtype)
    spikes = pack(x)
    assert torch.equal(spikes.unpack().view(x.shape), x.contiguous())  # [T, B, C] of a single pixel
    levels = (x.double() / spikes.scale).numpy().astype(np.int64)
    assert np.array_equal(spikes.words.numpy(), oracle.pack(levels, spikes.planes))


@fuzz(
    60,
    draws.options(
        shape=maps, rate=draws.rates, seed=draws.seeds, stride=st.integers(1, 4), padding=st.booleans(),
        kernel=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    ),
)  # fmt: skip
def test_pool(case):
    x = draws.Random(case.seed).inputs(case.shape, "binary", case.rate).float()
    flat = x.double().flatten(0, 1)
    options = (case.kernel, case.stride, tuple(k // 2 for k in case.kernel) if case.padding else 0)
    for own, torchs in ((functional.avg_pool2d, F.avg_pool2d), (functional.max_pool2d, F.max_pool2d)):
        try:
            y = own(pack(x, "binary"), *options).unpack()
        except ValueError as error:
            assert "at least one window" in str(error) or not flat.numel()
            continue
        expected = torchs(flat, *options).unflatten(0, x.shape[:2]) if flat.numel() else y.double()
        torch.testing.assert_close(y.view_as(expected).double(), expected, rtol=1e-6, atol=0)


def _derivative(name, width, d):
    return oracle.SURROGATES[name](d, width)


@fuzz(
    80,
    draws.options(
        T=st.integers(1, 7), n=st.integers(0, 90), seed=draws.seeds, v_reset=st.sampled_from([None, 0.0, -0.25]),
        surrogate=st.sampled_from(sorted(oracle.SURROGATES)), width=st.sampled_from([0.5, 1.0, 2.0]),
        detach=st.booleans(), start=st.booleans(), tau=st.sampled_from([0.25, 0.5, 1.0]), form=draws.forms,
    ),
)  # fmt: skip
def test_lif(case):
    """Currents are eighths and tau is a power of two: potentials are exact, also at the threshold."""
    random = draws.Random(case.seed)
    x = draws.formed((random.normal(case.T, case.n) * 8).round() / 8, case.form)
    v = (
        (random.normal(case.n) * 8).round() / 8
        if case.start
        else torch.full((case.n,), case.v_reset or 0.0).double()
    )
    grad_s, grad_v = random.normal(case.T, case.n), random.normal(case.n)
    derivative = partial(_derivative, case.surrogate, case.width)
    found = []
    for dtype in (torch.float32, torch.float64):
        leaves = [x.to(dtype).requires_grad_(), v.to(dtype).requires_grad_()]
        leaves.append(torch.tensor(case.tau, dtype=dtype, requires_grad=True))
        if dtype == torch.float32:
            y = functional.lif(*leaves, 1.0, case.v_reset, case.surrogate, case.width, case.detach)
        else:
            y = oracle.lif(*leaves, 1.0, case.v_reset, derivative, case.detach)
        grads = torch.autograd.grad(y, leaves, [grad_s.to(dtype), grad_v.to(dtype)])
        found.append([*y, *grads])
    for name, own, expected in zip(("spikes", "v", "grad x", "grad v", "grad tau"), *found, strict=True):
        if name in ("spikes", "v"):
            assert torch.equal(own.double(), expected), name
            continue
        scale = max(1.0, float(expected.abs().max()) if expected.numel() else 0.0, case.n**0.5)
        torch.testing.assert_close(
            own.double(), expected, rtol=1e-4, atol=1e-5 * scale, msg=lambda m, n=name: f"{n}: {m}"
        )


@fuzz(
    60,
    draws.options(
        n=st.integers(0, 300), share=st.floats(0, 1), distinct=st.integers(1, 50), seed=draws.seeds,
        first=st.sampled_from([0, 2**31 - 100, 2**40, 2**62]), down=st.booleans(),
    ),
)  # fmt: skip
def test_select(case):
    """Ids far beyond int32; few values, so that most scores tie."""
    random = draws.Random(case.seed)
    score = (random.uniform(case.n) * case.distinct).floor().sub(case.distinct // 2).float()
    ids = torch.randperm(case.n, generator=random.generator) + case.first
    count, seed = round(case.share * case.n), case.seed
    chosen = (largest if case.down else smallest)(score, ids, count, seed)
    sign = -1 if case.down else 1
    ranked = sorted(
        (sign * float(s), tie_order(int(i), seed), int(i)) for s, i in zip(score, ids, strict=True)
    )
    assert sorted(ids[chosen].tolist()) == sorted(i for _, _, i in ranked[:count])
