import pytest
import torch

from esl_sparse._backends import choose
from esl_sparse.ops.norm_lif import norm_lif_op, panel_stats

from .. import oracle
from ..ops.norm_lif_cases import Case, Problem, backward, panel
from ..ops.test_norm_lif import SHAPES, check, check_narrow, on_device, sizes

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("case", [*SHAPES, Case(10, 64, 70, 5, 3), Case(4, 32, 65, 4, 4, pool=2)], ids=sizes)
def test_shapes(case):
    check(case, device="cuda")


@pytest.mark.parametrize("detach_reset", [False, True])
@pytest.mark.parametrize("v_reset", [0.0, -0.5, None])
@pytest.mark.parametrize("surrogate", oracle.SURROGATES)
def test_neurons(surrogate, v_reset, detach_reset):
    check(Case(3, 5, 2, 2, 3, v_reset=v_reset, surrogate=surrogate, detach_reset=detach_reset), device="cuda")


@pytest.mark.parametrize("norm2", ["", "train", "eval", "none"])
@pytest.mark.parametrize("norm", ["train", "eval", "plain", "none"])
@pytest.mark.parametrize("planes", [0, 1, 3])
def test_norms_and_second_currents(norm, norm2, planes):
    for B, v_reset, pool in ((5, 0.0, 1), (12, None, 2), (64, 0.0, 1)):
        check(Case(3, B, 3, 5, 4, norm, norm2, planes, pool, v_reset), device="cuda")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("B,T", [(5, 3), (16, 4), (32, 10), (64, 12)])
def test_narrow_panels(B, T, dtype):
    check_narrow(Case(T, B, 6, 4, 4, norm2="eval", planes=1, pool=2), dtype, "cuda")


@pytest.mark.parametrize("centre,spread", [(0, 1), (1000, 1), (-1e6, 1), (3, 1e-3)])
@pytest.mark.parametrize("T,B", [(1, 1), (2, 5), (4, 20), (2, 64)])
def test_panel_stats(T, B, centre, spread):
    x = torch.randn(T, B, 70, 5, 7) * spread + centre
    mean, variance = panel_stats(panel(x, T, B).cuda(), T, B).cpu()
    flat = x.double().transpose(0, 2).flatten(1)
    torch.testing.assert_close(mean, flat.mean(1), rtol=1e-12, atol=3e-7 * spread)
    torch.testing.assert_close(variance, flat.var(1, correction=0), rtol=2e-6, atol=0)


def test_who_computes():
    assert choose("norm_lif", "cuda", torch.bfloat16) == "triton"
    assert choose("norm_lif", "cuda", torch.float64) == "reference"


def test_the_same_bits_every_time():
    p = Problem(Case(4, 40, 70, 9, 8, norm2="train", planes=1, pool=2), 0)
    words = norm_lif_op(*on_device(p.forward_arguments(), "cuda"))
    call = on_device(p.backward_arguments(words), "cuda")
    for a, b in zip(backward(call), backward(call), strict=True):
        assert torch.equal(a, b)


def test_captured_graphs():
    p = Problem(Case(4, 32, 64, 4, 4), 0)
    forward = on_device(p.forward_arguments(), "cuda")
    call = on_device(p.backward_arguments(norm_lif_op(*forward)), "cuda")
    expected = backward(call)
    stats = panel_stats(forward.current, 4, 32)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        words = norm_lif_op(*forward)
        captured = backward(call._replace(words=words)), panel_stats(forward.current, 4, 32)
    graph.replay()
    assert torch.equal(captured[1], stats)
    for a, e in zip(captured[0], expected, strict=True):
        assert torch.equal(a, e)
