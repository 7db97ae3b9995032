"""Deep R against its definition on single weights."""

import copy
import itertools
import math

import numpy as np
import pytest
import torch
from torch import nn

import esl_sparse as esl

from .models import by_id, everything, interrupt_each_write, mlp, same, train_step


class Stepping(esl.DeepR):
    def step(self):
        self._stepped = True
        return super().step()


def deep_r(model, optimizer=None, **options):
    return Stepping(model, optimizer or torch.optim.SGD(model.parameters(), 0.1), **options)


def single(density=0.3, block_size=1):
    torch.manual_seed(2)
    return nn.Sequential(esl.nn.SparseLinear(30, 20, density=density, block_size=block_size, bias=False))


def test_the_walk():
    model = single()
    before = by_id(model[0], model[0].values)
    generator = torch.Generator().manual_seed(4)
    deep_r(model, l1=0.03, temperature=1e-4, generator=generator).step()
    weights = np.array([float(w) for w in before.values()])
    replay = torch.Generator().manual_seed(4)
    torch.randint(2, (len(weights),), generator=replay)  # signs of weights that are 0: there are none
    noise = torch.randn(len(weights), generator=replay).numpy()
    moved = weights - 0.1 * 0.03 * np.sign(weights) + math.sqrt(2 * 0.1 * 1e-4) * noise
    after = {i: float(w) for i, w in by_id(model[0], model[0].values).items()}
    stays = [i for i, w, v in zip(before, weights, moved, strict=True) if w * v >= 0]
    assert 0 < len(stays) < len(before) == len(after)
    for i, w, v in zip(before, weights, moved, strict=True):
        if w * v >= 0:
            assert after[i] == pytest.approx(v, rel=1e-5)
    assert all(after[i] == 0 for i in after.keys() - set(stays))


def test_a_connection_goes_when_its_sign_changes_and_new_ones_start_anew():
    model = single()
    layer, optimizer = model[0], torch.optim.Adam(model.parameters())
    train_step(model, optimizer)
    rewire = deep_r(model, optimizer, l1=0.0, temperature=0.0)
    assert rewire.step().layers[0].pruned == 0
    flipped = torch.zeros(len(layer.values), dtype=torch.bool)
    flipped[::5] = True
    with torch.no_grad():
        layer.values[flipped] *= -1
    values, momenta = by_id(layer, layer.values), by_id(layer, optimizer.state[layer.values]["exp_avg"])
    ids = layer.topology.block_ids()
    report = rewire.step()
    assert report.layers[0].pruned == int(flipped.sum()) == report.layers[0].grown
    stays = set(ids[~flipped].tolist())
    after, slots = by_id(layer, layer.values), by_id(layer, optimizer.state[layer.values]["exp_avg"])
    assert stays <= after.keys() and len(after) == len(values)
    for i in after:
        assert torch.equal(after[i], values[i] if i in stays else torch.zeros(1, 1))
        assert torch.equal(slots[i], momenta[i] if i in stays else torch.zeros(1, 1))


def test_a_removed_place_that_is_drawn_again_is_new():
    model = single(density=1.0)
    optimizer = torch.optim.Adam(model.parameters())
    train_step(model, optimizer)
    rewire = deep_r(model, optimizer, l1=0.0, temperature=0.0)
    with torch.no_grad():
        model[0].values[:7] *= -1
    report = rewire.step()
    assert report.layers[0].pruned == report.layers[0].grown == 7
    assert not model[0].values[:7].any() and model[0].values[7:].all()
    assert not optimizer.state[model[0].values]["exp_avg"][:7].any()


def test_new_connections_have_random_signs_and_keep_them():
    model = single(density=0.5)
    rewire = deep_r(model, l1=0.0, temperature=0.0)
    layer = model[0]
    with torch.no_grad():
        layer.values.neg_()
    rewire.step()  # all are replaced
    signs = rewire._signs["0"].clone()
    assert 0.35 < (signs == 1).float().mean() < 0.65
    ids = layer.topology.block_ids()
    with torch.no_grad():
        layer.values.copy_(torch.ones_like(layer.values))
    rewire.step()  # those of negative sign go
    kept = set(ids[signs == 1].tolist())
    assert {i for i, w in by_id(layer, layer.values).items() if w == 1} == kept


@pytest.mark.parametrize("block_size", [(2, 4), 16])
def test_a_block_counts_by_its_sum_inside_the_weight(block_size):
    model = single(block_size=block_size)
    layer = model[0]
    rewire = deep_r(model, l1=0.0, temperature=0.0)
    valid = layer.topology.valid()
    sums = layer.values.detach().masked_fill(~valid, 0).sum((1, 2))
    with torch.no_grad():
        layer.values[0, 0, 0] -= 2 * sums[0]  # one weight turns the block's sum round
        layer.values[~valid] = -1e9 * torch.sign(sums)[:, None, None].expand_as(valid)[~valid]
    gone = int(layer.topology.block_ids()[0])
    said = rewire.step().layers[0]
    assert said.pruned == 1
    assert gone not in by_id(layer, layer.values) or not by_id(layer, layer.values)[gone].any()


