import pytest
import torch

from esl_sparse._backends import choose
from esl_sparse.functional import temporal
from esl_sparse.ops._library import raw
from esl_sparse.ops.temporal import temporal_grad_values

from ..ops.test_temporal import CASES, Case, Problem, check
from .cases import assert_streams_and_graphs_change_nothing

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("case", CASES)
def test_agrees_with_the_causal_sets(case):
    check(Problem(CASES[case], device="cuda"))


@pytest.mark.parametrize("case", list(CASES)[::5])
def test_float64(case):
    check(Problem(CASES[case], torch.float64, device="cuda"), 1e-12)


def test_as_many_inputs_as_the_paper_has():
    check(Problem(Case(60, 784, (1, 1), N=3, density=0.15, mean=4 / 784 / 0.15), device="cuda"))


def results(p):
    z_out, slope = temporal(p.z, p.values, p.topology)
    grads = torch.autograd.grad(z_out, (p.z, p.values), p.grad)
    return (
        z_out.detach(),
        slope,
        *grads,
        temporal_grad_values(p.z.detach(), z_out.detach(), slope, p.grad, p.topology),
    )


def test_the_same_bits_every_time():
    p = Problem(CASES["1x1-wide"], device="cuda")
    for a, b in zip(results(p), results(p), strict=True):
        assert torch.equal(a, b)


def test_streams_and_graphs():
    p = Problem(CASES["4x4-overhang"], device="cuda")
    assert_streams_and_graphs_change_nothing(lambda: results(p))


def test_opcheck():
    p = Problem(CASES["4x4"], device="cuda")
    index = (*p.topology.index_tensors(), 12, 40)
    z, values = p.z.detach(), p.values.detach()
    torch.library.opcheck(raw.temporal.default, (z, values, *index))
    z_out, slope = raw.temporal(z, values, *index)
    torch.library.opcheck(raw.temporal_backward.default, (p.grad, z, z_out, slope, values, *index, 3))


@pytest.mark.parametrize("bad", [0.0, -1.0, torch.nan])
def test_what_is_no_time_raises(bad):
    p = Problem(CASES["4x4"], device="cuda")
    z = p.z.detach().clone()
    z[2, 3] = bad
    with pytest.raises(ValueError, match="z: expected exp"):
        temporal(z, p.values, p.topology)


def test_who_computes():
    assert choose("temporal", "cuda", torch.float32, (4, 4)) == "cuda"
    assert choose("temporal", "cuda", torch.float64, (4, 4)) == "reference"
