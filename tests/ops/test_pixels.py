"""Borders of packed spikes against torch.nn.functional.pad."""

import pytest
import torch
from torch.nn import functional as F

from esl_sparse.functional import pack
from esl_sparse.ops.pack.pixels import pad_pixels

MODES = ["reflect", "replicate", "circular"]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("borders", [(1, 1, 1, 1), (3, 0, 1, 2), (0, 0, 2, 0), (0, 2, 0, 0), (0, 0, 0, 0)])
@pytest.mark.parametrize("B", [0, 1, 30])
def test_pixels_and_their_gradients_are_those_of_padded_maps(backend, poison, mode, borders, B):
    x = (torch.randint(0, 8, (3, B, 5, 4, 6)) * 0.25).requires_grad_()
    padded = pad_pixels(pack(x), borders, mode)
    y = padded.unpack()
    expected = F.pad(x.flatten(0, 1), borders, mode).unflatten(0, (3, B))
    assert padded.shape == expected.shape and (padded.T, padded.B) == (3, B)
    assert torch.equal(y, expected)
    grad = torch.randn(y.shape)
    for actual, exact in zip(
        torch.autograd.grad(y, x, grad), torch.autograd.grad(expected, x, grad), strict=True
    ):
        torch.testing.assert_close(actual, exact)


@pytest.mark.parametrize("mode", MODES)
def test_words_without_a_gradient(mode):
    padded = pad_pixels(pack(torch.ones(1, 2, 3, 4, 4)), (1, 1, 1, 1), mode)
    assert not padded.carrier.requires_grad
    assert padded.carrier.shape == (*padded.words.shape[1:], 64)
    assert padded.carrier.untyped_storage().nbytes() == 4


@pytest.mark.parametrize("mode,borders", [("reflect", (4, 0, 0, 0)), ("circular", (0, 0, 0, 5))])
def test_a_border_wider_than_the_map_raises_as_in_torch(mode, borders):
    x = torch.ones(1, 2, 3, 4, 4)
    with pytest.raises(RuntimeError, match=r"[Pp]adding"):
        F.pad(x[0], borders, mode)
    with pytest.raises(RuntimeError, match=r"[Pp]adding"):
        pad_pixels(pack(x), borders, mode)
