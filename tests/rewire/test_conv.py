"""Convolutions under rewiring: what every block's gradient is, what grows, and in how much memory."""

import numpy as np
import pytest
import torch
from torch import nn

import esl_sparse as esl
import esl_sparse.nn.conv
from benchmarks.allocations import Allocations
from esl_sparse import BlockTopology
from esl_sparse.nn import SparseConv1d, SparseConv2d

from .. import oracle
from . import oracle as rules
from .models import by_id
from .test_gradient_rules import EXACT, choices, ema

# name -> arguments of a layer of 6 input channels
LAYERS = {
    "4x4": ((8, 3), {"padding": 1}),
    "1x1": ((5, (2, 3)), {"block_size": 1, "stride": 2}),
    "overhang": ((10, 3), {"block_size": (8, 4), "padding": (1, 0)}),
    "groups": ((10, 3), {"block_size": (4, 2), "groups": 2, "padding": 1}),
    "depthwise": ((12, 3), {"groups": 6, "padding": 1}),
    "circular": ((8, 3), {"padding": 1, "padding_mode": "circular"}),
    "one dimension": ((8, 5), {"padding": 2, "stride": 2}),
}


def layer(name, density=0.3):
    (outputs, kernel), options = LAYERS[name]
    kind = SparseConv1d if name == "one dimension" else SparseConv2d
    torch.manual_seed(0)
    return kind(6, outputs, kernel, density=density, **options)


def data(module, kind, *lead):
    size = (6, 5)[: len(module.kernel_size)]
    x = torch.bernoulli(torch.full((*lead, 6, *size), 0.3))
    if kind == "levels":
        x = x * torch.randint(1, 4, x.shape) / 4
    elif kind == "real":
        x = torch.randn(x.shape)
    with torch.no_grad():
        return x, torch.randn(module(x).shape)


def weight_shape(module):
    kernel = (1, *module.kernel_size)[-2:]
    return module.out_channels, module.in_channels // module.groups, *kernel


def dense_gradient(module, *calls):
    """Of the dense weight ``[out, in / groups, kh, kw]``, in float64, summed over calls."""
    dense = module.to_dense().double()
    for x, grad in calls:
        lead = x.dim() - len(module.kernel_size) - 1
        dense(x.double().flatten(0, lead - 1)).backward(grad.double().flatten(0, lead - 1))
    return dense.weight.grad.reshape(weight_shape(module)).numpy()


def every_block(module, weight):
    """A dense tensor as all potential blocks, ``[blocks, bm, bn]``."""
    ids = np.arange(module.topology.layout.blocks)
    assert len(ids) == oracle.conv_block_count(weight.shape, module.groups, module.block_size)
    return oracle.conv_blocks(weight, ids, module.groups, module.block_size)


def scores(module, gradient):
    """Mean magnitude of every block over its entries inside the weight."""
    inside = every_block(module, np.ones_like(gradient)).sum((1, 2))
    return every_block(module, abs(gradient)).sum((1, 2)) / inside


def given(module, x):
    return esl.functional.pack(x.unsqueeze(-2) if module.topology.layout.taps == 5 else x)


def calls_of(module, *calls, packed=False):
    for x, grad in calls:
        source = given(module, x) if packed else x
        module(source)  # fixes what kind of input it is
        yield module.call(module.seen_input(source), grad)


