import copy
import math
from itertools import pairwise

import pytest
import torch
from torch import nn

import esl_sparse as esl
from esl_sparse.rewire import erk

SIZES = (30, 50, 41, 8)


def mlp():
    return nn.Sequential(*(nn.Linear(a, b) for a, b in pairwise(SIZES)))


def rows(report):
    return {layer.name: layer for layer in report.layers}


@pytest.mark.parametrize("distribution", ["erk", "erdos_renyi", "uniform", lambda s, d: [d] * len(s)])
@pytest.mark.parametrize("block_size", [1, (2, 4), "auto"])
def test_every_linear_layer_becomes_sparse_at_its_share(distribution, block_size):
    model = mlp()
    report = esl.sparsify(model, 0.15, block_size, distribution)
    assert all(isinstance(layer, esl.nn.SparseLinear) for layer in model)
    assert all(layer.converted and layer.reason == "" for layer in report.layers)
    blocks = [layer.topology.layout.blocks for layer in model]
    shares = erk([(b, a) for a, b in pairwise(SIZES)], 0.15)
    if distribution in ("erk", "erdos_renyi"):
        expected = [p * n for p, n in zip(shares, blocks, strict=True)]
    else:
        expected = [0.15 * n for n in blocks]
    counts = [layer.topology.nnzb for layer in model]
    assert sum(counts) == round(sum(expected))
    assert all(abs(n - e) < 1 for n, e in zip(counts, expected, strict=True))
    assert [layer.active for layer in report.layers] == [layer.nnz for layer in model]
    if block_size == 1:
        assert sum(counts) == round(0.15 * sum(layer.weights for layer in report.layers))


def test_layers_that_the_distribution_makes_dense_stay_ordinary():
    model = nn.Sequential(nn.Linear(784, 800), nn.Linear(800, 10))
    last = model[1]
    report = esl.sparsify(model, 0.1, block_size=1)
    assert model[1] is last
    assert rows(report)["1"].reason == "the distribution gives it density 1"
    assert report.density == pytest.approx(0.1, abs=1e-6)
    assert model[0].nnz == round(0.1 * (784 * 800 + 8000)) - 8000


def test_density_1_changes_nothing():
    model = mlp()
    before = list(model)
    assert esl.sparsify(model, 1.0).density == 1.0
    assert list(model) == before


def test_scratch_draws_fresh_weights_at_the_sparse_fan_in():
    model = nn.Sequential(nn.Linear(400, 300))
    esl.sparsify(model, 0.1)
    bound = 1 / math.sqrt(0.1 * 400)
    assert 0.95 * bound < model[0].values.abs().max() <= bound * 1.01
    assert 0.9 * bound < model[0].bias.abs().max() <= bound * 1.01


def test_the_seed_decides():
    def ids(seed):
        model = mlp()
        esl.sparsify(model, 0.2, generator=torch.Generator().manual_seed(seed))
        return model[0].topology.block_ids(), model[0].values

    (a, v), (b, w), (c, _) = ids(1), ids(1), ids(2)
    assert torch.equal(a, b) and torch.equal(v, w) and not torch.equal(a, c)


def test_magnitude_keeps_the_largest_weights_and_biases():
    dense = mlp()
    model = copy.deepcopy(dense)
    esl.sparsify(model, 0.25, block_size=1, init="magnitude", distribution="uniform")
    for layer, old in zip(model, dense, strict=True):
        kept = layer.topology.to_dense(layer.values)
        bound = old.weight.abs().flatten().sort().values[-layer.nnz]
        assert torch.equal(kept, torch.where(old.weight.abs() >= bound, old.weight, 0.0))
        assert torch.equal(layer.bias, old.bias)


@pytest.mark.parametrize("init", ["scratch", "magnitude"])
def test_attributes_are_kept(init):
    model = nn.Sequential(nn.Linear(32, 32, dtype=torch.float64), nn.Linear(32, 32, bias=False)).eval()
    model[0].weight.requires_grad_(False)
    bias = model[0].bias
    esl.sparsify(model, 0.2, init=init)
    assert model[0].values.dtype == torch.float64 and not model[0].values.requires_grad
    assert model[0].bias is bias and bias.requires_grad
    assert model[1].bias is None and model[1].values.requires_grad
    assert not model[0].training and not model[1].training


def test_excluded_names_cover_what_they_hold():
    model = nn.ModuleDict({"body": mlp(), "head": nn.Linear(8, 8)})
    report = esl.sparsify(model, 0.2, exclude=["body", "head"])
    assert all(layer.reason == "excluded" for layer in report.layers)
    report = esl.sparsify(model, 0.2, exclude=["body.1"])
    assert [name for name, layer in rows(report).items() if not layer.converted] == ["body.1"]
    with pytest.raises(ValueError, match="no module 'tail'"):
        esl.sparsify(model, 0.2, exclude=["tail"])


class Scaled(nn.Linear):
    pass


