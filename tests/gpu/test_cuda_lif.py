import itertools

import pytest
import torch

from esl_sparse import _backends
from esl_sparse.functional import lif

from .. import oracle
from ..ops.test_lif import RESETS, check, dyadic
from .cases import assert_streams_and_graphs_change_nothing

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("detach_reset", [False, True])
@pytest.mark.parametrize("v_reset", RESETS)
@pytest.mark.parametrize("surrogate,width", [*itertools.product(oracle.SURROGATES, [1.0, 0.5])])
def test_cuda_kernels_agree_with_autograd_through_the_loop(surrogate, width, v_reset, detach_reset):
    options = {"v_threshold": 1.0, "v_reset": v_reset, "detach_reset": detach_reset}
    with _backends.use("cuda"):
        check(dyadic(5, 3, 137).cuda(), dyadic(3, 137, seed=1).cuda(), 0.5, options, surrogate, width)


def test_streams_and_graphs():
    x, grad = (torch.randn(4, 1000, device="cuda") for _ in range(2))
    x.requires_grad_()

    def everything():
        spikes, _ = lif(x, want_v=False)
        return spikes, *torch.autograd.grad(spikes, x, grad)

    with _backends.use("cuda"):
        assert_streams_and_graphs_change_nothing(everything)
