"""Growth that draws how many: layers change size, everything of theirs moves along, the mean is what was pruned."""

import pytest
import torch
from torch import nn

import esl_sparse as esl
from esl_sparse.rewire import GROW_RULES, DrawnCount, bernoulli

RULE = DrawnCount(GROW_RULES["random"], bernoulli)


def test_bernoulli_counts_are_binomial():
    generator = torch.Generator().manual_seed(0)
    places, pruned = 500, 40
    drawn = torch.tensor([bernoulli(places, pruned, generator) for _ in range(4000)], dtype=torch.float64)
    p = pruned / places
    sd = (places * p * (1 - p)) ** 0.5
    assert abs(float(drawn.mean()) - pruned) < 4 * sd / 4000**0.5
    assert float(drawn.std()) == pytest.approx(sd, rel=0.05)
    assert bernoulli(0, 0, generator) == 0
    assert bernoulli(7, 7, generator) == 7


def train(rule, steps=30, **options):
    torch.manual_seed(0)
    model = nn.Sequential(
        esl.nn.SparseLinear(60, 80, density=0.3, block_size=2),
        nn.ReLU(),
        esl.nn.SparseLinear(80, 40, density=0.3, block_size=2),
    )
    optimizer = torch.optim.Adam(model.parameters())
    generator = torch.Generator().manual_seed(0)
    rewirer = esl.Rewirer(
        model, optimizer, grow=rule, interval=3, t_end=steps, generator=generator, **options
    )
    reports = []
    for _ in range(steps):
        optimizer.zero_grad()
        model(torch.randn(8, 60)).square().mean().backward()
        optimizer.step()
        if report := rewirer.step():
            reports.append(report)
    return model, optimizer, reports


def test_layers_drift_and_everything_follows():
    model, optimizer, reports = train(RULE)
    for layer, index in ((model[0], 0), (model[2], 1)):
        sizes = [report.layers[index].density for report in reports]
        assert len(set(sizes)) > 5 and layer.density == sizes[-1]
        assert len(layer.values) == layer.topology.nnzb
        state = optimizer.state[layer.values]
        assert state["exp_avg"].shape == state["exp_avg_sq"].shape == layer.values.shape
        assert torch.equal(
            layer(torch.ones(2, layer.in_features)).isfinite(), torch.ones(2, layer.out_features).bool()
        )


def test_the_same_seed_draws_the_same():
    first, second = train(RULE)[0], train(RULE)[0]
    for a, b in zip(first.state_dict().values(), second.state_dict().values(), strict=True):
        assert torch.equal(a, b)


def test_errors():
    with pytest.raises(ValueError, match="redistribute: the grow rule draws its own counts"):
        train(RULE, redistribute="momentum")
    with pytest.raises(ValueError, match=r"grow: expected a count from 0 to \d+, the rule drew -1"):
        train(DrawnCount(GROW_RULES["random"], lambda places, pruned, generator: -1))
