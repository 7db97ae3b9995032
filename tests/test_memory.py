from itertools import pairwise

import pytest
import torch
from torch import nn

import esl_sparse as esl


def after_a_step(model):
    optimizer = torch.optim.Adam(model.parameters())
    for param in model.parameters():
        param.grad = torch.randn_like(param)
    optimizer.step()
    return optimizer


def sparse(density, block_size):
    return nn.Sequential(esl.nn.SparseLinear(1024, 1024, density=density, block_size=block_size))


@pytest.mark.parametrize("density", [0.5, 0.1, 0.05, 0.01])
@pytest.mark.parametrize("block_size, limit", [(1, 1.8), (4, 1.1), ((4, 8), 1.1), (16, 1.1), (64, 1.1)])
def test_weight_state_goes_with_density(density, block_size, limit):
    """Values, index, gradient and Adam's state against the same of a dense layer."""
    model = sparse(density, block_size)
    memory = esl.memory_report(model, after_a_step(model)).sparse
    assert memory.dense == 4 * 4 * 1024 * 1024 + 4  # Adam's step is a scalar
    pointers = 2 * 4 * (1024 // model[0].block_size[0] + 1)
    assert memory.index <= 12 * model[0].topology.nnzb + pointers
    assert memory.total - pointers <= limit * model[0].density * memory.dense
    if density >= 0.05:
        assert memory.total <= limit * model[0].density * memory.dense


def test_bytes_are_those_of_the_tensors():
    model = nn.Sequential(
        esl.nn.SparseLinear(30, 50, density=0.2, block_size=(2, 4)), nn.Linear(50, 3, bias=False)
    )
    fresh = esl.memory_report(model)
    assert (fresh.sparse.gradients, fresh.sparse.optimizer, fresh.sparse.ever_active) == (0, 0, 0)
    optimizer = after_a_step(model)
    rewirer = esl.Rewirer(model, optimizer, grow="random", t_end=10_000)
    report = esl.memory_report(model, optimizer, rewirer)
    blocks = round(0.2 * 25 * 8)
    (layer,) = report.layers
    assert (layer.name, layer.values, layer.gradients) == ("0", 4 * 8 * blocks, 4 * 8 * blocks)
    assert layer.optimizer == 2 * 4 * 8 * blocks + 4
    assert layer.index == 3 * 4 * blocks + 4 * (25 + 1) + 4 * (8 + 1)
    assert layer.ever_active == 200 // 8  # a bitmap: ids would take 4 bytes each
    assert layer.dense == 4 * 4 * 30 * 50 + 4
    assert report.rest == 4 * 4 * (50 + 150) + 2 * 4
    assert report.total == layer.total + report.rest
    assert report.dense_total == layer.dense + report.rest


def test_bytes_of_convolutions():
    dense = nn.Sequential(nn.Conv2d(5, 9, 3, bias=False), nn.Conv2d(9, 8, (1, 2), groups=1, bias=False))
    model = nn.Sequential(
        esl.nn.SparseConv2d(5, 9, 3, bias=False, density=0.2, block_size=(4, 2)),
        esl.nn.SparseConv2d(9, 8, (1, 2), bias=False, density=0.5),
    )
    optimizer = after_a_step(model)
    rewirer = esl.Rewirer(model, optimizer, grow="random", t_end=10_000)
    report = esl.memory_report(model, optimizer, rewirer)
    first = report.layers[0]
    blocks = round(0.2 * 3 * 3 * 9)  # of 4 rows and 2 columns: 3 rows of blocks, 3 columns a tap, 9 taps
    assert first.values == first.gradients == 4 * 8 * blocks
    assert first.index == 3 * 4 * blocks + 4 * (3 + 1) + 4 * (27 + 1)
    assert first.optimizer == 2 * 4 * 8 * blocks + 4
    assert first.ever_active == -(-81 // 8)
    weights = sum(param.numel() for param in dense.parameters())
    assert report.dense_total == 4 * 4 * weights + 2 * 4
    assert report.rest == 0


def test_a_layer_without_blocks():
    model = sparse(0.0, 4)
    memory = esl.memory_report(model, after_a_step(model)).sparse
    assert memory.dense == 4 * 4 * 1024 * 1024 + 4
    assert memory.values == memory.gradients == 0


def test_a_dense_model():
    report = esl.memory_report(nn.Linear(3, 3))
    assert report.total == report.dense_total == report.rest == 4 * 12
    assert "48" in str(report)


def test_report_is_a_table():
    model = sparse(0.1, 4)
    lines = str(esl.memory_report(model, after_a_step(model))).splitlines()
    assert lines[0].split()[:3] == ["bytes", "values", "index"]
    assert lines[1].split()[0] == "0" and lines[2].startswith("all sparse")
    assert "10." in lines[3]


def test_what_follows_gradients_is_counted():
    model = sparse(0.1, 4)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    rewirer = esl.Rewirer(model, optimizer, grow="momentum", interval=30, t_end=90)
    counted = []
    for _ in range(30):
        counted.append(esl.memory_report(model, optimizer, rewirer).sparse.watched)
        optimizer.zero_grad()
        model(torch.bernoulli(torch.full((8, 1024), 0.2))).sum().backward()
        optimizer.step()
        rewirer.step()
    assert counted[:11] == [0] * 11  # the window begins with step 11: nothing is known before it
    blocks = model[0].topology.nnzb
    assert counted[11] == counted[29] >= 4 * 16 * 2 * blocks + 4 * blocks  # two averages, a column each
    assert esl.memory_report(model, optimizer, rewirer).sparse.watched == 0


class Fire(torch.autograd.Function):
    @staticmethod
    def forward(ctx, u):
        ctx.save_for_backward(u)
        return (u > 1).to(u)

    @staticmethod
    def backward(ctx, grad):
        (u,) = ctx.saved_tensors
        return grad * (1 - (u - 1).abs()).clamp(min=0)


class UnfusedBlock(nn.Module):
    """A spiking layer as papers' code writes it."""

    def __init__(self, conv, norm, pool):
        super().__init__()
        self.conv, self.norm, self.pool = conv, norm, pool

    def forward(self, x):
        currents = self.norm(self.conv(x.flatten(0, 1))).unflatten(0, x.shape[:2])
        v, spikes = torch.zeros_like(currents[0]), []
        for current in currents:
            u = 0.5 * v + current
            s = Fire.apply(u)
            v = (1 - s) * u
            spikes.append(s)
        y = torch.stack(spikes)
        return self.pool(y.flatten(0, 1)).unflatten(0, y.shape[:2]) if self.pool else y


def kept_for_backward(model, x):
    """Bytes of the storages that one forward saves, each once, without parameters, buffers and x."""
    known = {t.untyped_storage().data_ptr() for t in [x, *model.parameters(), *model.buffers()]}
    kept = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            kept[storage.data_ptr()] = storage
        return tensor.detach()

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        y = model(x)
    del y
    return sum(storage.nbytes() for storage in kept.values())


def test_a_chain_of_blocks_keeps_bits_for_backward():
    """Against the same modules one by one, 1/50 at most; pooled spikes are kept twice, as bits and as their sums."""

    def chain(block):
        channels = (2, 16, 32, 32)
        return nn.Sequential(
            *(
                block(nn.Conv2d(n, m, 3, padding=1), nn.BatchNorm2d(m), esl.nn.AvgPool2d(2) if i else None)
                for i, (n, m) in enumerate(pairwise(channels))
            )
        )

    x = torch.bernoulli(torch.full((4, 16, 2, 12, 12), 0.2))  # 64 lanes: one word
    fused = chain(lambda conv, norm, pool: esl.nn.SpikingBlock(conv, norm, esl.nn.LIF(), pool))
    esl.sparsify(fused, 0.3)
    assert all(block.is_fused for block in fused)
    words = 2 * 144 + 16 * 144 + 32 * (144 + 3 * 36) + 32 * 36  # what is pooled last, nobody needs
    kept = kept_for_backward(fused, x)
    assert 8 * words <= kept <= 1.05 * 8 * words
    assert 50 * kept <= kept_for_backward(chain(UnfusedBlock), x)
