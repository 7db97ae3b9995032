"""Blocks move, the compiled code stays: an update changes what tensors hold, not their shapes."""

import copy

import pytest
import torch
from torch import nn

import esl_sparse as esl

STEPS, INTERVAL = 54, 25  # ends before the window of a third update begins


def network():
    g = torch.Generator().manual_seed(0)
    return nn.Sequential(
        esl.nn.SparseLinear(20, 30, density=0.3, block_size=2, input="float", generator=g),
        esl.nn.LIF(surrogate="atan"),
        esl.nn.SparseLinear(30, 6, density=0.5, block_size=2, input="binary", generator=g),
    )


class Counting:
    """A backend that counts what it compiles and how often that runs."""

    def __init__(self):
        self.compiled = self.runs = 0

    def __call__(self, graph, _):
        self.compiled += 1

        def run(*args):
            self.runs += 1
            return graph(*args)

        return run


def train(model, call, grow):
    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
    generator = torch.Generator().manual_seed(1)
    rewirer = esl.Rewirer(
        model, optimizer, grow=grow, interval=INTERVAL, t_end=1000, generator=torch.Generator().manual_seed(2)
    )
    updates = 0
    for _ in range(STEPS):
        x = torch.randn(3, 8, 20, generator=generator)
        optimizer.zero_grad()
        call(x).square().mean().backward()
        optimizer.step()
        updates += rewirer.step() is not None
    assert updates == 2


@pytest.mark.filterwarnings("ignore:t_end=")
@pytest.mark.parametrize("grow", esl.GROW_RULES)
def test_an_update_compiles_nothing_anew(grow):
    torch._dynamo.reset()
    model = network()
    other = copy.deepcopy(model)
    start = model[0].topology.block_ids()
    backend = Counting()
    train(model, torch.compile(model, fullgraph=True, backend=backend), grow)
    train(other, other, grow)
    assert not torch.equal(model[0].topology.block_ids(), start)
    assert backend.compiled == 1
    # Steps that are watched, and the one before them in which calls are counted, run eagerly.
    watched = 2 * 21 if "momentum" in grow else 2 * 2 if "gradient" in grow else 0
    assert backend.runs == STEPS - watched
    for name, value in other.state_dict().items():
        torch.testing.assert_close(model.state_dict()[name], value, rtol=1e-4, atol=1e-6)
