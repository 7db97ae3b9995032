import pytest
import torch

from esl_sparse import _backends
from esl_sparse.ops._library import raw
from esl_sparse.ops.conv2d import conv2d_panels

from ..ops.conv2d_cases import CASES, Case, Problem, check
from ..ops.test_conv2d import VARIANTS, pairs
from .cases import assert_streams_and_graphs_change_nothing

pytestmark = [pytest.mark.gpu, pytest.mark.filterwarnings("ignore:Using padding='same'")]


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


@pytest.mark.parametrize("block", [(1, 1), (4, 4), (16, 16)])
def test_streams_and_graphs(block):
    case = Case(48, 64, (3, 3), (12, 12), block, padding=(1, 1), T=2, B=40, density=0.2)
    p = Problem(case, "binary", "float32", "cuda")
    spikes = p.packed()
    grad = p.panels(p.grad)

    def everything():
        y, stats = conv2d_panels(spikes, p.values, p.bias, p.topology, p.geometry, want_stats=True)
        grads = torch.autograd.grad(y, (spikes.carrier, p.values, p.bias), grad)
        return raw.from_panels(y, 2, 40), stats, *grads

    with _backends.use("cuda"):
        assert_streams_and_graphs_change_nothing(everything)
