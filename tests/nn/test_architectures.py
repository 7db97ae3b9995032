"""Networks that are no chain: attention between spikes, and a recurrent layer that steps through time."""

import copy

import pytest
import torch
from torch import nn

import esl_sparse as esl

LAYERS = (esl.nn.SparseLinear, esl.nn.SparseConv2d)


class SpikingSelfAttention(nn.Module):
    """Spikformer's attention (Zhou et al. 2023): queries, keys and values are spikes, no softmax."""

    def __init__(self, dim, heads, scale=0.25):
        super().__init__()
        self.heads, self.scale = heads, scale
        self.q, self.k, self.v, self.out = (self.branch(dim, dim) for _ in range(4))
        self.fire = esl.nn.LIF(v_threshold=0.5)

    @staticmethod
    def branch(n, m):
        norm = esl.nn.MergeTime(TokensLast(nn.BatchNorm1d(m)))
        return nn.Sequential(nn.Linear(n, m), norm, esl.nn.LIF())

    def split(self, x):
        T, B, N, C = x.shape
        return x.view(T, B, N, self.heads, C // self.heads).transpose(2, 3)

    def forward(self, x):
        q, k, v = self.split(self.q(x)), self.split(self.k(x)), self.split(self.v(x))
        y = self.scale * (q @ (k.transpose(-1, -2) @ v))
        return self.out(self.fire(y.transpose(2, 3).reshape(x.shape)))


class TokensLast(nn.Module):
    """A norm over channels ``[B, C, N]`` for tokens ``[B, N, C]``."""

    def __init__(self, norm):
        super().__init__()
        self.norm = norm

    def forward(self, x):
        return self.norm(x.transpose(1, 2)).transpose(1, 2)


class Spikformer(nn.Module):
    def __init__(self, dim=32, classes=4, T=3):
        super().__init__()
        self.T = T
        self.patches = nn.Sequential(
            esl.nn.MergeTime(nn.Sequential(nn.Conv2d(1, dim, 4, 4), nn.BatchNorm2d(dim))), esl.nn.LIF()
        )
        self.attention = SpikingSelfAttention(dim, 4)
        branch = SpikingSelfAttention.branch
        self.mlp = nn.Sequential(branch(dim, 2 * dim), branch(2 * dim, dim))
        self.head = nn.Linear(dim, classes)

    def forward(self, images):
        x = self.patches(images.expand(self.T, *images.shape))
        x = x.flatten(3).transpose(2, 3)  # [T, B, N, C]
        x = x + self.attention(x)
        x = x + self.mlp(x)
        return self.head(x.mean(2))


class Recurrent(nn.Module):
    """Spikes of one step come back as currents of the next."""

    def __init__(self, n=20, hidden=48, classes=4):
        super().__init__()
        self.inward, self.back = nn.Linear(n, hidden), nn.Linear(hidden, hidden, bias=False)
        self.lif = esl.nn.LIF(0.8, step_mode="s")
        self.readout = nn.Linear(hidden, classes)

    def forward(self, x):
        esl.reset(self)
        spikes, out = x.new_zeros(x.shape[1], self.back.in_features), []
        for frame in x:
            spikes = self.lif(self.inward(frame) + self.back(spikes))
            out.append(self.readout(spikes))
        return torch.stack(out)


def problem(make):
    torch.manual_seed(0)
    labels = torch.arange(64) % 4
    if make is Spikformer:
        images = 0.3 * torch.rand(64, 1, 16, 16)
        rows = torch.arange(16) % 4 == labels[:, None]  # a bright row in every patch says which class it is
        images += rows[:, None, :, None]
        return make(), images, labels
    frames = (torch.rand(8, 64, 20) < 0.15 + 0.5 * (torch.arange(20) % 4 == labels[:, None])).float()
    return make(), frames, labels


def names_of_sparse(model):
    return [name for name, module in model.named_modules() if isinstance(module, LAYERS)]


@pytest.mark.parametrize("make, layers", [(Spikformer, 8), (Recurrent, 3)])
def test_same_map_and_it_learns(make, layers):
    model, x, y = problem(make)
    esl.sparsify(model, 0.4, block_size=(4, 2), distribution="uniform")
    assert len(names_of_sparse(model)) == layers
    dense = copy.deepcopy(model)
    esl.densify(dense)
    with torch.no_grad():
        same = (model(x) - dense(x)).abs() < 1e-4
    assert same.float().mean() > 0.99  # a potential at the threshold may round either way

    optimizer = torch.optim.Adam(model.parameters(), 5e-3)
    rewirer = esl.Rewirer(model, optimizer, grow="momentum", interval=8, t_end=40)
    updates = 0
    for _ in range(60):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x).mean(0), y).backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
        optimizer.step()
        updates += rewirer.step() is not None
    assert updates >= 4
    accuracy = (model.eval()(x).mean(0).argmax(1) == y).float().mean()
    assert accuracy > 0.9
