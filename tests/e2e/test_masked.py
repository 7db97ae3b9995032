"""The masked baseline is the same mathematics as block-sparse layers of 1x1 blocks, at a dense price."""

import pytest
import torch

from esl_sparse.experiments.masked import MaskedLinear, MaskRewirer
from esl_sparse.nn import SparseLinear


def masked(density=0.25, seed=0):
    return MaskedLinear(20, 12, density=density, generator=torch.Generator().manual_seed(seed))


def rewirer(layer, optimizer, **settings):
    settings = {"prune": "set", "grow": "random", "alpha": 0.5, "interval": 1, "t_end": 8, **settings}
    return MaskRewirer(
        torch.nn.Sequential(layer), optimizer, generator=torch.Generator().manual_seed(0), **settings
    )


def test_trains_as_a_sparse_layer_does():
    dense = masked()
    sparse = SparseLinear.from_dense(dense, mask=dense.mask, block_size=1)
    optimizers = [torch.optim.Adam(layer.parameters(), 0.01) for layer in (dense, sparse)]
    for _ in range(20):
        x = torch.randn(8, 20)
        for layer, optimizer in zip((dense, sparse), optimizers, strict=True):
            optimizer.zero_grad()
            layer(x).square().sum().backward()
            optimizer.step()
    torch.testing.assert_close(dense.weight, sparse.to_dense().weight)
    assert dense.weight[~dense.mask].eq(0).all()


@pytest.mark.parametrize("prune", ["set", "magnitude"])
@pytest.mark.parametrize("grow", ["random", "random_unfired"])
def test_updates_keep_the_count_and_start_anew(prune, grow):
    layer = masked()
    optimizer = torch.optim.Adam(layer.parameters(), 0.01)
    evolving = rewirer(layer, optimizer, prune=prune, grow=grow)
    explored = 60 / 240
    for step in range(1, 10):
        optimizer.zero_grad()
        layer(torch.randn(8, 20)).square().sum().backward()
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
    with pytest.raises(ValueError, match="grow: masks offer random, random_unfired, got 'gradient'"):
        rewirer(layer, torch.optim.SGD(layer.parameters(), 0.1), grow="gradient")
