"""sparsify and densify on convolutions, alone and inside spiking blocks."""

import copy

import pytest
import torch
from torch import nn

import esl_sparse as esl
from esl_sparse.models import SpikingCNN, SpikingResNet
from esl_sparse.rewire import erk

from .block_cases import block_entries

LAYERS = {
    "plain": lambda: nn.Conv2d(12, 20, 3, padding=1),
    "strided": lambda: nn.Conv2d(12, 20, (3, 2), stride=(2, 1), dilation=(1, 2), bias=False),
    "same": lambda: nn.Conv2d(12, 20, 3, padding="same", padding_mode="circular"),
    "reflected": lambda: nn.Conv2d(12, 20, 3, padding=(1, 2), padding_mode="reflect"),
    "odd": lambda: nn.Conv2d(7, 9, 3),
    "groups": lambda: nn.Conv2d(12, 20, 3, groups=2),
    "odd groups": lambda: nn.Conv2d(9, 15, 3, groups=3),
    "depthwise": lambda: nn.Conv2d(12, 24, 3, groups=12),
    "1x1": lambda: nn.Conv2d(12, 20, 1),
    "1d": lambda: nn.Conv1d(12, 20, 5, padding=2),
    "1d strided": lambda: nn.Conv1d(12, 20, 3, stride=2, groups=4, padding=1, padding_mode="replicate"),
}


@pytest.fixture(params=LAYERS)
def dense(request):
    return nn.Sequential(LAYERS[request.param]())


def data(layer, n=5):
    size = (9, 8) if isinstance(layer, nn.Conv2d) else (9,)
    return torch.randn(n, layer.in_channels, *size)


@pytest.mark.parametrize("init", ["scratch", "magnitude"])
def test_convolutions_keep_what_they_are(dense, init):
    model = copy.deepcopy(dense).eval()
    old = model[0]
    old.weight.requires_grad_(False)
    kept = old.bias
    report = esl.sparsify(model, 0.3, block_size=(4, 2), distribution="uniform", init=init)
    new = model[0]
    kind = esl.nn.SparseConv2d if isinstance(old, nn.Conv2d) else esl.nn.SparseConv1d
    assert type(new) is kind and not new.training and not new.values.requires_grad
    for name in (
        "in_channels",
        "out_channels",
        "kernel_size",
        "stride",
        "padding",
        "dilation",
        "groups",
        "padding_mode",
    ):
        assert getattr(new, name) == getattr(old, name), name
    assert new.bias is kept
    (row,) = report.layers
    assert (row.kind, row.weights, row.active) == (type(old).__name__, old.weight.numel(), new.nnz)
    assert row.block_size == new.block_size and row.converted
    lay = new.topology.layout
    assert new.topology.nnzb == round(0.3 * lay.blocks)
    assert lay.rows * lay.cols == old.weight.numel()


def test_depthwise_blocks_are_single_weights():
    model = nn.Sequential(LAYERS["depthwise"]())
    esl.sparsify(model, 0.3, block_size=4)
    assert model[0].block_size == (2, 1)  # two output channels and one input channel a group
    assert model[0].nnz == 2 * round(0.3 * 12 * 9)


def test_at_density_1_the_map_is_the_same(dense):
    x = data(dense[0])
    model = copy.deepcopy(dense)
    esl.sparsify(model, 1 - 1e-6, block_size=4, distribution="uniform", init="magnitude")
    assert type(model[0]) is not type(dense[0]) and model[0].density == 1.0
    torch.testing.assert_close(model(x), dense(x), rtol=1e-4, atol=1e-5)
    esl.densify(model)
    assert type(model[0]) is type(dense[0]) and repr(model[0]) == repr(dense[0])
    assert torch.equal(model[0].weight, dense[0].weight) and torch.equal(model(x), dense(x))


