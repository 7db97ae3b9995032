"""Neurons that fire once, of drawn sizes, against a direct search of their causal sets in float64."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import assume
from hypothesis import strategies as st

import esl_sparse as esl

from .. import oracle
from ..ops.test_temporal import solve
from . import draws
from .profiles import fuzz

EPS = {torch.float32: 2.0**-24, torch.float64: 2.0**-53}


class Expected:
    """Output times and gradients; of each what rounding can make of it, in units of eps."""

    def __init__(self, z, w, grad) -> None:
        self.z_out, self.bound_out = np.full((len(z), len(w)), np.inf), np.zeros((len(z), len(w)))
        self.z, self.bound_z = np.zeros_like(z), np.zeros_like(z)
        self.w, self.bound_w = np.zeros_like(w), np.zeros_like(w)
        self.margin = np.inf  # of the closest decision
        for n, j in np.ndindex(self.z_out.shape):
            found, causal, margin = solve(z[n], w[j])
            self.margin = min(self.margin, margin)
            if not causal:
                continue
            weights, times, slope = w[j, causal], z[n, causal], w[j, causal].sum() - 1
            # Sums of so many terms; what the slope is off by counts as often as it is divided by.
            terms = (len(causal) + 4) * (1 + np.abs(weights).sum()) / slope
            self.z_out[n, j] = found
            self.bound_out[n, j] = terms * (np.abs(weights * times).sum() / slope + found)
            g = grad[n, j] / slope
            self.z[n, causal] += g * weights
            self.bound_z[n, causal] += np.abs(g * weights) * terms
            self.w[j, causal] += g * (times - found)
            self.bound_w[j, causal] += np.abs(g) * (terms * (times + found) + self.bound_out[n, j])
        self.bound_z *= len(w) + 4
        self.bound_w *= len(z) + 4


@fuzz(
    60,
    draws.options(
        cols=st.integers(1, 40), rows=st.integers(1, 20), lead=st.lists(st.integers(0, 6), max_size=2),
        block=draws.blocks, density=draws.densities, mean=st.sampled_from([0.02, 0.2, 0.9]),
        silent=st.sampled_from([0.0, 0.1, 0.9, 1.0]), times=st.integers(0, 12), form=draws.forms,
        dtype=st.sampled_from([torch.float32, torch.float32, torch.float64]), seed=draws.seeds,
    ),
)  # fmt: skip
def test_temporal(case):
    random = draws.Random(case.seed)
    layer = esl.nn.TemporalLinear(
        case.cols, case.rows, density=case.density, block_size=case.block, dtype=case.dtype,
        generator=random.generator,
    )  # fmt: skip
    with torch.no_grad():
        values = case.mean + 0.3 * random.normal(*layer.values.shape)
        layer.values.copy_(draws.garbage(values, layer.topology.valid()))
    shape = (*case.lead, case.cols)
    times = random.uniform(*shape)
    if case.times:  # so many different ones
        times = (times * case.times).floor() / case.times
    z = (times * 2).exp().masked_fill(random.uniform(*shape) < case.silent, torch.inf).to(case.dtype)
    z = draws.formed(z, case.form).requires_grad_()
    grad = random.normal(*case.lead, case.rows).to(case.dtype)
    ids = layer.topology.block_ids().tolist()
    weight = oracle.dense(layer.values.detach().double().numpy(), ids, (case.rows, case.cols))
    flat = z.detach().double().reshape(-1, case.cols).numpy()
    expected = Expected(flat, weight, grad.double().reshape(-1, case.rows).numpy())
    assume(expected.margin > 1e-4)  # else rounding decides

    y = layer(z)
    y.backward(draws.formed(grad, case.form) if case.form != "expanded" else grad)

    def check(name, found, expected, bound):
        found = found.detach().double().numpy().reshape(expected.shape)
        assert np.array_equal(np.isinf(found), np.isinf(expected)), name
        finite = np.isfinite(expected)
        assert (np.abs(found - expected)[finite] <= 4 * EPS[case.dtype] * bound[finite] + 1e-30).all(), name

    check("z", y, expected.z_out, expected.bound_out)
    check("grad z", z.grad, expected.z, expected.bound_z)
    of_blocks = [oracle.blocks(m, ids, layer.block_size) for m in (expected.w, expected.bound_w)]
    check("grad values", layer.values.grad, *of_blocks)
    assert not layer.values.grad[~layer.topology.valid()].any()
