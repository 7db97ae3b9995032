"""One step's panels at every step and back, and float maps as panels, against tests/oracle.py."""

import numpy as np
import pytest
import torch

from esl_sparse.ops.pack.panels import to_panels
from esl_sparse.ops.pack.time import repeat_steps, sum_steps

from .. import oracle

# Steps fill groups (padded batches 64, 128), share groups (8, 16, 32), or neither (24, 40, 136).
LANES = [(T, B) for B in (1, 5, 8, 12, 16, 20, 32, 33, 60, 64, 120, 128, 130) for T in (1, 2, 3, 9)]
MAPS = [(1, 1, 1), (3, 2, 5)]  # channels, height, width


def panels(x, padding=0.0):
    made = np.moveaxis(oracle.to_panels(x), 4, 1).copy()
    made[oracle.padding_lanes(*x.shape[:2])] = padding
    return torch.from_numpy(np.ascontiguousarray(np.moveaxis(made, 1, 4)))


def draw(*shape):
    return np.random.default_rng(0).standard_normal(shape)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("T,B", LANES)
@pytest.mark.parametrize("shape", MAPS)
def test_every_step_shows_the_one(T, B, shape, dtype):
    image = draw(1, B, *shape)
    shown = repeat_steps(panels(image, np.nan).to(dtype), T, B)
    assert shown.is_contiguous() and shown.dtype == dtype
    assert shown.shape == (oracle.groups(T, B), *shape[1:], shape[0], 64)
    expected = torch.from_numpy(np.repeat(image, T, 0)).to(dtype)
    assert torch.equal(torch.from_numpy(oracle.from_panels(shown.numpy(), T, B)), expected)


@pytest.mark.parametrize("T,B", LANES)
@pytest.mark.parametrize("shape", MAPS)
def test_sums_are_those_of_the_steps(T, B, shape):
    """The adjoint, for padding lanes are zero."""
    grad = draw(T, B, *shape)
    total = sum_steps(panels(grad), T, B)
    assert total.is_contiguous()
    torch.testing.assert_close(total, panels(grad.sum(0, keepdims=True)), rtol=0, atol=1e-12)
    image = panels(draw(1, B, *shape))
    torch.testing.assert_close((repeat_steps(image, T, B) * panels(grad)).sum(), (image * total).sum())


@pytest.mark.parametrize("T,B", LANES[2::4])
def test_autograd_of_the_repetition_is_the_sum(T, B):
    image = panels(draw(1, B, 3, 2, 5)).requires_grad_()
    grad = panels(draw(T, B, 3, 2, 5))
    (found,) = torch.autograd.grad(repeat_steps(image, T, B), image, grad)
    torch.testing.assert_close(found, sum_steps(grad, T, B))


@pytest.mark.parametrize("T", [1, 3])
def test_no_samples(T):
    nothing = torch.empty(0, 2, 5, 3, 64)
    assert repeat_steps(nothing, T, 0).shape == sum_steps(nothing, T, 0).shape == nothing.shape


@pytest.mark.parametrize("shape", [(3, 5, 4), (1, 8, 1), (3, 5, 4, 2, 3), (9, 8, 2, 1, 1), (2, 0, 3, 2, 2)])
@pytest.mark.parametrize("strided", [False, True])
def test_panels_of_floats_and_their_gradient(backend, poison, shape, strided):
    x = torch.tensor(draw(*shape), dtype=torch.float32)
    grad = draw(*shape).astype(np.float32).reshape(*shape, *(1,) * (5 - len(shape)))
    if strided:
        x = x.transpose(0, -1).contiguous().transpose(0, -1)
    y = to_panels(x.requires_grad_())
    full = x.detach().numpy().reshape(grad.shape)
    assert torch.equal(y, panels(full)) and y.is_contiguous()
    cotangent = panels(grad, np.nan)  # what is in padding lanes belongs to nobody
    if strided:
        cotangent = cotangent.transpose(0, 3).contiguous().transpose(0, 3)
    (found,) = torch.autograd.grad(y, x, cotangent)
    assert torch.equal(found, torch.from_numpy(grad).view(shape))


def test_panels_are_differentiable_once():
    x = torch.randn(2, 3, 4, requires_grad=True)
    y = to_panels(x)
    (grad,) = torch.autograd.grad(y, x, torch.ones_like(y).requires_grad_(), create_graph=True)
    with pytest.raises(RuntimeError, match="double backward is not supported"):
        grad.sum().backward()


def test_compiles_as_one_graph():
    def f(x):
        return repeat_steps(to_panels(x), 5, 24)

    x = torch.randn(1, 24, 3, 2, 2, requires_grad=True)
    torch._dynamo.reset()
    y = torch.compile(f, fullgraph=True, backend="aot_eager")(x)
    assert torch.equal(y, f(x))
    torch.testing.assert_close(*(torch.autograd.grad(z.square().sum(), x)[0] for z in (y, f(x))))
