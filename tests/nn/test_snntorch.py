"""snnTorch's neurons with our layers: a loop over time, as its tutorials write it."""

import copy

import pytest
import torch
from torch import nn

import esl_sparse as esl

snntorch = pytest.importorskip("snntorch", reason="snnTorch is not installed")
utils = pytest.importorskip("snntorch.utils")


class Net(nn.Module):
    """784-like inputs of 36 numbers, 40 hidden neurons, 5 outputs; one output of spikes for each of T steps."""

    def __init__(self, T=6):
        super().__init__()
        self.T = T
        self.fc1 = nn.Linear(36, 40)
        self.lif1 = snntorch.Leaky(beta=0.8)
        self.fc2 = nn.Linear(40, 5)
        self.lif2 = snntorch.Leaky(beta=0.8)

    def forward(self, x):
        mem1, mem2 = self.lif1.init_leaky(), self.lif2.init_leaky()
        potentials = []
        for _ in range(self.T):
            spk1, mem1 = self.lif1(self.fc1(x), mem1)
            _, mem2 = self.lif2(self.fc2(spk1), mem2)
            potentials.append(mem2)
        return torch.stack(potentials)


class ConvNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 12, 3)
        self.lif1 = snntorch.Leaky(beta=0.5, init_hidden=True)
        self.fc = nn.Linear(12 * 2 * 2, 5)
        self.lif2 = snntorch.Leaky(beta=0.5, init_hidden=True, output=True)

    def forward(self, x):
        utils.reset(self)
        steps = [self.lif2(self.fc(self.lif1(self.conv(frame)).flatten(1)))[1] for frame in x]
        return torch.stack(steps)


def problem(make):
    torch.manual_seed(0)
    y = torch.arange(60) % 5
    if make is ConvNet:
        bright = (torch.arange(16) % 5 == y[:, None]).view(60, 1, 4, 4)
        return make(), torch.rand(4, 60, 1, 4, 4) + bright, y
    return make(), torch.rand(60, 36) + (torch.arange(36) % 5 == y[:, None]), y


@pytest.mark.parametrize("make", [Net, ConvNet])
def test_the_sparse_network_is_the_same_map(make):
    model, x, _ = problem(make)
    report = esl.sparsify(model, 0.4, distribution="uniform", block_size=2)
    assert all(layer.converted for layer in report.layers)
    dense = copy.deepcopy(model)
    esl.densify(dense)
    sparse_layers = [m for m in model.modules() if isinstance(m, (esl.nn.SparseLinear, esl.nn.SparseConv2d))]
    assert len(sparse_layers) == 2
    torch.testing.assert_close(model(x), dense(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("make", [Net, ConvNet])
def test_it_trains_and_rewires(make):
    model, x, y = problem(make)
    esl.sparsify(model, 0.4, distribution="uniform", block_size=2)
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    rewirer = esl.Rewirer(model, optimizer, grow="gradient", interval=10, t_end=50)
    losses, reports = [], []
    for _ in range(60):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(x).mean(0), y)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        reports.append(rewirer.step())
    assert losses[-1] < 0.8 * losses[0]
    assert sum(report is not None for report in reports) >= 4
