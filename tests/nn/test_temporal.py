import math

import pytest
import torch
from sklearn.datasets import load_digits

import esl_sparse as esl
from esl_sparse.nn import (
    TemporalCrossEntropy,
    TemporalLinear,
    binary_times,
    clip_neuron_grad_norm_,
    latency_times,
)


def layer(in_features=30, out_features=22, density=0.5, block_size=4, **options):
    torch.manual_seed(0)
    return TemporalLinear(in_features, out_features, density=density, block_size=block_size, **options)


def times(*shape):
    return torch.rand(*shape) * 4 + 1


def test_fresh_weights_let_neurons_fire():
    net = layer(784, 800, 0.15, 1)
    assert net.values.min() >= 0
    assert net.weight_sums().mean().item() == pytest.approx(4, rel=0.03)  # U(0, 8 / fan-in)
    assert net(times(20, 784)).isfinite().all()


@pytest.mark.parametrize("block_size", [1, 4, (8, 2)])
def test_weight_sums(block_size):
    net = layer(block_size=block_size)
    with torch.no_grad():
        net.values.add_(torch.randn_like(net.values))  # in the overhang too
    dense = net.topology.to_dense(net.values)
    sums = net.weight_sums()
    torch.testing.assert_close(sums, dense.sum(1))
    cost = net.weight_sum_cost()
    torch.testing.assert_close(cost, (1 - dense.sum(1)).clamp(min=0).sum())
    (grad,) = torch.autograd.grad(cost, net.values)
    lacking = ((1 - dense.sum(1)) > 0).float()[:, None].expand_as(dense)
    torch.testing.assert_close(grad, -net.topology.gather_dense(lacking))


def test_leading_dimensions():
    net, z = layer(), times(2, 3, 30)
    assert torch.equal(net(z), net(z.view(6, 30)).view(2, 3, 22))
    assert net(z[0, 0]).shape == (22,)
    with pytest.raises(ValueError, match=r"z: expected shape \[..., 30\], got \(2, 29\)"):
        net(times(2, 29))


def test_to_dense_gives_the_same_times():
    net, z = layer(), times(7, 30)
    dense = net.to_dense()
    assert dense.density == 1
    torch.testing.assert_close(dense(z), net(z))
    with pytest.raises(TypeError, match="no layer of neurons that fire once"):
        TemporalLinear.from_dense(torch.nn.Linear(3, 4), density=0.5)


def test_state_dict(tmp_path):
    net, other = layer(), TemporalLinear(30, 22, density=0.3, block_size=4)
    torch.save(net.state_dict(), tmp_path / "net.pt")
    other.load_state_dict(torch.load(tmp_path / "net.pt", weights_only=True))
    z = times(5, 30)
    assert torch.equal(net(z), other(z))


def test_loss():
    z = torch.tensor([[1.5, 2.0, torch.inf], [3.0, torch.inf, 2.5]], requires_grad=True)
    loss = TemporalCrossEntropy()(z, torch.tensor([0, 2]))
    first = -math.log(math.exp(-1.5) / (math.exp(-1.5) + math.exp(-2)))
    second = -math.log(math.exp(-2.5) / (math.exp(-3) + math.exp(-2.5)))
    assert loss.item() == pytest.approx((first + second) / 2)
    (grad,) = torch.autograd.grad(loss, z)
    assert grad[0, 2] == grad[1, 1] == 0 and grad[0, 0] > 0 > grad[0, 1]
    never = torch.full((1, 3), torch.inf, requires_grad=True)
    loss = TemporalCrossEntropy()(never, torch.tensor([1]))
    assert loss.isfinite() and not torch.autograd.grad(loss, never)[0].any()
    with pytest.raises(ValueError, match="z, target: expected"):
        TemporalCrossEntropy()(z, torch.tensor([0]))


def test_scale_of_the_loss_is_that_of_the_input():
    net = layer()
    z, target = torch.rand(8, net.in_features) + 1, torch.randint(net.out_features, (8,))
    later = TemporalCrossEntropy()(net(3 * z), target)
    torch.testing.assert_close(TemporalCrossEntropy(3)(net(z), target), later)
    assert "scale=3" in repr(TemporalCrossEntropy(3))
    with pytest.raises(ValueError, match="scale: expected a number above 0, got 0"):
        TemporalCrossEntropy(0)


