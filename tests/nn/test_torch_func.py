"""torch.func and its relatives on every kind of layer: as a loop over the batch would have it, or one sentence."""

import copy

import pytest
import torch
from torch import nn
from torch.func import functional_call, grad, jacrev, jvp, stack_module_state, vmap

import esl_sparse as esl


def sparse(kind, *arguments, **options):
    return kind(*arguments, density=0.5, generator=torch.Generator().manual_seed(0), **options)


def block():
    conv = sparse(esl.nn.SparseConv2d, 6, 10, 3, padding=1)
    return esl.nn.SpikingBlock(conv, nn.BatchNorm2d(10), esl.nn.LIF())


LAYERS = {  # how it is made, and the shape of its input
    "linear": (lambda: sparse(esl.nn.SparseLinear, 11, 7), (5, 11)),
    "conv1d": (lambda: sparse(esl.nn.SparseConv1d, 6, 10, 3, padding=1), (3, 6, 5)),
    "conv2d": (lambda: sparse(esl.nn.SparseConv2d, 6, 10, 3, groups=2), (3, 6, 4, 5)),
    "block": (block, (2, 3, 6, 4, 3)),
    "lif": (lambda: esl.nn.LIF(learn_tau=True), (4, 3, 5)),
}


@pytest.fixture(params=LAYERS)
def problem(request):
    """A layer, three inputs of which the first are spikes, and the layer as a function of its parameters."""
    make, shape = LAYERS[request.param]
    layer = make().eval()
    spikes = torch.bernoulli(torch.full(shape, 0.5))
    x = torch.stack([spikes, spikes / 4, 2 * torch.rand(shape)])

    def f(parameters, x):
        y = functional_call(layer, parameters, (x,))
        return y.unpack() if isinstance(y, esl.PackedSpikes) else y

    return layer, {k: p.detach() for k, p in layer.named_parameters()}, x, f


def loss(f, parameters, x):
    y = f(parameters, x)
    return (y * torch.linspace(-1, 1, y.numel()).view_as(y)).sum()


def assert_same(found, expected):
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-4, atol=1e-5)


def test_vmap_over_inputs(problem):
    _, parameters, x, f = problem
    expected = torch.stack([f(parameters, one) for one in x])
    assert expected.abs().max() > 0
    torch.testing.assert_close(vmap(f, (None, 0))(parameters, x), expected)
    last = vmap(f, (None, -1), out_dims=-1)(parameters, x.movedim(0, -1))
    torch.testing.assert_close(last.movedim(-1, 0), expected)


def test_gradients_of_each_sample(problem):
    _, parameters, x, f = problem
    of = grad(lambda p, x: loss(f, p, x))
    each = [of(parameters, one) for one in x]
    expected = {k: torch.stack([grads[k] for grads in each]) for k in parameters}
    assert any(g.abs().max() > 0 for g in expected.values())
    assert_same(vmap(of, (None, 0))(parameters, x), expected)


def test_gradient_of_a_vmap(problem):
    _, parameters, x, f = problem
    found = grad(lambda p: vmap(lambda one: loss(f, p, one))(x).sum())(parameters)
    assert_same(found, grad(lambda p: sum(loss(f, p, one) for one in x))(parameters))


def test_ensembles(problem):
    layer, _, x, f = problem
    members = [copy.deepcopy(layer) for _ in range(3)]
    for i, member in enumerate(members):
        for parameter in member.parameters():
            parameter.data.mul_(1 + i / 4)
    parameters, buffers = stack_module_state(members)

    def run(parameters, buffers):
        y = functional_call(layer, (parameters, buffers), (x[2],))
        return y.unpack() if isinstance(y, esl.PackedSpikes) else y

    expected = torch.stack([f(dict(m.named_parameters()), x[2]) for m in members])
    torch.testing.assert_close(vmap(run)(parameters, buffers), expected, rtol=1e-4, atol=1e-5)


def test_jacobians(problem):
    _, parameters, x, f = problem
    one = x[2]
    found = jacrev(lambda x: loss(f, parameters, x))(one)
    torch.testing.assert_close(found, grad(lambda x: loss(f, parameters, x))(one), rtol=1e-4, atol=1e-5)


def test_batches_of_cotangents(problem):
    """``is_grads_batched`` is the older vmap, of which no transform knows."""
    layer, parameters, x, f = problem
    one = x[2].requires_grad_()
    y = f(parameters, one)
    cotangents = torch.randn(3, *y.shape)

    def run():
        return torch.autograd.grad(y, one, cotangents, retain_graph=True, is_grads_batched=True)[0]

    if isinstance(layer, esl.nn.SpikingBlock):
        with pytest.raises(RuntimeError, match="Batching rule not implemented for esl_sparse::"):
            run()
        return
    expected = torch.stack([torch.autograd.grad(y, one, c, retain_graph=True)[0] for c in cotangents])
    torch.testing.assert_close(run(), expected, rtol=1e-4, atol=1e-5)


def test_forward_mode_is_refused(problem):
    _, parameters, x, f = problem
    with pytest.raises(NotImplementedError, match="to use it with forward mode AD"):
        jvp(lambda x: f(parameters, x), (x[2],), (x[2],))


def test_double_backward_is_refused(problem):
    layer, _, x, _ = problem
    one = x[2].requires_grad_()
    y = layer(one)
    y = y.unpack() if isinstance(y, esl.PackedSpikes) else y
    (first,) = torch.autograd.grad(y.square().sum(), one, create_graph=True)
    with pytest.raises(RuntimeError, match="esl_sparse: double backward is not supported"):
        first.square().sum().backward()
