import pytest
import torch
from torch import nn

from esl_sparse.nn import MergeTime


@pytest.mark.parametrize(
    "module,shape",
    [
        (nn.BatchNorm1d(5), (4, 3, 5)),
        (nn.BatchNorm2d(5), (4, 3, 5, 6, 6)),
        (nn.AvgPool2d(2), (4, 3, 5, 6, 6)),
        (nn.Conv2d(5, 7, 3), (4, 3, 5, 6, 6)),
        (nn.Flatten(), (4, 3, 5, 6, 6)),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
@pytest.mark.parametrize("layout", ["contiguous", "transposed"])
def test_merges_time_and_batch(module, shape, layout):
    x = torch.randn(shape)
    if layout == "transposed":
        x = x.transpose(0, 1).contiguous().transpose(0, 1)
    y = MergeTime(module)(x)
    expected = module(x.reshape(12, *shape[2:]))
    assert y.shape == (4, 3, *expected.shape[1:])
    torch.testing.assert_close(y.flatten(0, 1), expected)


def test_wrong_arguments():
    with pytest.raises(TypeError, match=r"module: expected an nn\.Module, got function"):
        MergeTime(lambda x: x)
    with pytest.raises(ValueError, match=r"x: expected \[T, N, ...\], got shape \(3, 5\)"):
        MergeTime(nn.Identity())(torch.zeros(3, 5))
