import numpy as np
import pytest
import torch
from torch import nn

import esl_sparse as esl
from esl_sparse.rewire import sparse_layers

from . import oracle
from .models import by_id, everything, interrupt_each_write, mlp, rewirer, same, train_step


def trained(**options):
    model = mlp(**options)
    optimizer = torch.optim.Adam(model.parameters())
    train_step(model, optimizer)
    return model, optimizer


def layers(model):
    return sparse_layers(model).items()


@pytest.mark.parametrize("prune", ["magnitude", "set"])
@pytest.mark.parametrize("grow", ["random", "random_unfired"])
def test_an_update_prunes_what_the_oracle_says_and_moves_the_rest(prune, grow):
    model, optimizer = trained(block_size=1, density=0.3)
    before = {name: (by_id(x, x.values), by_id(x, x.values.grad)) for name, x in layers(model)}
    report = rewirer(model, optimizer, prune=prune, grow=grow, alpha=0.4, schedule="constant").step()
    for (name, layer), said in zip(layers(model), report.layers, strict=True):
        values, grads = before[name]
        ids, weights = np.array(list(values)), torch.stack(list(values.values())).flatten().numpy()
        pruned = oracle.PRUNE[prune](ids, weights, round(0.4 * len(ids)), seed=0)  # no ties here
        after = by_id(layer, layer.values)
        grown = after.keys() - values.keys()
        assert len(after) == len(values)
        assert values.keys() - pruned <= after.keys()
        assert (said.name, said.pruned, said.grown) == (name, len(pruned), len(grown))
        for i, value in after.items():
            assert torch.equal(value, values[i] if i in values else torch.zeros(1, 1))
        for i, grad in by_id(layer, layer.values.grad).items():
            assert torch.equal(grad, grads[i] if i in grads else torch.zeros(1, 1))


def test_a_place_pruned_and_chosen_again_keeps_everything():
    model, optimizer = trained()
    before = everything(model, optimizer)
    put_back = {}

    def prune(blocks, count):
        put_back[blocks.name] = blocks.ids[:count]
        return torch.arange(count)

    report = rewirer(model, optimizer, prune=prune, grow=lambda absent, _: put_back[absent.name]).step()
    assert all(layer.pruned > 0 and layer.grown == 0 for layer in report.layers)
    assert same(before, everything(model, optimizer))


@pytest.mark.parametrize("prune", ["magnitude", "set"])
@pytest.mark.parametrize("grow", ["random", "random_unfired"])
def test_at_density_1_an_update_is_the_identity(prune, grow):
    model, optimizer = trained(density=1.0)
    before = everything(model, optimizer)
    report = rewirer(model, optimizer, prune=prune, grow=grow).step()
    assert [layer.grown for layer in report.layers] == [0, 0]
    assert [layer.r_s for layer in report.layers] == [1.0, 1.0]
    assert same(before, everything(model, optimizer))


def test_a_layer_without_blocks_stays_without():
    model, optimizer = trained(density=0.0)
    report = rewirer(model, optimizer).step()
    assert [(layer.pruned, layer.grown, layer.density) for layer in report.layers] == [(0, 0, 0.0)] * 2


@pytest.mark.parametrize("grow, block_size", [("random", 4), ("random_unfired", 1)])
def test_a_thousand_updates_keep_every_count(grow, block_size):
    model, optimizer = trained(block_size=block_size, density=0.1)
    total = [layer.topology.nnzb for _, layer in layers(model)]
    rewire = rewirer(model, optimizer, grow=grow, schedule="constant", t_end=1000)
    for _ in range(1000):
        report = rewire.step()
        for layer in sparse_layers(model).values():
            layer.values.data.add_(torch.randn_like(layer.values))
    assert [layer.topology.nnzb for _, layer in layers(model)] == total
    assert report.iteration == 1000 == rewire.iteration
    assert [layer.pruned for layer in report.layers] == [round(0.5 * n) for n in total]
    assert all(layer.r_s == 1.0 for layer in report.layers)
    for _, layer in layers(model):  # the index kernels read is whole
        ids = layer.topology.block_ids()
        fresh = esl.BlockTopology.from_block_ids(ids, layer.topology.layout)
        assert same(list(layer.topology.index_tensors()), list(fresh.index_tensors()))


