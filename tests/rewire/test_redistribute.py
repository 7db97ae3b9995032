"""Blocks that move between layers: how many, and that everything of theirs moves along."""

import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import esl_sparse as esl
from esl_sparse.rewire import REDISTRIBUTIONS
from esl_sparse.rewire.apportion import apportion

from . import oracle
from .models import by_id, everything, interrupt_each_write, rewirer, same


@pytest.mark.parametrize(
    "count, weights, most, expected",
    [
        (10, [1, 1], [100, 100], [5, 5]),
        (10, [3, 1, 0], [100, 100, 100], [8, 2, 0]),
        (7, [1, 1, 1], [100, 100, 100], [3, 2, 2]),
        (10, [1, 1, 8], [100, 100, 2], [4, 4, 2]),
        (10, [0, 0], [3, 100], [0, 10]),
        (10, [5, 0], [3, 100], [3, 7]),
        (0, [1, 2], [0, 0], [0, 0]),
    ],
)
def test_apportion(count, weights, most, expected):
    assert apportion(count, weights, most) == expected


def test_apportion_is_exact_and_agrees_with_the_oracle():
    generator = np.random.default_rng(0)
    for _ in range(300):
        n = generator.integers(1, 9)
        weights = generator.random(n) * (generator.random(n) < 0.8)
        most = generator.integers(0, 30, n)
        count = int(generator.integers(0, most.sum() + 1))
        given = apportion(count, weights.tolist(), most.tolist())
        assert sum(given) == count and all(0 <= g <= m for g, m in zip(given, most, strict=True))
        if (weights > 0).all():  # what remains for weights of 0 is shared as each likes
            assert given == oracle.apportion(count, weights, most).tolist()


def test_apportion_refuses_more_than_there_is_room_for():
    with pytest.raises(ValueError, match="at most 5, got 6"):
        apportion(6, [1.0, 1.0], [2, 3])


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        esl.nn.SparseLinear(24, 40, density=0.2, block_size=2),
        nn.ReLU(),
        esl.nn.SparseLinear(40, 32, density=0.2, block_size=2),
        nn.ReLU(),
        esl.nn.SparseLinear(32, 8, density=0.5, block_size=1),
    )


LAYERS = (0, 2, 4)


def step(model, optimizer):
    optimizer.zero_grad()
    F.cross_entropy(model(torch.randn(16, 24)), torch.randint(8, (16,))).backward()
    optimizer.step()


def worth(rule, layer, optimizer):
    """By the definition, for Adam."""
    state = optimizer.state[layer.values]
    entries = {
        "magnitude": layer.values,
        "gradient": layer.values.grad,
        "momentum": state["exp_avg"] / (state["exp_avg_sq"].sqrt() + 1e-8),
    }[rule]
    return float(entries.detach().double().abs().mean())


@pytest.mark.parametrize("rule", REDISTRIBUTIONS)
@pytest.mark.parametrize("grow", ["random", "gradient", "momentum"])
def test_layers_grow_in_proportion_to_their_worth(rule, grow):
    model = network()
    optimizer = torch.optim.Adam(model.parameters())
    rewire = esl.Rewirer(
        model, optimizer, grow=grow, redistribute=rule, interval=3, t_end=60, schedule="constant", alpha=0.4
    )
    for _ in range(3):
        step(model, optimizer)
        old = {i: model[i].topology.nnzb for i in LAYERS}
        share = [worth(rule, model[i], optimizer) for i in (0, 2)]
        report = rewire.step()
    pruned = {i: round(0.4 * old[i]) for i in LAYERS}
    total = pruned[0] + pruned[2]
    new = {i: model[i].topology.nnzb for i in LAYERS}
    assert new[0] + new[2] == old[0] + old[2] and new[4] == old[4]  # blocks of 1x1 cannot become 2x2
    quota = total * share[0] / sum(share)
    assert abs(new[0] - (old[0] - pruned[0]) - quota) <= 1
    assert [layer.pruned for layer in report.layers] == list(pruned.values())
    assert new[0] != old[0]