def test_magnitude_keeps_the_largest_blocks(dense):
    old = dense[0]
    weight = old.weight.detach().abs()
    model = copy.deepcopy(dense)
    esl.sparsify(model, 0.4, block_size=(2, 2), distribution="uniform", init="magnitude")
    new = model[0]
    every = copy.deepcopy(dense)
    esl.sparsify(every, 1 - 1e-6, block_size=(2, 2), distribution="uniform", init="magnitude")
    ids = every[0].topology.block_ids()
    valid = block_entries(torch.ones_like(weight), every[0]).sum((1, 2))
    scores = block_entries(weight, every[0]).sum((1, 2)) / valid
    order = scores.argsort(descending=True)
    assert set(new.topology.block_ids().tolist()) == set(ids[order[: new.topology.nnzb]].tolist())
    assert torch.equal(new.values, block_entries(old.weight.detach(), new))


def test_scratch_draws_at_the_sparse_fan_in():
    model = nn.Sequential(nn.Conv2d(64, 96, 3, groups=2))
    esl.sparsify(model, 0.1)
    bound = (0.1 * 32 * 9) ** -0.5
    assert 0.95 * bound < model[0].values.abs().max() <= bound * 1.01
    assert 0.9 * bound < model[0].bias.abs().max() <= bound * 1.01


@pytest.mark.parametrize("block_size", [1, (4, 2), "auto"])
def test_erk_counts_are_exact(block_size):
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3),
        nn.Conv2d(16, 32, 3, groups=2),
        nn.Conv2d(32, 45, 3),
        nn.Conv1d(45, 30, 1),
        nn.Linear(30, 7),
    )
    shapes = [tuple(layer.weight.shape) for layer in model]
    shares = erk(shapes, 0.2)
    report = esl.sparsify(model, 0.2, block_size)
    exact = total = 0
    for layer, row, share in zip(model, report.layers, shares, strict=True):
        if share >= 1:
            assert not row.converted and row.reason == "the distribution gives it density 1"
            continue
        blocks = layer.topology.layout.blocks
        assert abs(layer.topology.nnzb - share * blocks) < 1, row
        exact += share * blocks
        total += layer.topology.nnzb
    assert total == round(exact)
    if block_size == 1:
        assert report.density == pytest.approx(0.2, abs=1e-4)


def test_report_is_a_table_of_convolutions():
    model = nn.ModuleDict(
        {
            "first": nn.Conv2d(3, 8, 3),
            "deep": nn.Conv2d(64, 64, 3),
            "up": nn.ConvTranspose2d(8, 8, 2),
            "one": nn.Conv1d(64, 32, 3),
        }
    )
    lines = str(esl.sparsify(model, 0.1)).splitlines()
    assert lines[1].split()[:4] == ["first", "216", "216", "1.0000"]
    assert lines[1].endswith("dense: the distribution gives it density 1")
    assert lines[2].split()[0] == "deep" and lines[2].endswith("blocks 4x4")
    assert lines[3].endswith("dense: there is no block-sparse ConvTranspose2d")
    assert lines[4].split()[0] == "one" and lines[4].endswith("blocks 4x4")
    assert lines[-1].startswith("overall density")


def test_what_cannot_be_sparse_is_left_dense_and_says_why():
    class Other(nn.Conv2d):
        pass

    model = nn.ModuleDict(
        {
            "up": nn.ConvTranspose1d(4, 4, 3),
            "cube": nn.Conv3d(4, 4, 3),
            "other": Other(4, 4, 3),
            "hooked": nn.Conv2d(4, 4, 3),
            "normed": nn.utils.parametrizations.weight_norm(nn.Conv2d(4, 4, 3)),
            "kept": nn.Conv2d(4, 4, 3),
            "sparse": esl.nn.SparseConv2d(4, 4, 3),
        }
    )
    model["hooked"].register_forward_hook(lambda *_: None)
    before = dict(model.named_modules())
    reasons = {row.name: row.reason for row in esl.sparsify(model, 0.2, exclude=["kept"]).layers}
    assert dict(model.named_modules()) == before
    assert reasons["up"] == "there is no block-sparse ConvTranspose1d"
    assert reasons["cube"] == "there is no block-sparse Conv3d"
    assert reasons["other"] == "Other, a subclass of nn.Conv2d, may use its weight in its own way"
    assert reasons["hooked"] == "it has hooks, which would be lost"
    assert reasons["normed"] == "its weight is computed from other parameters"
    assert reasons["kept"] == "excluded" and reasons["sparse"] == "sparse already"


