"""temporal against a brute-force simulation of the neurons' equation and a direct search of the causal sets."""

from typing import NamedTuple

import numpy as np
import pytest
import torch

from esl_sparse import BlockLayout, BlockTopology
from esl_sparse.functional import temporal
from esl_sparse.ops._library import raw
from esl_sparse.ops.temporal import native, temporal_grad_values

from .. import oracle
from ..conftest import available

pytestmark = pytest.mark.usefixtures("poison")

BACKENDS = [backend for backend in available() if backend != "triton"]
NATIVE = [backend for backend in BACKENDS if backend.startswith("native")]


class Case(NamedTuple):
    rows: int
    cols: int
    block: tuple[int, int]
    N: int = 7
    density: float = 0.5
    mean: float = 0.2  # of the weights
    silent: float = 0.1  # share of inputs without a spike
    times: int = 0  # how many different ones; 0: each its own
    stripes: bool = False


CASES = {
    "1x1": Case(5, 7, (1, 1)),
    "1x1-wide": Case(19, 130, (1, 1), N=33, density=0.3, mean=0.05),
    "1x4": Case(9, 30, (1, 4), N=16),
    "4x1": Case(10, 29, (4, 1), N=17),
    "2x2": Case(11, 21, (2, 2), N=5),
    "4x4": Case(12, 40, (4, 4), N=20),
    "4x4-overhang": Case(13, 38, (4, 4), N=3),
    "8x2": Case(21, 30, (8, 2)),
    "16x16": Case(40, 50, (16, 16), N=18),
    "binary": Case(20, 60, (4, 4), N=12, times=2, mean=0.1),
    "binary-1x1": Case(20, 60, (1, 1), N=12, times=2, mean=0.1, silent=0.0),
    "times-8": Case(20, 60, (2, 2), N=70, times=8, mean=0.1),
    "times-8-1x1": Case(20, 60, (1, 1), N=64, times=8, mean=0.1),
    "times-8-overhang": Case(19, 45, (8, 4), N=65, times=8, mean=0.1),
    "times-9": Case(20, 60, (2, 2), N=70, times=9, mean=0.1),  # one too many for the kernel of few times
    "time-1": Case(20, 60, (1, 1), N=7, times=1, mean=0.1),
    "times-3-strong": Case(12, 80, (2, 2), times=3, mean=0.9),
    "weak": Case(12, 20, (2, 2), mean=0.02),  # most never fire
    "strong": Case(12, 80, (2, 2), mean=0.9),  # all fire soon
    "one-input": Case(9, 1, (4, 1), density=1.0, mean=1.5),
    "one-output": Case(1, 31, (1, 4)),
    "one-channel": Case(1, 1, (1, 1), N=1, density=1.0, mean=2.0, silent=0.0),
    "no-blocks": Case(9, 10, (4, 4), density=0.0),
    "empty-rows-and-columns": Case(23, 31, (4, 4), stripes=True, mean=0.3),
    "no-samples": Case(9, 10, (4, 4), N=0),
    "silent": Case(12, 20, (4, 4), silent=1.0),
}


