"""Growth by gradients inside spiking blocks, whose fused operation never shows a current's gradient."""

import copy
import itertools
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch.utils.checkpoint import checkpoint

import esl_sparse as esl
from esl_sparse.models import SpikingCNN, SpikingResNet
from esl_sparse.nn import conv as conv_layer
from esl_sparse.ops.conv2d import op as conv2d_op
from esl_sparse.rewire.layers import sparse_layers

from ..nn.block_cases import Case, Truth, block_entries, distances, run, saved_bytes, seed_of
from . import oracle

STEPS = 3


def resnet(block_size, groups=1, seed=0):
    """Static images; spikes feed two blocks; shortcuts; a linear layer on averages and one on spikes."""
    torch.manual_seed(seed)
    model = SpikingResNet((6, 9), (1, 1), 4, stem=6, hidden=12, T=2)
    with torch.no_grad():
        model.hidden.weight.mul_(8)
    esl.sparsify(model, 0.3, block_size, "uniform", init="magnitude")
    return model


def cnn(block_size, seed=0):
    """Frames of spikes, average pooling."""
    torch.manual_seed(seed)
    model = SpikingCNN((6, "P", 9, "P"), 3, 8, 4, T=2)
    esl.sparsify(model, 0.3, block_size, "uniform", init="magnitude")
    return model


def data(model, step):
    generator = torch.Generator().manual_seed(step)
    frames = (torch.rand(6, 2, 3, 8, 8, generator=generator) < 0.4).float()
    return frames if isinstance(model, SpikingCNN) else torch.rand(6, 3, 8, 8, generator=generator)


def train(model, steps, run=None, rewirer=None, optimizer=None):
    """Weights stay as they are: what the rules look at comes from the gradients alone."""
    for step in range(steps):
        optimizer.zero_grad()
        y = (model if run is None else run)(data(model, step))
        cotangent = torch.randn(y.shape, generator=torch.Generator().manual_seed(9 + step))
        y.backward(cotangent.to(y.dtype))
        optimizer.step()
        report = rewirer.step()
    return report


def choose(model, grow, run=None, steps=STEPS):
    """Blocks of each layer after the only update, and the report."""
    optimizer = torch.optim.SGD(model.parameters(), 0.0)
    rewirer = esl.Rewirer(
        model,
        optimizer,
        prune="magnitude",
        grow=grow,
        alpha=0.3,
        schedule="constant",
        interval=steps,
        t_end=3 * steps,
    )
    report = train(model, steps, run, rewirer, optimizer)
    return {n: set(x.topology.block_ids().tolist()) for n, x in sparse_layers(model).items()}, report


def dense_gradients(model, steps=STEPS):
    """Of every layer at each step, ``[out, in, ...]`` in float64, by the unfused chain; the least distance."""
    dense = copy.deepcopy(model)
    esl.densify(dense)
    dense.double()
    gradients = {name: [] for name in sparse_layers(model)}
    with distances(dense) as margins:
        for step in range(steps):
            dense.zero_grad()
            y = dense(data(model, step).double())
            cotangent = torch.randn(y.shape, generator=torch.Generator().manual_seed(9 + step))
            y.backward(cotangent.double())
            for name, found in gradients.items():
                found.append(dense.get_submodule(name).weight.grad)
    return gradients, min(margins)


def expected(layer, gradient):
    """Pruned by mean |w|, grown by mean |gradient|, of a block's entries inside the weight."""
    blocks = range(layer.topology.layout.blocks)
    sizes = block_entries(torch.ones_like(gradient), layer, blocks).sum((1, 2))
    scores = (block_entries(gradient, layer, blocks).abs().sum((1, 2)) / sizes).numpy()
    ids = layer.topology.block_ids().numpy()
    weights = (layer.values.detach().abs().sum((1, 2)) / sizes[ids]).numpy()
    count = round(0.3 * len(ids))
    stays = set(ids.tolist()) - oracle.smallest(ids, weights, count, 0)
    absent = oracle.absent(sorted(stays), len(blocks))
    return stays | oracle.smallest(absent, -scores[absent], count, 0)


def problem(make, block_size):
    """The first seed whose potentials keep a distance from the threshold, and its gradients."""
    for seed in itertools.count():
        model = make(block_size, seed=seed)
        gradients, margin = dense_gradients(model)
        if margin > 1e-5:
            return model, gradients


@pytest.mark.parametrize("block_size", [1, (2, 4)])
@pytest.mark.parametrize("make", [cnn, resnet])
def test_gradient_grows_what_the_dense_gradient_of_the_chain_says(make, block_size):
    model, gradients = problem(make, block_size)
    wanted = {n: expected(x, gradients[n][-1]) for n, x in sparse_layers(model).items()}
    before = {n: set(x.topology.block_ids().tolist()) for n, x in sparse_layers(model).items()}
    chosen, report = choose(model, "gradient")
    assert all(layer.note == "" for layer in report.layers) and chosen != before
    assert chosen == wanted


