import pytest
import torch

from esl_sparse import BlockTopology, _backends
from esl_sparse._backends import choose
from esl_sparse.ops._library import raw
from esl_sparse.ops.conv2d import conv2d, conv2d_panels

from ..ops.conv2d_cases import CASES, Case, Problem, check
from ..ops.linear_cases import DTYPES
from ..ops.test_conv2d import VARIANTS, pairs
from .cases import assert_streams_and_graphs_change_nothing
from .conftest import tuned

pytestmark = [pytest.mark.gpu, pytest.mark.filterwarnings("ignore:Using padding='same'")]

LARGE = [name for name, case in CASES.items() if min(case.block) >= 16]
STEP = Case(64, 128, (3, 3), (24, 24), (16, 16), padding=(1, 1), T=4, B=32, density=0.1)


@pytest.mark.parametrize(
    "case,dtype,kind,form",
    [
        *(("16x16-strided-dilated", dtype, *variant) for dtype in DTYPES for variant in VARIANTS),
        *((case, "bfloat16", kind, form) for case in LARGE for kind, form in (VARIANTS[2], VARIANTS[-1])),
    ],
)
def test_agrees_with_torch(untuned, case, dtype, kind, form):
    check(CASES[case], kind, form, dtype, "cuda")


@pytest.mark.parametrize(
    "case,kind,form,dtype",
    [
        *((case, *variant, "float32") for case in CASES for variant in VARIANTS),
        *((*pair, dtype) for dtype in ("float16", "bfloat16", "autocast") for pair in pairs(dtype)),
    ],
)
def test_cuda_kernels_agree_with_torch(case, kind, form, dtype):
    with _backends.use("cuda"):
        check(CASES[case], kind, form, dtype, "cuda")


def test_who_computes():
    assert choose("conv2d", "cuda", torch.bfloat16, (16, 16)) == "triton"
    assert choose("conv2d", "cuda", torch.float64, (16, 16)) == "reference"


@pytest.mark.parametrize("index", range(4))
@pytest.mark.parametrize("kind,form", [("binary", "panels"), ("float", "maps")])
@pytest.mark.parametrize("block", [(16, 16), (64, 32), (128, 128)])
def test_every_configuration(monkeypatch, block, kind, form, index):
    for kernel in tuned()["conv2d"]:
        monkeypatch.setattr(kernel, "configs", kernel.configs[index : index + 1])
    case = Case(140, 130, (3, 3), (7, 5), block, padding=(1, 1), T=3, B=30, density=0.4)
    check(case, kind, form, "bfloat16", "cuda")


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("kind,form", [("binary", "panels"), ("float", "maps")])
def test_tuned(kind, form, dtype):
    check(STEP, kind, form, dtype, "cuda")


def statistics():
    p = Problem(STEP, "binary", "bfloat16", "cuda")
    return conv2d_panels(p.packed(), p.values, p.bias, p.topology, p.geometry, want_stats=True)[1]


def test_the_call_that_tunes_has_the_same_statistics():
    for kernel in tuned()["conv2d"]:
        kernel.cache.clear()
    assert torch.equal(statistics(), statistics())


def test_a_graph_that_is_captured_before_tuning(monkeypatch):
    p = Problem(STEP, "binary", "bfloat16", "cuda")
    spikes, grad = p.packed(), p.panels(p.grad)

    def everything():
        y, stats = conv2d_panels(spikes, p.values, p.bias, p.topology, p.geometry, want_stats=True)
        return stats, *torch.autograd.grad(y, (spikes.carrier, p.values, p.bias), grad)

    with monkeypatch.context() as patch:  # compiled, as modules are not loaded inside a capture
        for kernel in tuned()["conv2d"]:
            patch.setattr(kernel, "configs", kernel.configs[:1])
        expected = everything()
    for kernel in tuned()["conv2d"]:
        kernel.cache.clear()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = everything()
    graph.replay()
    for a, b in zip(found, expected, strict=True):
        assert torch.equal(a, b)
    for kernel in tuned()["conv2d"]:
        kernel.cache.clear()


def test_the_same_bits_every_time(untuned):
    p = Problem(STEP, "binary", "bfloat16", "cuda")

    def everything():
        y = p.maps_result()
        return y, *torch.autograd.grad(y, p.leaves(), p.grad)

    for a, b in zip(everything(), everything(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("backend,block", [("triton", (16, 16)), *(("cuda", (n, n)) for n in (1, 4, 16))])
def test_streams_and_graphs(untuned, backend, block):
    case = Case(48, 64, (3, 3), (12, 12), block, padding=(1, 1), T=2, B=40, density=0.2)
    p = Problem(case, "binary", "float32", "cuda")
    spikes, grad = p.packed(), p.panels(p.grad)

    def everything():
        y, stats = conv2d_panels(spikes, p.values, p.bias, p.topology, p.geometry, want_stats=True)
        grads = torch.autograd.grad(y, (spikes.carrier, p.values, p.bias), grad)
        return raw.from_panels(y, 2, 40), stats, *grads

    with _backends.use(backend):
        assert_streams_and_graphs_change_nothing(everything)


def test_more_elements_than_int32_counts(untuned):
    """Only the last sample is not zero: a wrapped address would miss it."""
    if torch.cuda.mem_get_info()[0] < 40 * 2**30:
        pytest.skip("needs 40 GB of free GPU memory")
    p = Problem(
        Case(128, 16, (3, 3), (64, 64), (16, 16), padding=(1, 1), density=1.0), "float", "bfloat16", "cuda"
    )
    N = 2**12 + 8
    x = torch.zeros(N, 128, 64, 64, dtype=torch.bfloat16, device="cuda")
    x[-8:] = p.x.detach()
    y = conv2d(x, p.values, None, p.topology, p.geometry)
    torch.testing.assert_close(y[-8:], conv2d(p.x, p.values, None, p.topology, p.geometry), rtol=0, atol=0)
    assert not y[:-8].any()


def test_tensors_must_be_on_one_device():
    p = Problem(CASES["16x16"], "float", "float32", "cuda")
    with pytest.raises(ValueError, match=r"cuda.*cpu"):
        conv2d(p.x.cpu(), p.values, p.bias, p.topology, p.geometry)
    with pytest.raises(ValueError, match=r"cuda.*cpu"):
        topology = BlockTopology.from_block_ids(torch.from_numpy(p.ids), p.topology.layout)
        conv2d(p.x, p.values, p.bias, topology, p.geometry)
