"""Updates on the GPU choose what they choose on the CPU."""

import copy
import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import esl_sparse as esl
from esl_sparse.rewire import sparse_layers

pytestmark = pytest.mark.gpu


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        esl.nn.SparseLinear(96, 160, density=0.2, block_size=16),
        nn.ReLU(),
        esl.nn.SparseLinear(160, 40, density=0.3, block_size=(4, 4)),
    )


def train(model, device, steps, **options):
    """Exact numbers (small integers over powers of two) make gradients equal on both devices; returns topologies."""
    model = copy.deepcopy(model).to(device)
    optimizer = torch.optim.SGD(model.parameters(), 0.0)
    rewirer = esl.Rewirer(
        model, optimizer, interval=3, t_end=12, generator=torch.Generator().manual_seed(1), **options
    )
    generator = torch.Generator().manual_seed(2)
    for _ in range(steps):
        x = torch.randint(-3, 4, (32, 96), generator=generator).float().to(device)
        grad = torch.randint(-3, 4, (32, 40), generator=generator).float().to(device)
        optimizer.zero_grad()
        model(x).backward(grad)
        optimizer.step()
        rewirer.step()
    return [layer.topology.block_ids().cpu() for layer in sparse_layers(model).values()], model, optimizer


@pytest.mark.parametrize("grow", esl.GROW_RULES)
@pytest.mark.parametrize("prune", ["set", "global_magnitude"])
def test_updates_agree_with_the_cpu(grow, prune):
    model = network()
    with torch.no_grad():
        for layer in (model[0], model[2]):
            layer.values.copy_((layer.values * 64).round() / 64)
    (ours, on_gpu, _), (theirs, _, _) = (train(model, d, 9, grow=grow, prune=prune) for d in ("cuda", "cpu"))
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
    assert all(t.is_cuda for t in on_gpu.buffers())


@pytest.mark.parametrize("prune, grow, most", [("magnitude", "random", 5), ("set", "momentum", 7)])
def test_an_update_waits_a_few_times(prune, grow, most):
    """As tests/rewire/test_waits.py counts without a GPU."""
    model = network().cuda()
    optimizer = torch.optim.Adam(model.parameters())
    rewirer = esl.Rewirer(model, optimizer, prune=prune, grow=grow, interval=2, t_end=20)
    for _ in range(4):
        optimizer.zero_grad()
        model(torch.randn(8, 96, device="cuda")).square().sum().backward()
        optimizer.step()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            try:
                report = rewirer.step()
            finally:
                torch.cuda.set_sync_debug_mode("default")
    assert report.layers[0].grown > 0
    waits = [w for w in caught if "synchroniz" in str(w.message)]
    assert 3 <= len(waits) <= most, "\n".join(f"{w.filename}:{w.lineno}" for w in waits)


def test_redistribution_and_memory():
    model = network()
    topologies, on_gpu, optimizer = train(model, "cuda", 6, grow="gradient", redistribute="magnitude")
    assert [len(layer.values) for layer in sparse_layers(on_gpu).values()] == [len(x) for x in topologies]
    F.relu(on_gpu(torch.randn(4, 96, device="cuda"))).sum().backward()
    optimizer.step()


def test_parameters_keep_their_memory_for_captured_graphs():
    model = network().cuda()
    optimizer = torch.optim.Adam(model.parameters())
    rewirer = esl.Rewirer(model, optimizer, grow="random", interval=1, t_end=9)
    model(torch.randn(8, 96, device="cuda")).sum().backward()
    optimizer.step()
    tensors = [
        model[0].values,
        *model[0].topology.index_tensors(),
        optimizer.state[model[0].values]["exp_avg"],
    ]
    before = [t.data_ptr() for t in tensors]
    assert rewirer.step().layers[0].grown > 0
    assert [t.data_ptr() for t in tensors] == before


def test_deep_r():
    model = network().cuda()
    optimizer = torch.optim.Adam(model.parameters())
    deep_r = esl.DeepR(model, optimizer, temperature=1.0)
    for _ in range(3):
        optimizer.zero_grad()
        model(torch.randn(8, 96, device="cuda")).sum().backward()
        optimizer.step()
        report = deep_r.step()
    assert report.layers[0].pruned > 0
