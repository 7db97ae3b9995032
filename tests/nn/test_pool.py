import pytest
import torch
from torch import nn

import esl_sparse.nn as esl_nn
from esl_sparse import PackedSpikes
from esl_sparse.functional import pack

LAYERS = [
    ("AvgPool2d", (2,)),
    ("AvgPool2d", (3, 2, 1)),
    ("AvgPool2d", (3, 1, 1, False, True, 8)),
    ("MaxPool2d", (2,)),
    ("MaxPool2d", (2, 3, 1, 2, False, True)),
    ("AdaptiveAvgPool2d", (1,)),
    ("AdaptiveAvgPool2d", ((3, None),)),
]


@pytest.mark.parametrize("name,args", LAYERS)
def test_as_torch_whatever_the_input(name, args):
    layer, dense = getattr(esl_nn, name)(*args), getattr(nn, name)(*args)
    assert isinstance(layer, getattr(nn, name)) and repr(layer) == repr(dense)
    x = torch.randint(0, 2, (3, 5, 2, 6, 4)).float().requires_grad_()
    expected = dense(x.flatten(0, 1))
    cotangent = torch.randn(expected.shape)
    (expected_grad,) = torch.autograd.grad(expected, x, cotangent)
    expected = expected.unflatten(0, (3, 5))

    packed = layer(pack(x))
    y = packed.unpack() if isinstance(packed, PackedSpikes) else packed
    assert isinstance(packed, PackedSpikes) != (args == (1,))
    for result in (y, layer(x)):
        torch.testing.assert_close(result, expected)
        (grad,) = torch.autograd.grad(result, x, cotangent.view(result.shape))
        torch.testing.assert_close(grad, expected_grad)
    torch.testing.assert_close(layer(x[0]), expected[0])
    torch.testing.assert_close(layer(x[0, 0]), expected[0, 0])


def test_indices_are_of_images_only():
    layer = esl_nn.MaxPool2d(2, return_indices=True)
    x = torch.randint(0, 2, (2, 3, 4, 6, 6)).float()
    y, indices = layer(x[0])
    assert y.shape == indices.shape == (3, 4, 3, 3)
    for source in (x, pack(x)):
        with pytest.raises(ValueError, match="return_indices: expected False"):
            layer(source)