def test_everything_of_a_block_moves_along_and_parameters_stay():
    model = network()
    optimizer = torch.optim.Adam(model.parameters(), amsgrad=True)
    follower = torch.optim.swa_utils.AveragedModel(model)
    rewire = esl.Rewirer(
        model, optimizer, grow="random", redistribute="gradient", interval=1, t_end=60, followers=[follower]
    )
    objects = {i: (model[i].values, model[i].values.data_ptr()) for i in LAYERS}
    sizes = set()
    for _ in range(6):
        step(model, optimizer)
        follower.update_parameters(model)
        before = {}
        for i in LAYERS:
            state = optimizer.state[model[i].values]
            tensors = [model[i].values, model[i].values.grad, follower.module[i].values]
            tensors += [state[key] for key in ("exp_avg", "exp_avg_sq", "max_exp_avg_sq")]
            before[i] = [by_id(model[i], tensor) for tensor in tensors]
        rewire.step()
        for i in LAYERS:
            layer, state = model[i], optimizer.state[model[i].values]
            tensors = [layer.values, layer.values.grad, follower.module[i].values]
            tensors += [state[key] for key in ("exp_avg", "exp_avg_sq", "max_exp_avg_sq")]
            for tensor, old in zip(tensors, before[i], strict=True):
                assert tensor.shape == layer.values.shape
                for block, value in by_id(layer, tensor).items():
                    assert torch.equal(value, old.get(block, torch.zeros_like(value)))
            assert layer.values is objects[i][0] and layer.values in optimizer.state
            mine, theirs = layer.topology.index_tensors(), follower.module[i].topology.index_tensors()
            assert all(torch.equal(a, b) for a, b in zip(mine, theirs, strict=True))
            assert all(a.data_ptr() != b.data_ptr() for a, b in zip(mine, theirs, strict=True))
        sizes.add(model[0].topology.nnzb)
    assert len(sizes) > 1
    follower.update_parameters(model)  # the follower goes on following
    model(torch.randn(3, 24)).sum().backward()


def test_the_total_stays_over_a_thousand_updates():
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    rewire = rewirer(model, optimizer, redistribute="magnitude", alpha=0.3, schedule="constant", t_end=1000)
    total = model[0].topology.nnzb + model[2].topology.nnzb, model[4].topology.nnzb
    counts = []
    for _ in range(1000):
        with torch.no_grad():
            for i in LAYERS:
                model[i].values.normal_(std=0.1 + i * float(torch.rand(())))
        rewire.step()
        counts.append(model[0].topology.nnzb)
        assert (model[0].topology.nnzb + model[2].topology.nnzb, model[4].topology.nnzb) == total
        assert all(len(model[i].values) == model[i].topology.nnzb for i in LAYERS)
    assert rewire.iteration == 1000 and len(set(counts)) > 10


def test_a_full_layer_takes_no_more_than_it_has_room_for():
    model = nn.Sequential(
        esl.nn.SparseLinear(8, 8, density=0.9, block_size=2),
        esl.nn.SparseLinear(8, 64, density=0.5, block_size=2),
    )
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with torch.no_grad():
        model[0].values.mul_(1e6)
    rewirer(model, optimizer, redistribute="magnitude").step()
    assert model[0].density == 1.0
    assert model[0].topology.nnzb + model[1].topology.nnzb == math.floor(14.4) + 64


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError])
def test_an_interrupted_update_puts_sizes_back(monkeypatch, error):
    model = network()
    optimizer = torch.optim.Adam(model.parameters())
    follower = torch.optim.swa_utils.AveragedModel(model)
    rewire = rewirer(model, optimizer, redistribute="magnitude", followers=[follower])
    step(model, optimizer)
    before = everything(model, optimizer, follower)

    def check():
        assert same(before, everything(model, optimizer, follower)) and rewire.iteration == 0

    assert interrupt_each_write(monkeypatch, error, rewire.step, check) == 3 * (5 + 2 * 5)
    step(model, optimizer)


@pytest.mark.parametrize(
    "optimizer, works",
    [
        (lambda p: torch.optim.SGD(p, 0.1, momentum=0.9), True),
        (lambda p: torch.optim.NAdam(p), True),
        (lambda p: torch.optim.Adamax(p), True),
        (lambda p: torch.optim.RMSprop(p, momentum=0.9), True),
        (lambda p: torch.optim.SGD(p, 0.1), False),
        (lambda p: torch.optim.Adagrad(p), False),
    ],
)
def test_momentum_is_the_optimizers_own(optimizer, works):
    model = network()
    optimizer = optimizer(model.parameters())
    rewire = rewirer(model, optimizer, redistribute="momentum")
    step(model, optimizer)
    if works:
        assert rewire.step() is not None
        return
    before = everything(model, optimizer)
    with pytest.raises(ValueError, match=r"redistribute: 0: the optimiser keeps no momentum"):
        rewire.step()
    assert same(before, everything(model, optimizer))


def test_a_gradient_that_is_gone():
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    rewire = rewirer(model, optimizer, redistribute="gradient")
    step(model, optimizer)
    optimizer.zero_grad()
    with pytest.raises(ValueError, match=r"redistribute: 0: there is no gradient"):
        rewire.step()


def test_a_rule_of_ones_own():
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    seen = []

    def even(values, grad, state):
        seen.append(values.shape)
        return torch.ones_like(values)

    rewirer(model, optimizer, redistribute=even).step()
    assert len(seen) == 3
    with pytest.raises(ValueError, match="redistribute: expected one of"):
        rewirer(model, optimizer, redistribute="momentun")
    with pytest.raises(ValueError, match="expected finite numbers"):
        rewirer(model, optimizer, redistribute=lambda v, g, s: v / 0).step()
