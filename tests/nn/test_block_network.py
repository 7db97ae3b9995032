"""Networks of spiking blocks under the machinery that users put around them."""

import copy
import gc
import itertools
import pickle
from functools import partial

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import esl_sparse as esl
from esl_sparse.functional import pack
from esl_sparse.nn import LIF, AvgPool2d, SparseConv2d, SparseLinear, SpikingBlock

from .block_cases import block_entries, distances, saved_bytes

T, B = 3, 6


def conv(*args, generator, density=0.5):
    return SparseConv2d(*args, bias=False, density=density, block_size=(4, 4), generator=generator)


class Net(nn.Module):
    """Static images; spikes feed two blocks, one of which adds them; a linear block and a readout."""

    def __init__(self, seed=0, channels=8, density=0.5):
        super().__init__()
        torch.manual_seed(seed)
        make = partial(conv, generator=torch.Generator().manual_seed(seed), density=density)
        n = channels
        self.stem = SpikingBlock(make(3, n, 3, 1, 1), nn.BatchNorm2d(n), LIF(), AvgPool2d(2))
        self.a = SpikingBlock(make(n, n, 3, 1, 1), nn.BatchNorm2d(n), LIF(learn_tau=True))
        shortcut = nn.Sequential(make(n, 12, 1, 2), nn.BatchNorm2d(12))
        self.b = SpikingBlock(make(n, 12, 3, 2, 1), nn.BatchNorm2d(12), LIF(surrogate="atan"), None, shortcut)
        self.linear = SpikingBlock(
            SparseLinear(12 * 4, 10, density=density), nn.BatchNorm1d(10), LIF(v_reset=None)
        )
        self.readout = nn.Linear(10, 4)

    def forward(self, images, run=lambda block, *args: block(*args)):
        x = run(self.stem, images.expand(T, *images.shape))
        y = run(self.a, x, x)
        y = run(self.b, y, x)
        y = run(self.linear, floats(y).flatten(2))
        return self.readout(floats(y))

    @property
    def blocks(self):
        return [self.stem, self.a, self.b, self.linear]


def floats(x):
    return x.unpack() if isinstance(x, esl.PackedSpikes) else x


def images(n=B):
    return torch.rand(n, 3, 8, 6, generator=torch.Generator().manual_seed(1))


def cotangent(n=B):
    return torch.randn(T, n, 4, generator=torch.Generator().manual_seed(2))


def results(net, x=None, run=None, call=None):
    """Output, gradient of the images, gradients and buffers by name."""
    x = (images() if x is None else x).clone().requires_grad_()
    net.zero_grad(set_to_none=True)
    y = (net if call is None else call)(x, **({"run": run} if run else {}))
    y.backward(cotangent(len(x)).to(y.dtype))
    named = {name: p.grad for name, p in net.named_parameters()} | dict(net.named_buffers())
    return {"y": y.detach(), "x": x.grad} | {k: v if v is None else v.clone() for k, v in named.items()}


def assert_same(actual, expected, **options):
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        if value is None:
            assert actual[name] is None, name
        else:
            torch.testing.assert_close(
                actual[name], value, msg=lambda m, name=name: f"{name}: {m}", **options
            )


def assert_equal(actual, expected):
    assert_same(actual, expected, rtol=0, atol=0, equal_nan=True)


def truth(net, x):
    """The densified network in float64, its values' gradients, and the least distance to a threshold."""
    dense = copy.deepcopy(net)
    esl.densify(dense)
    with esl._backends.use("auto"), distances(dense) as margins:  # native kernels know no float64
        found = results(dense.double(), x.double())
    for name, layer in net.named_modules():
        if isinstance(layer, (SparseConv2d, SparseLinear)):
            found[f"{name}.values"] = block_entries(found.pop(f"{name}.weight"), layer)
            found |= {k: v for k, v in net.named_buffers() if k.startswith(f"{name}.")}
    return found, min(margins)


