import copy
import math

import pytest
import torch
from torch import nn

import esl_sparse as esl
from esl_sparse.functional import lif
from esl_sparse.nn import LIF


def steps_of(layer, x):
    """Call a step-by-step layer T times."""
    return torch.stack([layer(current) for current in x])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("learn_tau", [False, True])
@pytest.mark.parametrize("detach_reset", [False, True])
@pytest.mark.parametrize("v_reset", [0.0, 0.25, None])
def test_step_modes_agree(backend, v_reset, detach_reset, learn_tau, dtype):
    options = {"tau": 0.4, "v_reset": v_reset, "detach_reset": detach_reset, "learn_tau": learn_tau}
    results = []
    x, g = torch.randn(5, 3, 7).to(dtype), torch.randn(5, 3, 7).to(dtype)
    for mode in "ms":
        layer = LIF(**options, step_mode=mode)
        current = x.clone().requires_grad_()
        y = layer(current) if mode == "m" else steps_of(layer, current)
        grads = torch.autograd.grad(y, (current, *layer.parameters()), g)
        results.append((y, *grads))
    assert torch.equal(results[0][0], results[1][0])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("time_dim", [0, 1, -1])
def test_time_dim(backend, time_dim):
    x = torch.randn(4, 3, 6)
    y = LIF(0.5, time_dim=time_dim)(x.movedim(0, time_dim))
    assert torch.equal(y.movedim(time_dim, 0), LIF(0.5)(x))


def test_state_is_kept_until_reset():
    layer = LIF(0.5, v_reset=None, step_mode="s")
    model = nn.Sequential(nn.Linear(4, 4), layer)
    x = torch.full((2, 4), 0.6)
    assert steps_of(layer, x.expand(3, 2, 4)).sum((1, 2)).tolist() == [0, 0, 8]
    state = layer.v
    esl.reset(model)
    assert layer.v is None
    assert steps_of(layer, x.expand(3, 2, 4)).sum((1, 2)).tolist() == [0, 0, 8]
    assert torch.equal(layer.v, state)


def test_a_given_potential_overrides_and_is_returned(backend):
    x, v = torch.randn(5, 3, 7), torch.randn(3, 7)
    spikes, last = LIF(0.5)(x, v, return_v=True)
    for a, b in zip((spikes, last), lif(x, v, 0.5), strict=True):
        assert torch.equal(a, b)
    stepping = LIF(0.5, step_mode="s")
    stepping(torch.randn(3, 7))
    first, kept = stepping(x[0], v, return_v=True)
    assert torch.equal(first, spikes[0])
    assert kept is stepping.v


def test_learned_tau(backend):
    layer = LIF(0.3, learn_tau=True)
    assert layer.tau.item() == pytest.approx(0.3)
    assert set(layer.state_dict()) == {"tau_logit"}
    optimizer = torch.optim.SGD(layer.parameters(), 1.0)
    x = torch.full((4, 10), 0.4)
    _, v = layer(x, return_v=True)
    (v.sum() * -1).backward()  # a slower leak leaves more
    optimizer.step()
    assert 0.3 < layer.tau.item() < 1.0
    other = LIF(0.5, learn_tau=True)
    other.load_state_dict(layer.state_dict(), strict=True)
    assert other.tau.item() == layer.tau.item()
    assert not list(LIF(0.3).parameters())


def test_surrogates(backend):
    x = torch.linspace(-0.5, 2.5, 31).repeat(1, 1).requires_grad_()

    def derivative(**options):
        return torch.autograd.grad(LIF(**options)(x).sum(), x)[0]

    assert derivative().max().item() == 1.0  # triangle of width 1
    assert torch.equal(derivative(surrogate="triangle", width=1.0), derivative())
    assert derivative(surrogate="rectangle", width=0.5).unique().tolist() == [0.0, 2.0]
    assert derivative(surrogate="sigmoid", width=2.0).max().item() == pytest.approx(0.5)
    assert derivative(surrogate="atan", width=2.0).max().item() == pytest.approx(0.5)
    assert torch.equal(derivative(surrogate=torch.ones_like), torch.ones(1, 31))


def test_a_copy_goes_its_own_way():
    layer = LIF(0.5, step_mode="s")
    with torch.no_grad():
        layer(torch.full((3,), 0.6))
        other = copy.deepcopy(layer)
        other(torch.full((3,), 0.6))
    assert layer.v.tolist() == pytest.approx([0.6] * 3)
    assert other.v.tolist() == pytest.approx([0.9] * 3)


def test_representation():
    def mine(d):
        return d

    assert repr(LIF(0.5)).startswith(
        "LIF(tau=0.5, v_threshold=1.0, v_reset=0.0, surrogate=triangle, width=1.0"
    )
    assert "surrogate=mine" in repr(LIF(surrogate=mine))
    assert "tau=learned" in repr(LIF(learn_tau=True))


@pytest.mark.parametrize(
    "arguments,message",
    [
        ({"tau": 2.0}, r"tau: expected a decay factor in \(0, 1\], got 2.0 \(SpikingJelly's tau=2.0 is 0.5"),
        ({"tau": 0.0}, r"tau: expected a decay factor in \(0, 1\], got 0.0"),
        ({"tau": math.nan}, r"tau: expected a decay factor"),
        ({"tau": 1.0, "learn_tau": True}, r"tau: a learnable decay must start below 1"),
        ({"surrogate": "step"}, r"surrogate: expected a callable or one of \['atan', .*'step'"),
        ({"width": -1.0}, r"width: expected a positive number, got -1.0"),
        ({"width": math.nan}, r"width: expected a positive number, got nan"),
        ({"step_mode": "x"}, r"step_mode: expected 'm' .* or 's' .*got 'x'"),
    ],
)
def test_wrong_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        LIF(**arguments)


def test_spikingjelly(backend):
    """A script that swaps LIFNode for LIF sees the same spikes."""
    neuron = pytest.importorskip("spikingjelly.activation_based.neuron")
    functional = pytest.importorskip("spikingjelly.activation_based.functional")
    theirs = neuron.LIFNode(2.0, decay_input=False, v_reset=None, step_mode="s")
    ours = LIF(0.5, v_reset=None, step_mode="s")
    x = torch.randn(6, 3, 5)
    for _ in range(2):
        assert torch.equal(steps_of(ours, x), steps_of(theirs, x))
        esl.reset(ours)
        functional.reset_net(theirs)