def test_unfired_places_are_explored_before_any_returns():
    model = nn.Sequential(esl.nn.SparseLinear(20, 20, density=0.1, block_size=1))
    rewire = rewirer(model, torch.optim.SGD(model.parameters(), 0.1), grow="random_unfired", alpha=0.5)
    shares = [rewire.step().layers[0] for _ in range(30)]
    size = 40
    for said in shares:
        size = min(400, size + said.pruned)
        assert said.r_s == size / 400


@pytest.mark.parametrize("garbage", [torch.nan, torch.inf, -1e30])
def test_what_overhangs_does_not_matter(garbage):
    torch.manual_seed(1)
    clean, optimizer = trained(density=0.5)
    torch.manual_seed(1)
    dirty, other = trained(density=0.5)
    for layer in sparse_layers(dirty).values():
        layer.values.data.masked_fill_(~layer.topology.valid(), garbage)
        layer.values.grad.masked_fill_(~layer.topology.valid(), garbage)
    torch.manual_seed(2)
    expected = rewirer(clean, optimizer).step()
    torch.manual_seed(2)
    assert rewirer(dirty, other).step() == expected
    for (_, a), (_, b) in zip(layers(clean), layers(dirty), strict=True):
        assert torch.equal(a.topology.block_ids(), b.topology.block_ids())


def test_objects_stay_the_same():
    model, optimizer = trained()
    layer = model[0]
    kept = [layer.values, layer.values.grad, layer.crow_indices, optimizer.state[layer.values]["exp_avg"]]
    rewirer(model, optimizer).step()
    now = [layer.values, layer.values.grad, layer.crow_indices, optimizer.state[layer.values]["exp_avg"]]
    assert all(a is b for a, b in zip(kept, now, strict=True))


def test_memory_that_others_look_at_stays_the_same():
    """Shared with another process, or part of a larger buffer, as DDP's gradients are."""
    model, optimizer = trained()
    model.share_memory()
    layer = model[0]
    bucket = torch.zeros(2 * layer.values.numel())
    layer.values.grad = bucket[: layer.values.numel()].view_as(layer.values).copy_(layer.values.grad)
    kept = [layer.values, layer.values.grad, *layer.topology.index_tensors()]
    pointers, ids = [t.data_ptr() for t in kept], layer.topology.block_ids()
    rewirer(model, optimizer).step()
    now = [layer.values, layer.values.grad, *layer.topology.index_tensors()]
    assert pointers == [t.data_ptr() for t in now] and layer.values.is_shared()
    assert not torch.equal(ids, layer.topology.block_ids())


def test_a_network_trains_through_updates():
    torch.manual_seed(3)
    model = nn.Sequential(
        esl.nn.SparseLinear(20, 40, density=0.3), nn.ReLU(), esl.nn.SparseLinear(40, 1, density=0.5)
    )
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    rewire = rewirer(model, optimizer, interval=10, t_end=150)
    x = torch.randn(256, 20)
    y = x[:, :3].sum(1, keepdim=True)
    losses = []
    with esl._backends.use("reference"):
        for _ in range(200):
            optimizer.zero_grad()
            loss = (model(x) - y).square().mean()
            loss.backward()
            optimizer.step()
            rewire.step()
            losses.append(loss.item())
    assert losses[-1] < 0.1 * losses[0]


# Which layers


def test_a_frozen_layer_is_left_alone():
    model, optimizer = trained()
    model[0].values.requires_grad_(False)
    ids, values = model[0].topology.block_ids(), model[0].values.clone()
    report = rewirer(model, optimizer).step()
    assert [layer.name for layer in report.layers] == ["1"]
    assert torch.equal(model[0].topology.block_ids(), ids) and torch.equal(model[0].values, values)