def test_what_cannot_be_sparse_is_left_dense_and_says_why():
    model = nn.ModuleDict(
        {
            "conv3d": nn.Conv3d(3, 4, 3),
            "upsampling": nn.ConvTranspose2d(3, 4, 3),
            "attention": nn.MultiheadAttention(16, 2),
            "encoder": nn.TransformerEncoderLayer(16, 2, 32),
            "embedding": nn.Embedding(10, 16),
            "tied": nn.Linear(16, 10),
            "normed": nn.utils.parametrizations.weight_norm(nn.Linear(16, 16)),
            "scaled": Scaled(16, 16),
            "hooked": nn.Linear(16, 16),
            "norm": nn.LayerNorm(16),
            "sparse": esl.nn.SparseLinear(16, 16),
        }
    )
    model["tied"].weight = model["embedding"].weight
    model["hooked"].register_forward_hook(lambda *_: None)
    before = dict(model.named_modules())
    report = esl.sparsify(model, 0.2)
    assert dict(model.named_modules()) == before
    reasons = {name: layer.reason for name, layer in rows(report).items()}
    assert reasons["conv3d"] == "there is no block-sparse Conv3d"
    assert reasons["upsampling"] == "there is no block-sparse ConvTranspose2d"
    assert reasons["attention"] == "there is no block-sparse MultiheadAttention"
    assert reasons["attention.out_proj"] == "MultiheadAttention reads its weight directly"
    assert reasons["encoder.linear1"] == "TransformerEncoderLayer reads its weight directly"
    assert reasons["tied"] == "its weight is shared with another module"
    assert "subclass of nn.Linear" in reasons["scaled"]
    assert reasons["normed"] == "its weight is computed from other parameters"
    assert reasons["hooked"] == "it has hooks, which would be lost"
    assert reasons["sparse"] == "sparse already"
    assert "norm" not in reasons and not any(layer.converted for layer in report.layers)


def test_a_shared_module_stays_shared():
    shared = nn.Linear(16, 16)
    model = nn.Sequential(shared, nn.ReLU(), nn.ModuleList([shared]))
    report = esl.sparsify(model, 0.2)
    assert model[0] is model[2][0] and isinstance(model[0], esl.nn.SparseLinear)
    assert list(rows(report)) == ["0"]
    esl.densify(model)
    assert model[0] is model[2][0] and type(model[0]) is nn.Linear


@pytest.mark.parametrize(
    "make",
    [
        lambda p: torch.optim.Adam(p),
        lambda p: torch.optim.Adagrad(p, initial_accumulator_value=0.2),
        lambda p: torch.optim.SGD([{"params": [x], "lr": 0.1} for x in p], momentum=0.9),
    ],
)
def test_an_optimizer_follows(make):
    model = mlp()
    optimizer = make(list(model.parameters()))
    old = list(model.parameters())
    for param in old:
        param.grad = torch.randn_like(param)
    optimizer.step()
    states = [optimizer.state[layer.bias] for layer in model]
    esl.sparsify(model, 0.2, optimizer=optimizer)
    held = [p for group in optimizer.param_groups for p in group["params"]]
    assert [id(p) for p in held] == [id(p) for layer in model for p in (layer.values, layer.bias)]
    assert set(optimizer.state) <= set(held)
    assert all(optimizer.state[layer.bias] is state for layer, state in zip(model, states, strict=True))
    for param in held:
        param.grad = torch.randn_like(param)
    optimizer.step()
    esl.Rewirer(model, optimizer, interval=1, t_end=5).step()


def test_an_optimizer_that_does_not_hold_a_weight():
    model = mlp()
    esl.sparsify(model, 0.2, optimizer=torch.optim.SGD(model[0].parameters(), 0.1))
    assert all(isinstance(layer, esl.nn.SparseLinear) for layer in model)


def test_densify_gives_the_same_map():
    model = mlp()
    esl.sparsify(model, 0.3, block_size=4)
    model.eval()
    model[1].values.requires_grad_(False)
    x = torch.randn(5, 30)
    with esl._backends.use("reference"):
        y = model(x)
    weights, biases = [layer.to_dense().weight for layer in model], [layer.bias for layer in model]
    esl.densify(model)
    assert all(type(layer) is nn.Linear and not layer.training for layer in model)
    assert all(torch.equal(layer.weight, w) for layer, w in zip(model, weights, strict=True))
    assert all(layer.bias is b for layer, b in zip(model, biases, strict=True))
    assert [layer.weight.requires_grad for layer in model] == [True, False, True]
    torch.testing.assert_close(model(x), y)


def test_report_is_a_table():
    model = nn.Sequential(nn.Linear(784, 800), nn.Linear(800, 10))
    lines = str(esl.sparsify(model, 0.1)).splitlines()
    assert lines[0].split() == ["layer", "weights", "active", "density"]
    assert lines[1].endswith("blocks 4x4")
    assert lines[2].endswith("dense: the distribution gives it density 1")
    assert lines[3].startswith("overall density 0.1")


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: esl.sparsify(nn.Linear(3, 3)), "SparseLinear.from_dense"),
        (lambda: esl.sparsify(mlp(), init="random"), "'scratch' or 'magnitude', got 'random'"),
        (lambda: esl.sparsify(mlp(), distribution="er"), "distribution: expected one of"),
        (lambda: esl.sparsify(mlp(), density=2), "0 to 1, got 2"),
        (lambda: esl.densify(esl.nn.SparseLinear(3, 3)), "to_dense"),
    ],
)
def test_wrong_arguments(call, message):
    with pytest.raises(ValueError, match=message):
        call()
