"""What an update allocates goes with the active blocks; nothing goes with the dense weight."""

import pytest
import torch
from torch import nn

import esl_sparse as esl
from benchmarks.allocations import Allocations

GROW = ["random", "random_unfired", "gradient", "momentum", "momentum_neuron"]


def trained(size, density, block_size, grow, steps, **options):
    """Up to the last iteration before an update, with two calls' worth of spikes in a step."""
    model = nn.Sequential(esl.nn.SparseLinear(size, size, bias=False, density=density, block_size=block_size))
    optimizer = torch.optim.Adam(model.parameters())
    rewire = esl.Rewirer(model, optimizer, grow=grow, interval=steps, t_end=10 * steps, **options)
    return model, optimizer, rewire


def step(model, optimizer, rewire, lanes=32):
    """Peak bytes that backward, optimiser and rewirer made beyond what a plain step does, and the report."""
    x = torch.bernoulli(torch.full((lanes, model[0].in_features), 0.1))
    optimizer.zero_grad()
    y = model(x)
    grad = torch.randn_like(y)
    with Allocations() as in_backward:
        y.backward(grad)
    optimizer.step()
    with Allocations() as in_update:
        report = rewire.step()
    return max(in_backward.peak - model[0].values.nbytes, in_update.peak), report


def standing(rewire):
    """Bytes that watches hold from step to step."""
    tensors = [
        tensor
        for watch in rewire._watches.values()
        if watch._found is not None
        for tensor in (watch._average, watch._active_average, *watch._found.topology.index_tensors())
        if tensor is not None
    ]
    return sum(tensor.nbytes for tensor in tensors)


@pytest.mark.parametrize("grow", GROW)
@pytest.mark.parametrize("block_size, density", [(1, 0.1), (1, 0.01), (4, 0.1), (4, 0.01), (16, 0.1)])
def test_an_update_takes_less_than_twice_the_sparse_weight_state(grow, block_size, density):
    """Watching included; the record of what was ever active is the model's, not the update's, and counts apart."""
    parts = trained(2048, density, block_size, grow, steps=4)
    held = peak = 0
    for _ in range(4):
        extra, report = step(*parts)
        peak = max(peak, held + extra)
        held = standing(parts[2])
    memory = esl.memory_report(*parts).sparse
    assert report.layers[0].grown > 0 and report.layers[0].note == ""
    # The record's old and new form exist together; a scan needs room for 64 rows of scores and 8,192 candidates.
    rows = 64 // block_size * 2048 // block_size if block_size < 64 else 0
    room = (4 * rows + 30 * 8192) if grow in GROW[2:] else 0
    assert peak < 2 * (memory.total - memory.ever_active) + 2 * memory.ever_active + room


@pytest.mark.parametrize("grow", ["random", "random_unfired", "gradient"])
def test_a_layer_of_four_billion_places(grow):
    parts = trained(65_536, 2e-4, 4, grow, steps=2, alpha=0.1)
    for _ in range(2):
        peak, report = step(*parts, lanes=8)
    memory = esl.memory_report(*parts).sparse
    assert report.layers[0].grown > 0 and report.layers[0].note == ""
    assert peak < memory.dense / 1000


@pytest.mark.parametrize("redistribute", ["magnitude", "momentum"])
def test_redistribution_takes_no_more(redistribute):
    parts = trained(1024, 0.1, 4, "random", steps=1, redistribute=redistribute)
    peak, _ = step(*parts)
    assert peak < 2 * esl.memory_report(*parts).sparse.total


def test_the_recorder_sees_what_is_made():
    with Allocations() as allocations:
        a = torch.zeros(1000) + 1
        b = a.view(10, 100)[2:]
        del a
        c = b.clone()
    assert allocations.largest == 4000
    assert allocations.peak == 8000
    assert allocations.live == 4000 + c.nbytes