def test_a_shared_module_is_rewired_once():
    shared = esl.nn.SparseLinear(16, 16)
    model = nn.Sequential(shared, nn.ReLU(), shared)
    report = rewirer(model, torch.optim.SGD(model.parameters(), 0.1)).step()
    assert [layer.name for layer in report.layers] == ["0"]


def test_any_module_with_values_and_topology_takes_part():
    class Kernel(nn.Module):
        """The weight of a 3x3 convolution of 8 to 6 channels in 2 groups: two group parts, nine taps."""

        def __init__(self):
            super().__init__()
            layout = esl.BlockLayout(6, 36, 2, 4, groups=2, taps=9)
            self.topology = esl.BlockTopology.from_block_ids(torch.arange(0, layout.blocks, 3), layout)
            self.values = nn.Parameter(torch.randn(self.topology.nnzb, 2, 4))

    model = Kernel()
    before = by_id(model, model.values)
    said = rewirer(model, torch.optim.SGD(model.parameters(), 0.1)).step().layers[0]
    after = by_id(model, model.values)
    assert said.grown == len(after.keys() - before.keys()) > 0
    assert all(torch.equal(after[i], before[i]) for i in after.keys() & before.keys())


# Mistakes


def test_values_that_the_optimizer_does_not_hold():
    model = mlp()
    with pytest.raises(ValueError, match=r"does not hold 1\.values"):
        rewirer(model, torch.optim.SGD(model[0].parameters(), 0.1))


@pytest.mark.parametrize(
    "options, error, message",
    [
        (
            {"prune": "smallest"},
            ValueError,
            "prune: expected one of global_magnitude, magnitude, set, set_itop, got 'smallest'",
        ),
        ({"grow": 3}, TypeError, "grow: expected a name or a function, got int"),
        ({"schedule": "cosin"}, ValueError, "schedule: expected one of"),
        ({"protect": -1}, ValueError, "protect"),
        ({"followers": [mlp]}, TypeError, "followers: expected modules"),
    ],
)
def test_wrong_arguments(options, error, message):
    with pytest.raises(error, match=message):
        rewirer(*trained(), **options)


def test_no_sparse_layer():
    model = nn.Linear(3, 3)
    with pytest.raises(ValueError, match="no block-sparse layer"):
        rewirer(model, torch.optim.SGD(model.parameters(), 0.1))
    with pytest.raises(TypeError, match=r"expected a torch\.optim\.Optimizer, got Linear"):
        rewirer(mlp(), model)


def test_values_shared_without_their_index():
    model = nn.Sequential(esl.nn.SparseLinear(16, 16), esl.nn.SparseLinear(16, 16))
    model[1].values = model[0].values
    with pytest.raises(ValueError, match="0 and 1 share their values"):
        rewirer(model, torch.optim.SGD(model.parameters(), 0.1))


@pytest.mark.parametrize("bad, count", [(torch.nan, 2), (torch.inf, 1), (-torch.inf, 3)])
def test_weights_without_a_rank_are_named_before_anything_changes(bad, count):
    model, optimizer = trained()
    model[1].values.data.flatten()[:count] = bad
    rewire = rewirer(model, optimizer)
    before = everything(model, optimizer)
    with pytest.raises(ValueError, match=f"1: {count} of .* weights are NaN or infinite"):
        rewire.step()
    for a, b in zip(before, everything(model, optimizer), strict=True):
        assert torch.equal(a.nan_to_num(7), b.nan_to_num(7))


@pytest.mark.parametrize(
    "options, message",
    [
        ({"prune": lambda blocks, n: torch.arange(n + 1)}, r"prune: .* int64 \(\d+,\) for 0"),
        ({"prune": lambda blocks, n: torch.ones(n)}, "prune: .* got torch.float32"),
        ({"prune": lambda blocks, n: torch.zeros(n).long()}, "prune: .* repeated"),
        ({"grow": lambda absent, n: None}, "grow: .* got NoneType"),
        ({"grow": lambda absent, n: absent.layout.blocks + torch.arange(n)}, "grow: .* out-of-range"),
        ({"grow": lambda absent, n: absent.active[:n]}, "grow: the rule chose blocks of 0 that are active"),
    ],
)
def test_a_rule_that_breaks_its_word(options, message):
    model, optimizer = trained()
    rewire = rewirer(model, optimizer, alpha=0.3, schedule="constant", **options)
    before = everything(model, optimizer)
    with pytest.raises(ValueError, match=message):
        rewire.step()
    assert same(before, everything(model, optimizer)) and rewire.iteration == 0