class Problem:
    """Random operands; what overhangs the weight holds garbage."""

    def __init__(
        self, case: Case, dtype: torch.dtype = torch.float32, seed: int = 0, device: str = "cpu"
    ) -> None:
        rng = np.random.default_rng(seed)
        grid = (-(-case.rows // case.block[0]), -(-case.cols // case.block[1]))
        active = rng.random(grid) < case.density
        if case.stripes:
            active = np.zeros(grid, bool)
            active[1::2, 1::2] = True
        self.ids = np.flatnonzero(active)
        layout = BlockLayout(case.rows, case.cols, *case.block)
        self.topology = BlockTopology.from_block_ids(torch.from_numpy(self.ids).to(device), layout)
        weight = rng.normal(case.mean, 0.3, (case.rows, case.cols)).astype(np.float32)
        values = oracle.blocks(weight, self.ids, case.block)
        self.overhang = oracle.blocks(np.ones_like(weight), self.ids, case.block) == 0
        values[self.overhang] = np.nan
        times = (
            rng.choice(np.linspace(0, np.log(6), case.times), (case.N, case.cols))
            if case.times
            else rng.random((case.N, case.cols)) * 2
        )
        z = np.exp(times).astype(np.float32)
        z[rng.random(z.shape) < case.silent] = np.inf
        self.weight = oracle.dense(
            values, self.ids, (case.rows, case.cols)
        )  # float32, zero where there is no block
        self.z = torch.from_numpy(z).to(device, dtype).requires_grad_()
        self.values = torch.from_numpy(values).to(device, dtype).requires_grad_()
        self.grad = torch.from_numpy(rng.standard_normal((case.N, case.rows))).to(device, dtype)


def solve(z, w):
    """One neuron, float64, by the definition: the first prefix in time whose solution comes before the next input.

    Returns z_out, the causal inputs and how far the closest decision was from going the other way.
    """
    order = [i for i in np.argsort(z, kind="stable") if np.isfinite(z[i]) and w[i] != 0]
    margin = np.inf
    for n in range(1, len(order) + 1):
        causal = order[:n]
        slope = w[causal].sum() - 1
        margin = min(margin, abs(slope))
        following = z[order[n]] if n < len(order) else np.inf
        if following == z[order[n - 1]]:
            continue  # one of several at a time: nothing can happen between them
        if slope <= 0:
            continue
        solution = (w[causal] * z[causal]).sum() / slope
        margin = min(margin, abs(solution - following) * slope)
        if solution < following:
            return solution, causal, margin
    return np.inf, [], margin


def check(p: Problem, tolerance: float = 1e-5) -> None:
    z_out, slope = temporal(p.z, p.values, p.topology)
    grad_z, grad_values = torch.autograd.grad(z_out, (p.z, p.values), p.grad, materialize_grads=True)
    z_out, slope, grad_z, grad_values, grad = (
        t.detach().cpu() for t in (z_out, slope, grad_z, grad_values, p.grad)
    )
    z, w = p.z.detach().cpu().double().numpy(), p.weight.astype(np.float64)
    expected_z, bound_z = np.zeros_like(z), np.zeros_like(z)
    expected_w, bound_w = np.zeros_like(w), np.zeros_like(w)
    for n in range(len(z)):
        for j in range(len(w)):
            solution, causal, margin = solve(z[n], w[j])
            assert margin > 1e-7  # else rounding decides
            assert np.isinf(solution) == np.isinf(z_out[n, j].item()), (n, j)
            if not causal:
                assert slope[n, j] == 0
                continue
            s = w[j, causal].sum() - 1
            size = np.abs(w[j, causal]).sum()
            assert abs(slope[n, j].item() - s) <= tolerance * size
            assert abs(z_out[n, j].item() - solution) <= tolerance * solution
            g = grad[n, j].item() / s
            expected_z[n, causal] += g * w[j, causal]
            bound_z[n, causal] += abs(g * w[j, causal])
            expected_w[j, causal] += g * (z[n, causal] - solution)
            bound_w[j, causal] += abs(g) * (z[n, causal] + solution)
    assert (np.abs(grad_z.double().numpy() - expected_z) <= tolerance * bound_z).all()
    actual = grad_values.double().numpy()
    blocks = (oracle.blocks(m, p.ids, p.topology.layout[2:4]) for m in (expected_w, bound_w))
    expected, bound = blocks
    assert (np.abs(actual - expected) <= tolerance * bound).all()
    assert not actual[p.overhang].any()


@pytest.mark.parametrize("backend", BACKENDS, indirect=True)
@pytest.mark.parametrize("case", CASES)
def test_agrees_with_the_causal_sets(backend, case):
    check(Problem(CASES[case]))


@pytest.mark.parametrize("case", list(CASES)[::3])
def test_float64(case):
    check(Problem(CASES[case], torch.float64), 1e-12)


def simulate(z, w, dt, end):
    """Eq. 3 in small steps: the potential grows with a current to which every spike adds w exp(-(t' - t))."""
    v, arrives = 0.0, np.log(z)
    for step in range(int(end / dt)):
        t = step * dt
        v += dt * (w * np.exp(arrives - t))[arrives <= t].sum()
        if v > 1:
            return t
    return np.inf


@pytest.mark.parametrize("backend", BACKENDS, indirect=True)
def test_agrees_with_a_simulation(backend):
    p = Problem(Case(6, 9, (1, 1), N=2, density=1.0, mean=0.12))
    z_out, _ = temporal(p.z, p.values, p.topology)
    dt, end = 2e-4, 4.0
    fired = 0
    for n in range(2):
        for j in range(6):
            t = simulate(p.z[n].detach().double().numpy(), p.weight[j].astype(np.float64), dt, end)
            found = z_out[n, j].log().item()
            assert abs(t - found) < 20 * dt if t < end else found > end - 0.1, (n, j, t, found)
            fired += t < end
    assert 3 <= fired < 12


@pytest.mark.parametrize("backend", BACKENDS, indirect=True)
@pytest.mark.parametrize(
    "z,w,expected",
    [
        ([1.0, 2.0, 3.0], [0.5, 0.4, 0.05], np.inf),  # the sum stays below 1
        ([1.0, 2.0], [0.5, 0.5], np.inf),  # just 1 is approached and never passed
        ([1.0, 2.0], [0.5, 0.501], 1.502 / 0.001),  # just above
        ([1.0, np.inf], [2.0, 5.0], 2.0),
        ([np.inf, np.inf], [2.0, 2.0], np.inf),
        ([1.0, 2.1], [2.0, -7.0], 2.0),  # inhibited too late
        ([1.0, 1.5], [2.0, -7.0], np.inf),  # in time
        ([1.0, 2.0], [2.0, -7.0], np.inf),  # just so: 1 is reached and not passed
        ([3.0, 3.0, 3.0], [0.5, 0.5, 0.5], 4.5 / 0.5),  # together
        ([3.0, 3.0, 3.0], [2.0, -1.5, 1.0], 4.5 / 0.5),  # together: the order within one time does not matter
    ],
)
def test_by_hand(backend, z, w, expected):
    layout = BlockLayout(1, len(w), 1, 1)
    topology = BlockTopology.from_block_ids(torch.arange(len(w)), layout)
    z, values = torch.tensor([z], requires_grad=True), torch.tensor(w).view(-1, 1, 1).requires_grad_()
    z_out, _ = temporal(z, values, topology)
    torch.testing.assert_close(z_out.item(), expected, rtol=1e-4, atol=0)
    grads = torch.autograd.grad(z_out.sum(), (z, values))
    assert all(g.isfinite().all() for g in grads)


@pytest.mark.parametrize("backend", NATIVE, indirect=True)
def test_ends_when_all_have_fired(backend):
    layout = BlockLayout(8, 1000, 4, 4)
    topology = BlockTopology.from_block_ids(torch.arange(layout.blocks), layout)
    values = torch.full((layout.blocks, 4, 4), 2.0)
    z = torch.linspace(1, 5, 1000).expand(3, -1)
    _, _, visits = native.forward(z, values, topology.index_tensors(), 8, 1000)
    assert visits <= 3 * 400  # the first input alone fires everyone at z = 2, a quarter of the way


@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize("backend", NATIVE, indirect=True)
def test_bits_do_not_depend_on_the_thread_count(backend, threads, count):
    p = Problem(Case(120, 200, (4, 4), N=40, mean=0.05))

    def everything():
        z_out, slope = temporal(p.z, p.values, p.topology)
        return z_out, slope, *torch.autograd.grad(z_out, (p.z, p.values), p.grad)

    expected = everything()
    threads(count)
    for a, b in zip(everything(), expected, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("backend", BACKENDS, indirect=True)
def test_gradient_at_other_blocks(backend):
    p = Problem(CASES["4x4-overhang"])
    z_out, slope = temporal(p.z, p.values, p.topology)
    layout = p.topology.layout
    every = BlockTopology.from_block_ids(torch.arange(layout.blocks), layout)
    found = temporal_grad_values(p.z.detach(), z_out.detach(), slope, p.grad, every)
    (own,) = torch.autograd.grad(z_out, p.values, p.grad)
    torch.testing.assert_close(found[torch.from_numpy(p.ids)], own)
    absent = np.setdiff1d(np.arange(layout.blocks), p.ids)
    assert found[torch.from_numpy(absent)].abs().sum() > 0


@pytest.mark.parametrize("backend", BACKENDS, indirect=True)
def test_strides_do_not_matter(backend):
    p = Problem(CASES["4x4"])
    z_out, _ = temporal(p.z, p.values, p.topology)
    expected = torch.autograd.grad(z_out, (p.z, p.values), p.grad)
    z = p.z.detach().t().contiguous().t().requires_grad_()
    again, _ = temporal(z, p.values, p.topology)
    grads = torch.autograd.grad(again, (z, p.values), p.grad.t().contiguous().t())
    for a, b in zip((z_out, *expected), (again, *grads), strict=True):
        assert torch.equal(a, b)


def test_gradcheck():
    p = Problem(Case(4, 9, (2, 2), N=3, density=0.8, mean=0.4, silent=0.0), torch.float64)
    values = torch.where(torch.from_numpy(p.overhang), 0.0, p.values.detach()).requires_grad_()

    def spikes(z, values):
        z_out, _ = temporal(z, values, p.topology)
        return z_out[z_out.detach().isfinite()]

    assert torch.autograd.gradcheck(spikes, (p.z, values))


@pytest.mark.parametrize("backend", sorted({BACKENDS[0], BACKENDS[-1]}), indirect=True)
def test_opcheck(backend):
    p = Problem(CASES["4x4"])
    index = (*p.topology.index_tensors(), 12, 40)
    z, values = p.z.detach(), p.values.detach()
    torch.library.opcheck(raw.temporal.default, (z, values, *index))
    z_out, slope = raw.temporal(z, values, *index)
    for needs in (1, 3):
        torch.library.opcheck(raw.temporal_backward.default, (p.grad, z, z_out, slope, values, *index, needs))


@pytest.mark.parametrize("backend", BACKENDS, indirect=True)
@pytest.mark.parametrize("bad", [0.0, -1.0, torch.nan])
def test_what_is_no_time_raises(backend, bad):
    p = Problem(CASES["4x4"])
    z = p.z.detach().clone()
    z[2, 3] = bad
    with pytest.raises(ValueError, match="z: expected exp"):
        temporal(z, p.values, p.topology)


def test_wrong_arguments():
    p = Problem(CASES["4x4"])
    for arguments, error, message in [
        ((p.z.half(), p.values, p.topology), TypeError, "z: expected float32"),
        ((p.z[:, :-1], p.values, p.topology), ValueError, r"z: expected shape \[N, 40\], got \(20, 39\)"),
        ((p.z, p.values[1:], p.topology), ValueError, "values: expected"),
        ((p.z, p.values.double(), p.topology), ValueError, "values: expected torch.float32"),
    ]:
        with pytest.raises(error, match=message):
            temporal(*arguments)


@pytest.mark.parametrize("backend", BACKENDS, indirect=True)
def test_double_backward_raises(backend):
    p = Problem(CASES["4x4"])
    z_out, _ = temporal(p.z, p.values, p.topology)
    (grad,) = torch.autograd.grad(z_out, p.values, p.grad, create_graph=True)
    with pytest.raises(RuntimeError, match="double backward"):
        grad.sum().backward()