def test_interval_and_end():
    model = single()
    rewire = deep_r(model, l1=0.1, temperature=1e-3, interval=3, t_end=7)
    values = [model[0].values.detach().clone()]
    reports = []
    for _ in range(9):
        reports.append(rewire.step() is not None)
        values.append(model[0].values.detach().clone())
    assert reports == [False, False, True] * 2 + [False] * 3
    moved = [not torch.equal(a, b) for a, b in itertools.pairwise(values)]
    assert moved == [True] * 7 + [False] * 2  # weights walk at every iteration until the end


def test_counts_do_not_drift_and_training_works():
    torch.manual_seed(0)
    model = nn.Sequential(
        esl.nn.SparseLinear(20, 40, density=0.3), nn.ReLU(), esl.nn.SparseLinear(40, 1, density=0.5)
    )
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    rewire = esl.DeepR(model, optimizer, l1=1e-3, temperature=1e-7)
    x = torch.randn(256, 20)
    y = x[:, :3].sum(1, keepdim=True)
    counts, losses, pruned = [layer.topology.nnzb for layer in (model[0], model[2])], [], 0
    for _ in range(200):
        optimizer.zero_grad()
        loss = (model(x) - y).square().mean()
        loss.backward()
        optimizer.step()
        pruned += sum(layer.pruned for layer in rewire.step().layers)
        losses.append(loss.item())
        assert [layer.topology.nnzb for layer in (model[0], model[2])] == counts
    assert losses[-1] < 0.1 * losses[0] and pruned > 0


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError])
def test_an_interrupted_step_changes_nothing(monkeypatch, error):
    model = mlp(block_size=1)
    optimizer = torch.optim.Adam(model.parameters())
    train_step(model, optimizer)
    rewire = deep_r(model, optimizer, l1=1.0, temperature=1.0)
    before, signs = everything(model, optimizer), {k: v.clone() for k, v in rewire._signs.items()}
    state = rewire.generator.get_state()

    def check():
        assert same(before, everything(model, optimizer)) and rewire.iteration == 0
        assert all(torch.equal(rewire._signs[k], signs[k]) for k in signs)
        assert torch.equal(rewire.generator.get_state(), state)

    failures = interrupt_each_write(monkeypatch, error, rewire.step, check)
    assert failures == 2 + 2 * (5 + 5)  # walks; values, gradient, moments and signs, and the index


def test_a_resumed_run_continues_exactly():
    def make():
        torch.manual_seed(3)
        model = mlp(block_size=1)
        optimizer = torch.optim.Adam(model.parameters(), 1e-2)
        return model, optimizer, esl.DeepR(model, optimizer, l1=0.1, temperature=1e-5)

    def go(parts, n, seed):
        torch.manual_seed(seed)
        for _ in range(n):
            train_step(*parts[:2])
            parts[2].step()

    first = make()
    go(first, 5, 1)
    states = copy.deepcopy([part.state_dict() for part in first])
    go(first, 5, 2)
    again = make()
    go(again, 3, 8)
    for part, state in zip(again, states, strict=True):
        part.load_state_dict(state)
    go(again, 5, 2)
    assert same(everything(*first[:2]), everything(*again[:2]))


@pytest.mark.parametrize(
    "damage, message",
    [
        (lambda s: s.pop("signs"), "expected signs by layer"),
        (lambda s: s["signs"].pop("1"), "1: expected .* signs as int8"),
        (lambda s: s["signs"].update({"1": s["signs"]["0"]}), "1: expected .* signs"),
        (lambda s: s["signs"]["0"].zero_(), "not all -1 or 1"),
    ],
)
def test_a_state_that_does_not_fit_changes_nothing(damage, message):
    rewire = deep_r(mlp(block_size=1))
    rewire.step()
    state = copy.deepcopy(rewire.state_dict())
    state["iteration"] = 7
    damage(state)
    with pytest.raises(ValueError, match=message):
        rewire.load_state_dict(state)
    assert rewire.iteration == 1


@pytest.mark.parametrize("density", [0.3, 0.5])
def test_other_blocks_that_were_loaded_get_signs(density):
    model = single(0.3)
    rewire = deep_r(model, l1=0.0, temperature=0.0)
    torch.manual_seed(77)
    other = esl.nn.SparseLinear(30, 20, density=density, block_size=1, bias=False)
    model[0].load_state_dict(other.state_dict())
    assert rewire.step().layers[0].pruned == 0


@pytest.mark.parametrize(
    "options, error, message",
    [
        ({"l1": -1}, ValueError, "l1: expected"),
        ({"temperature": math.inf}, ValueError, "temperature: expected"),
        ({"interval": 0}, ValueError, "interval: expected at least 1"),
        ({"t_end": 2.5}, TypeError, "t_end: expected a number of iterations"),
    ],
)
def test_wrong_arguments(options, error, message):
    with pytest.raises(error, match=message):
        deep_r(single(), **options)