@pytest.mark.parametrize("x", [images(), images(5), images(1)], ids=len)
def test_agrees_with_the_dense_network_in_float64(backend, x, poison):
    for seed in itertools.count():
        net = Net(seed)
        expected, margin = truth(net, x)
        if margin > 1e-4:
            break
    y = results(net, x)
    assert y["y"].abs().sum() > 0
    assert_same(y, expected, rtol=1e-3, atol=2e-4, check_dtype=False)


def test_float64_agrees_with_the_dense_network():
    net = Net().double()
    expected, _ = truth(net, images())
    assert_same(results(net, images().double()), expected, rtol=1e-9, atol=1e-10)


def test_two_threads_give_the_same_bits(threads):
    found = []
    for n in (1, 2):
        threads(n)
        found.append(results(Net(channels=24), images(40)))
    assert_equal(*found)


# Gradients


def test_backward_twice_and_double_backward_raise():
    net = Net()
    y = net(images())
    y.sum().backward()
    with pytest.raises(RuntimeError, match="second time"):
        y.sum().backward()
    x = images().requires_grad_()
    (grad,) = torch.autograd.grad(net(x).sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="double backward is not supported"):
        grad.square().sum().backward()


def test_retained_graphs_give_the_same_gradient_again():
    net = Net()
    y = net(images())
    grads = [torch.autograd.grad(y, list(net.parameters()), cotangent(), retain_graph=True) for _ in "12"]
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))


@pytest.mark.parametrize(
    "frozen",
    [
        "values",
        "norm",
        "weight",
        "bias",
        "tau_logit",
        "stem",
        "stem a b",
        "stem a b linear",
        "a.conv",
        "b.shortcut",
    ],
)
def test_what_is_frozen_gets_no_gradient_and_changes_no_other(frozen):
    net = Net()
    expected = results(copy.deepcopy(net))
    names = [
        name
        for name, p in net.named_parameters()
        if any(name.startswith(f) or f".{f}" in name for f in frozen.split())
    ]
    assert names
    for name in names:
        net.get_parameter(name).requires_grad_(False)
        expected[name] = None
    assert_equal(results(net), expected)


def test_an_input_without_gradient_costs_none():
    net, calls = Net(), []
    y = net.stem(images().expand(T, B, 3, 8, 6))
    assert not images().requires_grad
    y.carrier.register_hook(lambda grad: calls.append(grad.shape))
    net.a(y, y).unpack().sum().backward()
    assert calls == [y.carrier.shape]  # of both uses together


def test_values_changed_between_forward_and_backward_are_noticed():
    net = Net()
    y = net(images())
    with torch.no_grad():
        net.a.conv.values.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


# Modes and copies


def test_inference():
    net = Net()
    for _ in range(2):
        net(images())
    net.eval()
    before = {k: v.clone() for k, v in net.state_dict().items()}
    y = net(images())
    with torch.no_grad():
        assert torch.equal(net(images()), y)
    with torch.inference_mode():
        assert torch.equal(net(images()), y)
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())


@pytest.mark.parametrize(
    "clone",
    [copy.deepcopy, lambda net: pickle.loads(pickle.dumps(net)), None],
    ids=["copy", "pickle", "state"],
)
def test_copies_compute_the_same(clone):
    net = Net()
    net(images())
    if clone is None:
        other = Net(seed=1)
        other.load_state_dict(net.state_dict())
    else:
        other = clone(net)
    assert_equal(results(other), results(net))


@pytest.mark.parametrize("hooked", [False, True])
def test_autocast_leaves_blocks_in_float32(hooked):
    net = Net()
    x = images().expand(T, B, 3, 8, 6)
    expected = net.stem(x).words, net.stem(x.bfloat16().float()).words
    if hooked:
        net.stem.conv.register_forward_hook(lambda *_: None)
    with torch.autocast("cpu", torch.bfloat16):
        wide, narrow = net.stem(x), net.stem(x.bfloat16())
        y = net(images())
    assert wide.carrier.dtype == narrow.carrier.dtype == torch.float32
    assert torch.equal(wide.words, expected[0]) and torch.equal(narrow.words, expected[1])
    y.float().sum().backward()
    assert all(p.grad.dtype == torch.float32 and p.grad.isfinite().all() for p in net.parameters())