# All or nothing


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError])
@pytest.mark.parametrize("when", ["before", "after"])
def test_an_interrupted_update_changes_nothing_and_can_be_repeated(monkeypatch, error, when):
    torch.manual_seed(5)
    model, optimizer = trained(density=0.3)
    follower = torch.optim.swa_utils.AveragedModel(model)
    rewire = rewirer(model, optimizer, grow="random_unfired", followers=[follower], protect=1)
    before, state = everything(model, optimizer, follower), rewire.state_dict()

    def check():
        assert same(before, everything(model, optimizer, follower))
        assert rewire.iteration == 0
        assert torch.equal(rewire.state_dict()["generator"], state["generator"])

    failures = interrupt_each_write(monkeypatch, error, rewire.step, check, when)
    # Two layers, each with values, gradient, two moments and a follower's values, and two indices of five.
    assert failures == 2 * (5 + 2 * 5)
    assert not same(before, everything(model, optimizer, follower))
    done = everything(model, optimizer, follower)

    torch.manual_seed(5)
    model, optimizer = trained(density=0.3)
    follower = torch.optim.swa_utils.AveragedModel(model)
    rewirer(model, optimizer, grow="random_unfired", followers=[follower], protect=1).step()
    assert same(done, everything(model, optimizer, follower))


# Protection


def test_protected_blocks_are_not_pruned():
    model = nn.Sequential(esl.nn.SparseLinear(40, 40, density=0.2, block_size=1))
    rewire = rewirer(
        model, torch.optim.SGD(model.parameters(), 0.1), alpha=0.3, schedule="constant", protect=2
    )
    layer = model[0]
    n = layer.topology.nnzb
    history = [set(layer.topology.block_ids().tolist())]
    grown = []
    for _ in range(8):
        said = rewire.step().layers[0]
        now = set(layer.topology.block_ids().tolist())
        grown.append(now - history[-1])
        recent = set().union(*grown[-3:-1])
        assert recent <= now  # grown in either of the last two updates: still there
        assert said.pruned == round(0.3 * (n - len(recent & history[-1])))
        history.append(now)


# Reports


def test_report():
    model, optimizer = trained()
    rewire = rewirer(model, optimizer, interval=3, t_end=30)
    assert [rewire.step() is None for _ in range(6)] == [True, True, False] * 2
    while (report := rewire.step()) is None:
        pass
    assert report.iteration == 9
    assert report.f_decay == pytest.approx(0.25 * (1 + np.cos(np.pi * 0.3)))
    assert [layer.density for layer in report.layers] == [layer.density for _, layer in layers(model)]
    table = str(report).splitlines()
    assert table[0] == "rewired at iteration 9, f_decay 0.3969"
    assert table[1].split() == ["layer", "pruned", "grown", "density", "R_s"]
    assert len(table) == 4 and table[2].split()[0] == "0"


def test_nothing_after_t_end():
    model, optimizer = trained()
    rewire = rewirer(model, optimizer, interval=2, t_end=7)
    assert [t for t in range(1, 40) if rewire.step() is not None] == [2, 4, 6]


def test_the_seed_decides():
    def ids(seed):
        torch.manual_seed(0)
        model, optimizer = trained(block_size=1)
        generator = torch.Generator().manual_seed(seed)
        rewirer(model, optimizer, generator=generator).step()
        return model[0].topology.block_ids()

    assert torch.equal(ids(1), ids(1))
    assert not torch.equal(ids(1), ids(2))
