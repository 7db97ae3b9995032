import pytest
import torch

from esl_sparse._backends import choose
from esl_sparse.functional import lif

from .. import oracle
from ..ops.test_lif import RESETS, check, check_many_steps, dyadic, run

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("detach_reset", [False, True])
@pytest.mark.parametrize("v_reset", RESETS)
@pytest.mark.parametrize("surrogate", oracle.SURROGATES)
def test_agrees_with_autograd_through_the_loop(surrogate, v_reset, detach_reset):
    options = {"v_threshold": 1.0, "v_reset": v_reset, "detach_reset": detach_reset}
    check(dyadic(5, 3, 3700).cuda(), dyadic(3, 3700, seed=1).cuda(), 0.5, options, surrogate, 2.0)


@pytest.mark.parametrize("shape", [(1, 1), (4, 16), (10, 1000), (3, 4096), (0, 6), (4, 0)])
@pytest.mark.parametrize("v_reset", [0.0, None])
def test_shapes(shape, v_reset):
    options = {"v_threshold": 0.75, "v_reset": v_reset, "detach_reset": False}
    check(dyadic(*shape).cuda(), dyadic(*shape[1:], seed=1).cuda(), 0.5, options, "triangle", 1.0)


@pytest.mark.parametrize("detach_reset", [False, True])
@pytest.mark.parametrize("T", [17, 40])
@pytest.mark.parametrize("v_reset", [0.25, None])
def test_many_steps(v_reset, T, detach_reset):
    check_many_steps(T, v_reset, detach_reset, "cuda")


@pytest.mark.parametrize("T", [4, 10, 25])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_types_are_computed_in_float32(dtype, T):
    x, v, g = (
        dyadic(T, 5000).cuda(),
        dyadic(5000, seed=1).cuda(),
        torch.randn(T, 5000, device="cuda").to(dtype),
    )
    gv = torch.randn(5000, device="cuda")
    narrow = run(lambda x, v: lif(x, v, 0.5), (x.to(dtype), v), (g, gv))
    wide = run(lambda x, v: lif(x, v, 0.5), (x, v), (g.float(), gv))
    for a, e in zip(narrow, wide, strict=True):
        assert torch.equal(a, e.to(a.dtype))


def test_the_plain_loop_gives_the_same_spikes():
    """Bit for bit, with any currents: products and sums are rounded separately."""
    x = torch.randn(8, 100_003, device="cuda")
    spikes, last = lif(x, None, 0.4)
    v = torch.zeros_like(last)
    for current, s in zip(x, spikes, strict=True):
        u = 0.4 * v + current
        assert torch.equal(s, (u > 1.0).float())
        v = torch.where(u > 1.0, 0.0, u)
    assert torch.equal(v, last)


def test_who_computes():
    assert choose("lif", "cuda", torch.float32) == "triton"
    assert choose("lif", "cuda", torch.float64) == "reference"


def test_captured_graphs_and_streams():
    x = torch.randn(6, 4096, device="cuda", requires_grad=True)
    g = torch.randn(6, 4096, device="cuda")

    def step():
        spikes, _ = lif(x, None, 0.5)
        return spikes, *torch.autograd.grad(spikes, x, g)

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    with torch.no_grad():
        x.copy_(torch.randn_like(x))
    graph.replay()
    for a, e in zip(captured, step(), strict=True):
        assert torch.equal(a, e)


def test_the_same_bits_every_time():
    x, v, tau = torch.randn(12, 200_001).cuda(), torch.randn(200_001).cuda(), torch.tensor(0.4).cuda()
    cotangents = torch.randn_like(x), torch.randn_like(v)
    for a, b in zip(run(lif, (x, v, tau), cotangents), run(lif, (x, v, tau), cotangents), strict=True):
        assert torch.equal(a, b)


def test_more_elements_than_int32_counts():
    if torch.cuda.mem_get_info()[0] < 40 * 2**30:
        pytest.skip("needs 40 GB of free GPU memory")
    x = torch.zeros(5, 2**29 + 16, dtype=torch.bfloat16, device="cuda")
    x[:, -1] = 2.0
    x.requires_grad_()
    spikes, _ = lif(x, None, 0.5, want_v=False)
    assert spikes[:, -1].eq(1).all() and not spikes[:, :-1].any()
    (grad,) = torch.autograd.grad(spikes, x, spikes.detach())
    assert not grad[:, :-1].any()