@pytest.mark.parametrize("kind", ["spikes", "levels", "real", "packed"])
@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("strip_bytes", [1, 1 << 20])
def test_scores_of_all_blocks(backend, name, kind, strip_bytes, monkeypatch):
    """Of two calls together: their gradients are summed before magnitudes are taken."""
    monkeypatch.setattr(esl_sparse.nn.sparse, "_SCORE_BYTES", strip_bytes)
    module = layer(name)
    calls = [data(module, kind, 2, 5), data(module, kind, 3, 4)]
    expected = scores(module, dense_gradient(module, *calls))
    strips = list(module.block_scores(list(calls_of(module, *calls, packed=kind == "packed"))))
    assert [first for first, _ in strips] == list(np.cumsum([0, *(len(s) for _, s in strips[:-1])]))
    actual = torch.cat([strip for _, strip in strips])
    assert actual.dtype == torch.float32
    np.testing.assert_allclose(actual.flatten(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["spikes", "real", "packed"])
@pytest.mark.parametrize("name", LAYERS)
def test_the_gradient_at_absent_blocks(backend, name, kind):
    module = layer(name)
    x, grad = data(module, kind, 2, 5)
    (call,) = calls_of(module, (x, grad), packed=kind == "packed")
    lay = module.topology.layout
    absent = np.setdiff1d(np.arange(lay.blocks), module.topology.block_ids())
    topology = BlockTopology.from_block_ids(torch.from_numpy(absent), lay)
    expected = every_block(module, dense_gradient(module, (x, grad)))[absent]
    np.testing.assert_allclose(module.gradient_at(topology, call), expected, rtol=1e-4, atol=1e-4)


def expected_blocks(module, before, gradient):
    """The blocks after an update, by the definition: prune smallest mean |w|, grow largest mean |gradient|."""
    ids = np.array(list(before))
    values = torch.stack(list(before.values())).double().numpy()
    inside = every_block(module, np.ones(weight_shape(module)))[ids]
    size = (abs(values) * inside).sum((1, 2)) / inside.sum((1, 2))
    count = round(0.3 * len(ids))
    stays = set(ids.tolist()) - rules.smallest(ids, size, count, 0)
    absent = np.setdiff1d(np.arange(module.topology.layout.blocks), np.array(sorted(stays)))
    return stays | rules.smallest(absent, -scores(module, gradient)[absent], count, 0)


@pytest.mark.parametrize("kind", ["spikes", "real", "packed"])
@pytest.mark.parametrize("name", LAYERS)
def test_gradient_grows_what_the_dense_gradient_says(name, kind):
    module = layer(name)
    x, grad = data(module, kind, 3, 5)
    source = given(module, x) if kind == "packed" else x
    before, after, said = choices(module, lambda _: module(source).backward(grad))
    assert after == expected_blocks(module, before, dense_gradient(module, (x, grad)))
    assert said.note == "" and len(after) == len(before)


@pytest.mark.parametrize("name", ["4x4", "groups", "one dimension"])
def test_a_loop_over_time_grows_what_one_call_grows(name):
    once, often = layer(name), layer(name)
    x, grad = data(once, "spikes", 4, 5)

    def loop(_):
        for x_t, grad_t in zip(x, grad, strict=True):
            often(x_t).backward(grad_t)

    a, b = choices(once, lambda _: once(x).backward(grad)), choices(often, loop)
    assert a[1] == b[1] and b[2].note == ""


@pytest.mark.parametrize("name", ["1x1", "groups"])
def test_exact_momentum_grows_by_the_windowed_average(name):
    module, steps = layer(name), 4
    calls = [data(module, "spikes", 2, 5) for _ in range(steps)]
    before, after, _ = choices(
        module, lambda i: module(calls[i][0]).backward(calls[i][1]), steps=steps, grow=EXACT["momentum"]
    )
    average = ema([dense_gradient(module, call) for call in calls])
    assert after == expected_blocks(module, before, average)


@pytest.mark.parametrize("grow", esl.GROW_RULES)
@pytest.mark.parametrize("name", ["overhang", "depthwise"])
def test_every_rule_keeps_the_number_of_blocks(name, grow):
    module = layer(name)
    optimizer = torch.optim.Adam(module.parameters())
    rewirer = esl.Rewirer(module, optimizer, grow=grow, interval=3, t_end=30, alpha=0.3)
    count, places = module.topology.nnzb, set()
    for _ in range(15):
        x, grad = data(module, "spikes", 5)
        optimizer.zero_grad()
        module(x).backward(grad)
        optimizer.step()
        report = rewirer.step()
        assert report is None or report.layers[0].note == ""
        places |= set(by_id(module, module.values))
    assert module.topology.nnzb == len(module.values) == count < len(places)
    torch.testing.assert_close(module(x), module.to_dense()(x))


@pytest.mark.parametrize("packed", [False, True])
def test_what_is_kept_of_a_call_is_counted(packed):
    """Bits of the input and the gradient's panels; a carrier is one element, however large it looks."""
    module = layer("4x4")
    x, grad = data(module, "spikes", 2, 5)
    optimizer = torch.optim.SGD(module.parameters(), 0.01)
    rewirer = esl.Rewirer(module, optimizer, grow="gradient", interval=1, t_end=9)
    module(given(module, x) if packed else x).backward(grad)
    words, panels = 6 * 6 * 5 * 8, 8 * 6 * 5 * 64 * 4
    (watched,) = rewirer.watched_bytes.values()
    assert watched == words + panels + 4


def step(model, optimizer, rewirer, x):
    """Peak bytes of backward, and of the update."""
    optimizer.zero_grad()
    y = model(x)
    grad = torch.randn_like(y)
    with Allocations() as in_backward:
        y.backward(grad)
    optimizer.step()
    with Allocations() as in_update:
        if rewirer is not None:
            report = rewirer.step()
            assert report is None or report.layers[0].note == ""
    return in_backward.peak, in_update.peak


@pytest.mark.parametrize("grow", ["random", "gradient", "momentum", "momentum_neuron"])
@pytest.mark.parametrize("block_size,density", [(1, 0.02), (4, 0.1), (4, 0.01), (16, 0.1)])
def test_an_update_takes_less_than_twice_the_sparse_weight_state(grow, block_size, density):
    """Beside a call's input and output gradient, which are kept until it is known that the step has no other."""
    model = nn.Sequential(
        SparseConv2d(192, 256, 3, padding=1, bias=False, density=density, block_size=block_size)
    )
    optimizer = torch.optim.Adam(model.parameters())
    x = torch.bernoulli(torch.full((64, 192, 2, 2), 0.1))
    plain, _ = step(model, optimizer, None, x)
    rewirer = esl.Rewirer(model, optimizer, grow=grow, interval=3, t_end=30)
    extra = 0
    for _ in range(3):
        in_backward, in_update = step(model, optimizer, rewirer, x)
        extra = max(extra, in_backward - plain, in_update)
    memory = esl.memory_report(model, optimizer, rewirer).sparse
    row = 9 * 192 * block_size * 4
    room = 0 if grow == "random" else 64 * 4 * 256 * 4 + 4 * row + 30 * 8192
    assert extra < 2 * (memory.total - memory.ever_active) + 2 * memory.ever_active + room


def test_scores_are_made_in_strips():
    """Never all gradients at once, however many blocks there are."""
    module = SparseConv2d(128, 256, 3, padding=1, density=0.05)
    x = torch.bernoulli(torch.full((8, 128, 2, 2), 0.1))
    (call,) = calls_of(module, (x, torch.randn(8, 256, 2, 2)))
    dense, row = 256 * 128 * 9 * 4, 4 * 128 * 9 * 4
    with Allocations() as allocations:
        total = sum(float(strip.sum()) for _, strip in module.block_scores([call]))
    assert total > 0
    strip = max(row, module.values.nbytes)
    assert allocations.peak < 4 * strip < dense / 4
