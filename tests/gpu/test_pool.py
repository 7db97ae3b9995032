import pytest
import torch
from torch.nn import functional as F

from esl_sparse._backends import choose
from esl_sparse.functional import adaptive_avg_pool2d, avg_pool2d, max_pool2d

from .. import oracle
from ..ops.test_pool import AVG, MAX, SHAPES, TOLERANCE, check_pooling, random_levels, spikes_of

pytestmark = pytest.mark.gpu

DTYPES = [torch.float32, torch.bfloat16]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", AVG, ids=str)
@pytest.mark.parametrize("shape", SHAPES)
def test_avg_pool(dtype, case, shape):
    check_pooling(avg_pool2d, F.avg_pool2d, case, shape, dtype, device="cuda")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", MAX, ids=str)
@pytest.mark.parametrize("shape", SHAPES)
def test_max_pool(dtype, case, shape):
    check_pooling(max_pool2d, F.max_pool2d, case, shape, dtype, device="cuda")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("planes", [1, 3])
@pytest.mark.parametrize("shape", SHAPES)
def test_global_average(dtype, planes, shape):
    levels = random_levels(shape, planes)
    spikes = spikes_of(levels, planes, 0.25, dtype, "cuda")
    y = adaptive_avg_pool2d(spikes, 1)
    expected = torch.tensor(levels * 0.25).mean((3, 4), keepdim=True)
    torch.testing.assert_close(y.double().cpu(), expected, **TOLERANCE[dtype])
    cotangent = torch.randn(y.shape, dtype=dtype)
    (grad,) = torch.autograd.grad(y, spikes.carrier, cotangent.cuda())
    expected = (cotangent.double() / (shape[3] * shape[4])).expand(shape)
    torch.testing.assert_close(
        grad.double().cpu(), torch.from_numpy(oracle.to_panels(expected.numpy())), **TOLERANCE[dtype]
    )


def test_who_computes():
    assert choose("pool", "cuda", torch.bfloat16) == "triton"
    assert choose("pool", "cuda", torch.float64) == "reference"
