"""The masked baseline is the same mathematics as block-sparse layers of 1x1 blocks, at a dense price."""

import copy
from dataclasses import replace

import pytest
import torch

import esl_sparse as esl
from esl_sparse.experiments.masked import MaskedConv2d, MaskedLayer, MaskedLinear, MaskRewirer, mask_layers
from esl_sparse.models import convnet
from esl_sparse.nn import SparseConv2d, SparseLinear
from esl_sparse.rewire import GROW_RULES, Rewirer

KINDS = ("linear", "conv")


def masked(density=0.25, seed=0, kind="linear"):
    generator = torch.Generator().manual_seed(seed)
    if kind == "linear":
        return MaskedLinear(20, 12, density=density, generator=generator)
    return MaskedConv2d(5, 8, (3, 2), stride=2, padding=1, density=density, generator=generator)


def batch(kind):
    return torch.randn((8, 20) if kind == "linear" else (4, 5, 6, 7))


def sparse_twin(layer):
    twin = SparseLinear if isinstance(layer, MaskedLinear) else SparseConv2d
    return twin.from_dense(layer, mask=layer.mask, block_size=1)


def rewirer(layer, optimizer, **settings):
    settings = {"prune": "set", "grow": "random", "alpha": 0.5, "interval": 1, "t_end": 8, **settings}
    return MaskRewirer(
        torch.nn.Sequential(layer), optimizer, generator=torch.Generator().manual_seed(0), **settings
    )


@pytest.mark.parametrize("kind", KINDS)
def test_trains_as_a_sparse_layer_does(kind):
    dense = masked(kind=kind)
    sparse = sparse_twin(dense)
    optimizers = [torch.optim.Adam(layer.parameters(), 0.01) for layer in (dense, sparse)]
    for _ in range(20):
        x = batch(kind)
        for layer, optimizer in zip((dense, sparse), optimizers, strict=True):
            optimizer.zero_grad()
            layer(x).square().sum().backward()
            optimizer.step()
    torch.testing.assert_close(dense.weight, sparse.to_dense().weight)
    assert dense.weight[~dense.mask].eq(0).all()


@pytest.mark.parametrize("prune", ["set", "magnitude"])
@pytest.mark.parametrize("grow", ["random", "random_unfired"])
@pytest.mark.parametrize("kind", KINDS)
def test_updates_keep_the_count_and_start_anew(prune, grow, kind):
    layer = masked(kind=kind)
    optimizer = torch.optim.Adam(layer.parameters(), 0.01)
    evolving = rewirer(layer, optimizer, prune=prune, grow=grow)
    explored = 60 / 240
    for step in range(1, 10):
        optimizer.zero_grad()
        layer(batch(kind)).square().sum().backward()
        optimizer.step()
        before = layer.mask.clone()
        report = evolving.step()
        assert layer.nnz == 60
        if step > 8:
            assert report is None
            continue
        (entry,) = report.layers
        grown = layer.mask & ~before
        assert entry.grown == grown.sum() <= entry.pruned == round(report.f_decay * 60)
        assert explored <= entry.r_s <= 1
        explored = entry.r_s
        for tensor in (layer.weight, optimizer.state[layer.weight]["exp_avg"]):
            assert tensor[grown | ~layer.mask].eq(0).all()


def test_unfired_places_come_first():
    layer = masked(density=0.5)
    evolving = rewirer(
        layer, torch.optim.SGD(layer.parameters(), 0.1), grow="random_unfired", alpha=1.0, t_end=99
    )
    assert evolving.step().layers[0].r_s > 0.99  # all of the other half, but for the decay of the first step


def test_unknown_rules_are_refused():
    layer = masked()
    with pytest.raises(ValueError, match=r"grow: masks offer random, .* got 'momentum_neuron'"):
        rewirer(layer, torch.optim.SGD(layer.parameters(), 0.1), grow="momentum_neuron")


@pytest.mark.parametrize("grow", ["gradient", "momentum"])
@pytest.mark.parametrize("kind", KINDS)
def test_growth_by_gradient_is_that_of_sparse_layers(grow, kind):
    """The same places, found in a dense gradient here and without one there."""
    dense = masked(kind=kind)
    sparse = sparse_twin(dense)
    optimizers = [torch.optim.Adam(layer.parameters(), 0.01) for layer in (dense, sparse)]
    rule = GROW_RULES[grow]
    exact = replace(rule, exact=True)
    settings = {"prune": "magnitude", "alpha": 0.5, "interval": 6, "t_end": 24}
    rewirers = [
        MaskRewirer(
            torch.nn.Sequential(dense), optimizers[0], grow=grow, generator=torch.Generator(), **settings
        ),
        Rewirer(sparse, optimizers[1], grow=exact, **settings),
    ]
    grown = 0
    for _ in range(24):
        x = batch(kind)
        for layer, optimizer, evolving in zip((dense, sparse), optimizers, rewirers, strict=True):
            optimizer.zero_grad()
            layer(x).square().sum().backward()
            optimizer.step()
            report = evolving.step()
            grown += report.layers[0].grown if report else 0
        torch.testing.assert_close(dense.weight, sparse.to_dense().weight)
    assert grown > 20


def test_a_resumed_masked_run_follows_on():
    def make():
        layer = masked()
        optimizer = torch.optim.SGD(layer.parameters(), 0.01)
        return layer, optimizer, rewirer(layer, optimizer, grow="momentum", interval=5, t_end=20)

    def go(parts, n):
        layer, optimizer, evolving = parts
        for _ in range(n):
            optimizer.zero_grad()
            layer(torch.randn(8, 20)).square().sum().backward()
            optimizer.step()
            evolving.step()

    first, again = make(), make()
    go(first, 8)
    states = copy.deepcopy([part.state_dict() for part in first])
    torch.manual_seed(1)
    go(first, 8)
    for part, state in zip(again, states, strict=True):
        part.load_state_dict(state)
    torch.manual_seed(1)
    go(again, 8)
    assert torch.equal(first[0].weight, again[0].weight) and torch.equal(first[0].mask, again[0].mask)


def test_masks_and_blocks_share_the_density_alike():
    """Of 1x1 blocks each layer has as many as its mask has places; what the distribution fills has neither."""
    kept, masks = (convnet(size=8, channels=(8, 16, 16)) for _ in range(2))
    report = esl.sparsify(kept, 0.5, 1, "erk")
    mask_layers(masks, 0.5, "erk")
    found = dict(masks.named_modules())
    assert [type(found[x.name]).__name__ for x in report.layers] == [
        "Conv2d",
        "MaskedConv2d",
        "MaskedConv2d",
        "MaskedConv2d",
        "Linear",
    ]
    for x in report.layers:
        layer = found[x.name]
        active = layer.nnz if isinstance(layer, MaskedLayer) else layer.weight.numel()
        assert abs(active - x.active) <= 1
    x = torch.randn(3, 1, 8, 8)
    assert masks(x).shape == (4, 3, 10)
