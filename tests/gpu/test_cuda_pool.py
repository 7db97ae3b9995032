import pytest
import torch

from esl_sparse import _backends
from esl_sparse.ops._library import raw
from esl_sparse.ops.pool.window import Window

from .. import oracle
from ..ops.test_pool import AVG, MAX, random_levels
from .cases import assert_streams_and_graphs_change_nothing

pytestmark = pytest.mark.gpu

SHAPE = (3, 11, 5, 6, 7)
OPTIONS = ("kernel_size", "stride", "padding", "dilation", "ceil_mode")


def window_of(args):
    size, stride, padding, dilation, ceil_mode = (args.get(name) for name in OPTIONS)
    return Window.of(size, stride, padding or 0, dilation or 1, bool(ceil_mode))


def words_of(planes):
    return torch.from_numpy(oracle.pack(random_levels(SHAPE, planes), planes))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    "name,case", [*(("avg", c) for c in AVG), *(("max", c) for c in MAX)], ids=lambda x: str(x)
)
def test_agrees_with_the_cpu(name, case, dtype):
    """The CPU's results are held against torch's pooling in tests/ops."""
    window, words = window_of(case.args), words_of(case.planes)
    size = words.shape[2:4]

    def run(words, grad):
        if name == "max":
            return raw.max_pool(words, *window), raw.max_pool_backward(grad, words, *window)
        return raw.avg_pool(words, 4, *window), raw.avg_pool_backward(grad, size, 3, *window)

    G, counts = words.shape[1], window.counts(*size)
    grad = torch.randn(G, *counts, SHAPE[2], 64).to(dtype)
    expected = run(words, grad.float())
    with _backends.use("cuda"):
        pooled, grad_x = run(words.cuda(), grad.cuda())
    assert torch.equal(pooled.cpu(), expected[0])
    assert grad_x.dtype == dtype
    tolerance = {torch.float32: 1e-6, torch.bfloat16: 2**-8, torch.float16: 2**-11}[dtype]
    torch.testing.assert_close(grad_x.float().cpu(), expected[1], rtol=tolerance, atol=1e-6)


@pytest.mark.parametrize("planes", [1, 3])
def test_global_average(planes):
    words = words_of(planes)
    expected = raw.global_avg_pool(words, *SHAPE[:2], 0.5, torch.float32)
    with _backends.use("cuda"):
        actual = raw.global_avg_pool(words.cuda(), *SHAPE[:2], 0.5, torch.float32)
    torch.testing.assert_close(actual.cpu(), expected, rtol=1e-6, atol=1e-6)


def test_streams_and_graphs():
    words = words_of(1).cuda()
    window = window_of(MAX[1].args)
    grad = torch.randn(words.shape[1], *window.counts(*words.shape[2:4]), SHAPE[2], 64, device="cuda")

    def everything():
        pools = (raw.avg_pool(words, 4, *window), raw.max_pool(words, *window))
        return *pools, raw.max_pool_backward(grad, words, *window)

    with _backends.use("cuda"):
        assert_streams_and_graphs_change_nothing(everything)