def test_checkpoint_of_each_block():
    """The recomputation stops with what forward saved: running statistics move once."""
    assert_equal(results(Net(), run=partial(checkpoint, use_reentrant=False)), results(Net()))


def test_checkpoint_of_all():
    net = Net()
    found = results(net, call=partial(checkpoint, net, use_reentrant=False))
    expected = results(Net())
    moved = {name for name in expected if "running" in name or "tracked" in name}
    assert_equal(
        {k: v for k, v in found.items() if k not in moved},
        {k: v for k, v in expected.items() if k not in moved},
    )
    assert net.stem.norm.num_batches_tracked == 2  # as torch's own


# Compilation


@pytest.mark.parametrize(
    "backend",
    ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)],
)
@pytest.mark.parametrize("blockwise", [False, True], ids=["network", "blocks"])
def test_compiled_it_trains_alike_and_is_compiled_once(backend, blockwise):
    torch._dynamo.reset()
    net, other = Net(), Net()
    for n in (net, other):
        n.linear.conv._set_input("binary")  # compiled code takes what is promised, or what eager calls found
    compile = partial(torch.compile, fullgraph=True, backend=backend)
    run = call = None
    if blockwise:
        compiled = {block: compile(block) for block in (net.a, net.b)}

        def run(block, *args):
            return compiled.get(block, block)(*args)

    else:
        call = compile(net)
    optimizers = [torch.optim.SGD(n.parameters(), 0.1) for n in (net, other)]
    for step in range(3):
        torch.compiler.set_stance("default" if step == 0 else "fail_on_recompile")
        try:
            found = results(net, run=run, call=call)
        finally:
            torch.compiler.set_stance("default")
        assert_same(found, results(other), rtol=1e-4, atol=1e-5)
        for optimizer in optimizers:
            optimizer.step()


# Memory


def chain_of_blocks():
    make = partial(conv, generator=torch.Generator().manual_seed(0), density=0.1)
    layers = []
    for n, m, pool in ((16, 16, False), (16, 32, True), (32, 32, False), (32, 32, True)):
        layers.append(
            SpikingBlock(make(n, m, 3, 1, 1), nn.BatchNorm2d(m), LIF(), AvgPool2d(2) if pool else None)
        )
    return nn.Sequential(*layers)


def test_backward_keeps_bits():
    spikes = (torch.rand(4, 16, 16, 12, 12) < 0.2).float()
    net = chain_of_blocks()
    _, fused = saved_bytes(net, pack(spikes))
    esl.densify(net)
    _, unfused = saved_bytes(net, spikes)
    assert fused <= unfused / 50, (fused, unfused)


def test_the_arena_gets_everything_back(monkeypatch, threads):
    threads(1)
    gc.collect()
    spikes = (torch.rand(4, 32, 16, 12, 12) < 0.2).float()
    net, x = chain_of_blocks()[:2], pack(spikes)
    lent = esl.arena.lent
    peak = []
    for _ in range(3):
        y = net(x)
        assert esl.arena.lent == lent  # bits only
        y.unpack().sum().backward()
        del y
        assert esl.arena.lent == lent
        peak.append(esl.arena.bytes)
    assert peak[1] == peak[2] > 0
    from esl_sparse.ops import spiking_block as op

    def fail(*_):
        raise KeyError("stop")

    for name in ("norm_lif_op", "norm_lif_backward_op", "conv2d_backward_op"):
        y = net(x)
        with monkeypatch.context() as patch:
            patch.setattr(op, name, fail)
            with pytest.raises(KeyError):
                net(x)
                y.unpack().sum().backward()
        del y
        gc.collect()
        assert esl.arena.lent == lent, name
