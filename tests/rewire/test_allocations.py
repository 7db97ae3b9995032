"""What an update allocates goes with the active blocks; nothing goes with the dense weight."""

import pytest
import torch
from torch import nn

import esl_sparse as esl

from .allocations import Allocations
from .models import rewirer, train_step


def sparse_and_dense(size, density, block_size, grow):
    model = nn.Sequential(esl.nn.SparseLinear(size, size, bias=False, density=density, block_size=block_size))
    optimizer = torch.optim.Adam(model.parameters())
    train_step(model, optimizer)
    rewire = rewirer(model, optimizer, grow=grow)
    return rewire, esl.memory_report(model, optimizer, rewire).sparse


@pytest.mark.parametrize("grow", ["random", "random_unfired"])
@pytest.mark.parametrize("block_size, density", [(1, 0.1), (1, 0.01), (4, 0.1), (4, 0.01), (16, 0.1)])
def test_an_update_takes_less_than_twice_the_sparse_weight_state(grow, block_size, density):
    rewire, memory = sparse_and_dense(2048, density, block_size, grow)
    with Allocations() as allocations:
        rewire.step()
    assert allocations.peak < 2 * memory.total
    assert allocations.largest <= max(memory.values, 8 * memory.index // 12)  # an id takes 8 bytes


@pytest.mark.parametrize("grow", ["random", "random_unfired"])
def test_a_layer_of_four_billion_places(grow):
    rewire, memory = sparse_and_dense(65_536, 2e-4, 4, grow)
    for _ in range(2):
        with Allocations() as allocations:
            report = rewire.step()
        assert report.layers[0].grown > 0
        assert allocations.largest <= memory.values
        assert allocations.peak < memory.dense / 1000


def test_the_recorder_sees_what_is_made():
    with Allocations() as allocations:
        a = torch.zeros(1000) + 1
        b = a.view(10, 100)[2:]
        del a
        c = b.clone()
    assert allocations.largest == 4000
    assert allocations.peak == 8000
    assert allocations.live == 4000 + c.nbytes