@pytest.mark.parametrize(
    "model, message",
    [(nn.Conv2d(3, 4, 3), "SparseConv2d.from_dense"), (nn.Conv1d(3, 4, 3), "SparseConv1d.from_dense")],
)
def test_a_layer_alone_cannot_be_replaced(model, message):
    with pytest.raises(ValueError, match=message):
        esl.sparsify(model)


# Inside spiking blocks


def cnn():
    return SpikingCNN((8, 16, "P", 16), 3, 8, 5, T=3)


def resnet():
    return SpikingResNet((8, 12), (2, 1), 5, stem=6, hidden=10, T=3)


def test_convolutions_of_blocks_are_made_of_blocks_even_where_nothing_is_pruned():
    """Also shortcuts; what stands outside stays dense."""
    model = resnet()
    report = {row.name: row for row in esl.sparsify(model, 1.0).layers}
    assert {name for name, row in report.items() if not row.converted} == {"hidden", "readout.linear"}
    assert all(row.active == row.weights for row in report.values())
    blocks = [m for m in model.modules() if isinstance(m, esl.nn.SpikingBlock)]
    assert len(blocks) == 7 and all(block.is_fused for block in blocks)
    esl.densify(model)
    assert not any(block.is_fused for block in blocks)


def test_a_distribution_that_gives_more_than_everything():
    model = cnn()
    esl.sparsify(model, 0.5, distribution=lambda shapes, density: [1.5, 0.5, 0.25, 2.0])
    layouts = [block.conv.topology.layout.blocks for block in model.blocks]
    counts = [block.conv.topology.nnzb for block in model.blocks]
    assert counts == [layouts[0], layouts[1] // 2, layouts[2] // 4]


def test_excluded_convolutions_of_a_block_leave_it_unfused():
    model = cnn()
    report = {row.name: row for row in esl.sparsify(model, 0.3, exclude=["blocks.1"]).layers}
    assert report["blocks.1.conv"].reason == "excluded"
    assert [block.is_fused for block in model.blocks] == [True, False, True]
    assert model(torch.rand(4, 3, 8, 8)).shape == (3, 4, 5)


@pytest.mark.parametrize("make", [cnn, resnet])
@pytest.mark.parametrize("initial", [0.0, 0.2])
def test_an_optimizer_follows(make, initial):
    model = make()
    optimizer = torch.optim.Adagrad(model.parameters(), 0.01, initial_accumulator_value=initial)

    def step():
        optimizer.zero_grad()
        model(torch.rand(4, 3, 8, 8)).square().mean().backward()
        optimizer.step()

    step()
    norms = {name: p for name, p in model.named_parameters() if p.dim() == 1}
    states = {name: optimizer.state[p]["sum"].clone() for name, p in norms.items()}
    esl.sparsify(model, 0.3, optimizer=optimizer)
    held = [p for group in optimizer.param_groups for p in group["params"]]
    assert [id(p) for p in held] == [id(p) for p in model.parameters()]
    assert set(optimizer.state) == set(held)
    for name, p in model.named_parameters():
        if name in norms:
            assert p is norms[name] and torch.equal(optimizer.state[p]["sum"], states[name])
        elif p.dim() == 3:
            assert (optimizer.state[p]["sum"] == initial).all() and optimizer.state[p]["sum"].shape == p.shape
    rewirer = esl.Rewirer(model, optimizer, interval=1, t_end=5, grow="random")
    step()
    assert rewirer.step().layers


def test_norms_and_their_statistics_stay():
    model = cnn()
    model(torch.rand(4, 3, 8, 8))
    before = {k: v.clone() for k, v in model.state_dict().items() if "norm" in k}
    parts = [(block.norm, block.lif, block.pool) for block in model.blocks]
    esl.sparsify(model, 0.3)
    esl.densify(model)
    assert [(block.norm, block.lif, block.pool) for block in model.blocks] == parts
    assert all(torch.equal(v, model.state_dict()[k]) for k, v in before.items())
