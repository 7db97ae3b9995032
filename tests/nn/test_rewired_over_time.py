"""Recurrent spiking networks that step through time: each layer is called once a step."""

import pytest
import torch
from torch import nn

import esl_sparse as esl


def patterns():
    """Noisy images ``[1, 48, 1, 8, 8]`` of four kinds: a bright quarter in each."""
    y = torch.arange(48) % 4
    x = torch.rand(48, 1, 8, 8)
    for i, kind in enumerate(y.tolist()):
        rows, cols = divmod(kind, 2)
        x[i, 0, 4 * rows : 4 * rows + 4, 4 * cols : 4 * cols + 4] += 1
    return x[None], y


def trained(model, x, y, grow, steps=40):
    """The loss of each step; the topology changes four times or more."""
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    rewirer = esl.Rewirer(model, optimizer, grow=grow, interval=5, t_end=25, alpha=0.3)
    losses, updates = [], 0
    for _ in range(steps):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        updates += rewirer.step() is not None
    assert updates == 5
    return losses


class Recurrent(nn.Module):
    """Hidden neurons hear their own spikes of the step before; ``[T, N, 1, 8, 8] -> [N, 4]``."""

    def __init__(self, hidden=24):
        super().__init__()
        self.input, self.recurrent = nn.Linear(64, hidden), nn.Linear(hidden, hidden, bias=False)
        self.neurons = esl.nn.LIF(step_mode="s", surrogate="atan")
        self.readout = nn.Linear(hidden, 4)

    def forward(self, x):
        esl.reset(self)
        spikes = x.new_zeros(x.shape[1], self.recurrent.in_features)
        total = 0
        for frame in x.flatten(2):
            spikes = self.neurons(self.input(frame) + self.recurrent(spikes))
            total = total + self.readout(spikes)
        return total / len(x)


@pytest.mark.parametrize("grow", ["random", "gradient", "momentum"])
def test_a_recurrent_network_trains_and_rewires(grow):
    model = Recurrent()
    report = esl.sparsify(model, 0.4, distribution="uniform", block_size=2, exclude="readout")
    assert [x.name for x in report.layers if x.converted] == ["input", "recurrent"]
    before = model.recurrent.topology.block_ids()
    x, y = patterns()
    losses = trained(model, x.repeat(5, 1, 1, 1, 1), y, grow)
    assert losses[-1] < 0.5 * losses[0]
    assert not torch.equal(model.recurrent.topology.block_ids(), before)


def test_backpropagation_through_time_agrees_with_the_dense_network():
    model = Recurrent().double()
    esl.sparsify(model, 0.4, distribution="uniform", block_size=2, exclude="readout")
    x = patterns()[0].repeat(4, 1, 1, 1, 1).double()
    model(x).square().sum().backward()
    grads = [model.input.values.grad, model.recurrent.values.grad]
    topologies = [model.input.topology, model.recurrent.topology]
    model.zero_grad()
    esl.densify(model)
    model(x).square().sum().backward()
    for layer, grad, topology in zip((model.input, model.recurrent), grads, topologies, strict=True):
        assert grad.abs().max() > 0
        torch.testing.assert_close(grad, topology.gather_dense(layer.weight.grad))