@pytest.mark.parametrize("block_size", [1, 4])
def test_gradients_of_neurons_are_clipped(block_size):
    net = layer(block_size=block_size)
    with pytest.raises(ValueError, match="expected values with a gradient"):
        clip_neuron_grad_norm_(net, 1.0)
    net.values.grad = torch.randn_like(net.values) * net.topology.valid()
    dense = net.topology.to_dense(net.values.grad)
    norms = clip_neuron_grad_norm_(net, 3.5)
    torch.testing.assert_close(norms, dense.norm(dim=1))
    assert norms.max() > 3.5 > norms.min()
    expected = dense * (3.5 / dense.norm(dim=1, keepdim=True)).clamp(max=1)
    torch.testing.assert_close(net.topology.to_dense(net.values.grad), expected)
    with pytest.raises(ValueError, match="max_norm"):
        clip_neuron_grad_norm_(net, 0)


def test_encoders():
    x = torch.tensor([0.0, 0.4, 0.6, 1.0])
    assert binary_times(x).tolist() == [6, 6, 1, 1]
    assert binary_times(x, 0.3, 2.0, 3.0).tolist() == [3, 2, 2, 2]
    z = latency_times(x)
    assert z[0] == torch.inf and z[3] == 1
    torch.testing.assert_close(z[1], torch.tensor(6.0**0.6))
    with pytest.raises(ValueError, match="from 0 to 1"):
        latency_times(2 * x)


@pytest.mark.parametrize("grow", ["random", "random_unfired", "gradient", "momentum", "momentum_neuron"])
@pytest.mark.parametrize("block_size", [1, 4])
def test_rewiring_rules_work_on_it(grow, block_size):
    net = torch.nn.Sequential(layer(40, 24, 0.2, block_size), layer(24, 10, 0.5, block_size))
    optimizer = torch.optim.Adam(net.parameters(), 1e-2)
    rewirer = esl.Rewirer(net, optimizer, grow=grow, interval=6, t_end=20)
    before = [module.topology.block_ids().clone() for module in net]
    for _ in range(13):
        optimizer.zero_grad()
        z = net(times(16, 40))
        loss = TemporalCrossEntropy()(z, torch.randint(10, (16,)))
        (loss + sum(module.weight_sum_cost() for module in net)).backward()
        optimizer.step()
        rewirer.step()
    for module, ids in zip(net, before, strict=True):
        assert module.topology.nnzb == len(ids)
    assert not torch.equal(net[0].topology.block_ids(), before[0])


def test_scores_are_those_of_the_dense_gradient():
    net, z = layer(), times(9, 30)
    z_out = net(z)
    grad = torch.randn_like(z_out)
    call = net.call(net.seen_input(z), grad)
    scores = torch.cat([s for _, s in net.block_scores([call])])
    dense = net.to_dense()
    (expected,) = torch.autograd.grad(dense(z), dense.values, grad)
    means = expected.abs().sum((1, 2)) / dense.topology.layout.block_extent(torch.arange(len(expected)))
    torch.testing.assert_close(scores.flatten(), means)


def test_learns_digits():
    torch.manual_seed(0)
    data = load_digits()
    x, y = torch.from_numpy(data.images).flatten(1) / 16, torch.from_numpy(data.target)
    z = binary_times(x.float())
    net = torch.nn.Sequential(
        TemporalLinear(64, 100, density=0.3, block_size=1), TemporalLinear(100, 10, density=1.0, block_size=1)
    )
    optimizer = torch.optim.Adam(net.parameters(), 5e-3)
    rewirer = esl.Rewirer(net, optimizer, grow="gradient", interval=20, t_end=120)
    for _ in range(160):
        pick = torch.randint(1400, (128,))
        loss = TemporalCrossEntropy()(net(z[pick]), y[pick])
        loss = loss + 100 * sum(module.weight_sum_cost() for module in net)
        optimizer.zero_grad()
        loss.backward()
        for module in net:
            clip_neuron_grad_norm_(module, 10)
        optimizer.step()
        rewirer.step()
    accuracy = (net(z[1400:]).argmin(1) == y[1400:]).float().mean()
    assert accuracy > 0.75


def test_densify_and_what_stands_for_a_dense_weight():
    net, z = torch.nn.Sequential(layer(), layer(22, 9)), times(6, 30)
    expected = net(z)
    with pytest.raises(AttributeError, match="no dense weight"):
        _ = net[0].weight
    esl.densify(net)
    assert all(module.density == 1 for module in net)
    torch.testing.assert_close(net(z), expected)


def test_compiles_as_one_graph():
    net, z = layer(), times(6, 30)
    compiled = torch.compile(net, fullgraph=True, backend="aot_eager")
    grads = []
    for run in (net, compiled):
        z_out = run(z)
        grads.append(torch.autograd.grad(z_out[z_out.isfinite()].sum(), net.values)[0])
        torch.testing.assert_close(z_out, net(z))
    torch.testing.assert_close(*grads)