@pytest.mark.parametrize("make", [cnn, resnet])
def test_exact_momentum_grows_by_the_windowed_average_of_the_chain(make):
    model, gradients = problem(make, (2, 4))
    averages = {}
    for name, steps in gradients.items():
        averages[name] = torch.zeros_like(steps[0])
        for gradient in steps:
            averages[name] = 0.9 * averages[name] + 0.1 * gradient
    wanted = {n: expected(x, averages[n]) for n, x in sparse_layers(model).items()}
    chosen, _ = choose(model, replace(esl.GROW_RULES["momentum"], exact=True))
    assert chosen == wanted


@pytest.mark.parametrize(
    "case",
    [
        *(Case(padding_mode="circular", padding=(1, 2), x=x) for x in ("packed", "real", "static")),
        Case(C=6, rows=8, groups=2, x="packed levels"),
        Case(C=4, rows=8, groups=4, block_size=(1, 1), stride=2),
        Case(shortcut="conv norm", residual="real", x="spikes", norm="eval"),
        Case(shortcut="conv", residual="own", x="levels", pool="MaxPool2d 2"),
        *(Case(linear=True, C=20, rows=9, x=x) for x in ("packed", "real", "static")),
    ],
    ids=str,
)
def test_every_kind_of_input(case):
    def arm(block):
        optimizer = torch.optim.SGD(block.parameters(), 0.0)
        options = {"alpha": 0.3, "schedule": "constant", "interval": 1, "t_end": 3}
        armed.append(
            (optimizer, esl.Rewirer(block, optimizer, prune="magnitude", grow="gradient", **options))
        )
        return block

    armed, seed = [], seed_of(case)
    _, _, block = run(case, seed, arm)
    wanted = {n: expected(block.get_submodule(n), g) for n, g in Truth(case, seed).weights.items()}
    ((optimizer, rewirer),) = armed
    optimizer.step()
    rewirer.step()
    assert {n: set(x.topology.block_ids().tolist()) for n, x in sparse_layers(block).items()} == wanted


def unfused(model):
    for block in model.modules():
        if isinstance(block, esl.nn.SpikingBlock):
            block.lif.surrogate = lambda d: torch.clamp(1 - d.abs(), min=0)
            assert not block.is_fused


def checkpointed(model):
    for block in model.modules():
        if isinstance(block, esl.nn.SpikingBlock):
            block.forward = partial(checkpoint, block.forward, use_reentrant=False)


@pytest.mark.parametrize("grow", ["gradient", "momentum", "momentum_neuron"])
@pytest.mark.parametrize("way", [unfused, checkpointed])
@pytest.mark.parametrize("make", [cnn, resnet])
def test_other_ways_choose_the_same(make, way, grow):
    model, _ = problem(make, (2, 4))
    other = copy.deepcopy(model)
    way(other)
    (chosen, report), (others, _) = choose(model, grow), choose(other, grow)
    assert chosen == others and all(layer.grown > 0 for layer in report.layers)


def test_a_compiled_network_steps_aside():
    """Watched steps run in eager mode, where hooks are called; those between them are compiled."""
    torch._dynamo.reset()
    model = cnn((2, 4))
    model.readout.linear._set_input("levels")
    other = copy.deepcopy(model)
    run = torch.compile(other, fullgraph=True, backend="aot_eager")
    (chosen, report), (others, _) = choose(model, "gradient"), choose(other, "gradient", run)
    assert chosen == others and all(layer.note == "" for layer in report.layers)


def test_a_watched_step_keeps_currents_and_does_not_unpack(monkeypatch):
    torch.manual_seed(0)
    convolutions = SpikingCNN((16, 16, "P", 24), 3, 12, 4, T=4).blocks
    esl.sparsify(convolutions, 0.2, distribution="uniform")
    x = esl.functional.pack((torch.rand(4, 16, 3, 12, 12) < 0.3).float())
    optimizer = torch.optim.SGD(convolutions.parameters(), 0.0)
    rewirer = esl.Rewirer(convolutions, optimizer, grow="gradient", interval=3, t_end=9)

    def fail(*_):
        raise AssertionError("a current or a gradient has left its panels")

    for module in (conv2d_op, conv_layer):
        for name in ("to_panels_op", "from_panels_op", "conv2d_packed"):
            monkeypatch.setattr(module, name, fail, raising=False)
    found = []
    for _ in range(3):
        y, kept = saved_bytes(convolutions, x)
        y.carrier.backward(torch.randn(y.carrier.shape))  # no padding lanes
        optimizer.step()
        report = rewirer.step()
        found.append(kept)
    currents = 4 * 64 * (16 * 144 + 16 * 144 + 24 * 36)  # lanes, neurons
    bits = currents / 32
    assert found[0] < 2 * bits
    assert currents < found[2] < currents + 3 * bits
    assert all(layer.grown > 0 and layer.note == "" for layer in report.layers)
