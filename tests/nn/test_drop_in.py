"""What PyTorch's users do to any module, done to ours: the same outcome as with torch's layers, or one sentence."""

import copy
import pickle
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize, prune
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.checkpoint import checkpoint

import esl_sparse as esl

from .test_torch_func import sparse


def network():
    """Currents, packed spikes, floats: ``[T, N, 6, 4, 4] -> [T, N, 5]``."""
    return nn.Sequential(
        esl.nn.SpikingBlock(
            sparse(esl.nn.SparseConv2d, 6, 10, 3, padding=1), nn.BatchNorm2d(10), esl.nn.LIF(learn_tau=True)
        ),
        esl.nn.SpikingBlock(
            sparse(esl.nn.SparseConv2d, 10, 9, 3), nn.BatchNorm2d(9), esl.nn.LIF(), nn.AvgPool2d(2)
        ),
        Flat(),
        sparse(esl.nn.SparseLinear, 9, 5),
    )


class Flat(nn.Module):
    def forward(self, x):
        return (x.unpack() if isinstance(x, esl.PackedSpikes) else x).flatten(2)


def frames():
    return torch.bernoulli(torch.full((3, 4, 6, 4, 4), 0.4))


KINDS = {
    "linear": (partial(sparse, esl.nn.SparseLinear, 11, 7), (5, 11)),
    "conv1d": (partial(sparse, esl.nn.SparseConv1d, 6, 10, 3), (3, 6, 5)),
    "conv2d": (partial(sparse, esl.nn.SparseConv2d, 6, 10, 3, groups=2), (3, 6, 4, 5)),
}


@pytest.fixture(params=KINDS)
def layer(request):
    return KINDS[request.param][0]()


def input_of(layer):
    return next(torch.randn(shape) for make, shape in KINDS.values() if type(layer) is type(make()))


def is_valid(layer):
    index = [t.clone() for t in layer.topology.index_tensors()]
    layer.topology.assign_(layer.topology.block_ids())  # checks, and makes the derived index anew
    return all(torch.equal(a, b) for a, b in zip(index, layer.topology.index_tensors(), strict=True))


# Memory that nobody has written yet


@pytest.mark.parametrize("meta", [True, False])
def test_to_empty_leaves_no_index_to_chance(layer, meta, monkeypatch):
    x, ids, blocks = input_of(layer), layer.topology.block_ids(), layer.topology.nnzb
    empty_like = torch.empty_like
    monkeypatch.setattr(torch, "empty_like", lambda *a, **k: empty_like(*a, **k).fill_(119))
    if meta:
        layer.to("meta")
    layer.to_empty(device="cpu")
    monkeypatch.undo()
    assert (layer.values == 119).all()  # torch's promise is kept: nothing is initialised
    assert layer.topology.nnzb == blocks and is_valid(layer)
    assert meta or torch.equal(layer.topology.block_ids(), ids)
    layer.reset_parameters()
    assert layer(x).isfinite().all() and layer(x).abs().max() > 0


def test_skip_init():
    layer = nn.utils.skip_init(esl.nn.SparseLinear, 40, 30, density=0.2)
    assert layer.topology.nnzb == round(0.2 * 80) and is_valid(layer)
    assert layer.topology.density < 0.3


def test_a_cast_of_everything_spares_the_index(layer):
    x, ids = input_of(layer), layer.topology.block_ids()
    expected = layer(x)
    layer.type(torch.float64)
    assert layer.values.dtype == torch.float64
    assert all(t.dtype == torch.int32 for t in layer.topology.index_tensors())
    assert torch.equal(layer.topology.block_ids(), ids)
    torch.testing.assert_close(layer(x.double()).float(), expected)


def test_shared_memory(layer):
    layer.share_memory()
    assert all(t.is_shared() for t in (layer.values, *layer.topology.index_tensors()))
    assert layer(input_of(layer)).isfinite().all()


# Values that are computed from something else


class Double(nn.Module):
    def forward(self, x):
        return 2 * x


def test_values_cannot_be_parametrised_and_stay_as_they_are(layer):
    x, values = input_of(layer), layer.values
    expected = layer(x)
    with pytest.raises(AttributeError, match=r"values cannot be parametrised or deleted.*functional_call"):
        parametrize.register_parametrization(layer, "values", Double())
    assert layer.values is values and torch.equal(layer(x), expected)
    doubled = torch.func.functional_call(layer, {"values": 2 * values, "bias": 2 * layer.bias}, (x,))
    torch.testing.assert_close(doubled, 2 * expected)


def test_a_bias_can_be_parametrised(layer):
    x = input_of(layer)
    bias = layer.bias.detach().clone()
    expected = layer(x)
    parametrize.register_parametrization(layer, "bias", Double())
    torch.testing.assert_close(layer.bias, 2 * bias)
    more = bias.view(-1, *[1] * (x.dim() - 2)) if x.dim() > 2 else bias
    torch.testing.assert_close(layer(x), expected + more)


def test_values_pruned_by_torch():
    model = nn.Sequential(sparse(esl.nn.SparseLinear, 11, 7), sparse(esl.nn.SparseLinear, 7, 7))
    prune.l1_unstructured(model[0], "values", 0.5)
    x = torch.randn(5, 11)
    expected = model(x)
    with pytest.raises(ValueError, match=r"0\.values is computed from other parameters"):
        esl.Rewirer(model, torch.optim.SGD(model.parameters(), 0.1), t_end=10, interval=1)
    assert [row.reason for row in esl.sparsify(model, 0.1).layers] == ["sparse already"] * 2
    esl.densify(model)
    assert [type(module) for module in model] == [nn.Linear] * 2
    torch.testing.assert_close(model(x), expected)


# Around a network


def test_safetensors(tmp_path):
    safetensors = pytest.importorskip("safetensors.torch", reason="safetensors is not installed")
    source = network()
    source(frames())
    safetensors.save_model(source, str(tmp_path / "model.safetensors"))
    target = network()
    for conv in (target[0].conv, target[1].conv, target[3]):  # other blocks, and another number of them
        count = conv.topology.nnzb // 2
        other = esl.BlockTopology.from_block_ids(conv.topology.block_ids()[:count], conv.topology.layout)
        conv._build(other, True, torch.device("cpu"), torch.float32)
        conv.values.data.zero_()
    assert safetensors.load_model(target, str(tmp_path / "model.safetensors")) == (set(), [])
    for name, tensor in source.state_dict().items():
        assert torch.equal(target.state_dict()[name], tensor), name
    assert torch.equal(target(frames()).isnan().any(), torch.tensor(False))


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda net: pickle.loads(pickle.dumps(net))])
def test_copies_train_alike(copied):
    net, x = network(), frames()
    nets = net, copied(net)
    optimizers = [torch.optim.AdamW(n.parameters(), 0.01, foreach=True) for n in nets]
    for _ in range(2):
        for n, optimizer in zip(nets, optimizers, strict=True):
            optimizer.zero_grad()
            n(x).square().sum().backward()
            optimizer.step()
    for a, b in zip(net.state_dict().values(), nets[1].state_dict().values(), strict=True):
        assert torch.equal(a, b)


def test_vectors_of_parameters():
    net, x = network().eval(), frames()
    expected = net(x)
    vector = nn.utils.parameters_to_vector(net.parameters())
    assert vector.numel() == sum(p.numel() for p in net.parameters())
    nn.utils.vector_to_parameters(torch.zeros_like(vector), net.parameters())
    assert not net(x).any()
    nn.utils.vector_to_parameters(vector, net.parameters())
    assert torch.equal(net(x), expected)


def test_fine_tuning_of_the_last_layer():
    net, x = network(), frames()
    net.requires_grad_(False)
    net[3].requires_grad_(True)
    before = copy.deepcopy(net.state_dict())
    optimizer = torch.optim.Adam((p for p in net.parameters() if p.requires_grad), 0.1)
    rewirer = esl.Rewirer(net, optimizer, grow="gradient", interval=1, t_end=10)
    net(x).square().sum().backward()
    optimizer.step()
    assert [layer.name for layer in rewirer.step().layers] == ["3"]
    changed = {name for name, value in net.state_dict().items() if not torch.equal(value, before[name])}
    trained = {name for name in changed if "running" not in name and "tracked" not in name}
    assert trained - {"3.crow_indices"} == {"3.values", "3.bias", "3.col_indices"}


def test_an_average_of_buffers_is_refused():
    """It would average the index, and round it down."""
    net = network()
    average = AveragedModel(net, multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=True)
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    with pytest.raises(ValueError, match="with use_buffers AveragedModel averages the index"):
        esl.Rewirer(net, optimizer, t_end=10, interval=1, followers=[average])


def test_reentrant_checkpoints_of_float_maps(layer):
    x = input_of(layer).requires_grad_()
    (expected,) = torch.autograd.grad(layer(x).square().sum(), x, retain_graph=True)
    layer(x).square().sum().backward()
    grads = [p.grad.clone() for p in layer.parameters()]
    layer.zero_grad()
    x.grad = None
    checkpoint(layer, x, use_reentrant=True).square().sum().backward()
    assert torch.equal(x.grad, expected)
    for parameter, g in zip(layer.parameters(), grads, strict=True):
        assert torch.equal(parameter.grad, g)


def test_hooks_are_called(layer):
    seen = []
    layer.register_forward_pre_hook(lambda *_: seen.append("before"))
    layer.register_forward_hook(lambda *_: seen.append("after"))
    layer.register_full_backward_hook(lambda *_: seen.append("backward"))
    layer.values.register_hook(lambda g: seen.append("gradient") or 2 * g)
    layer.values.register_post_accumulate_grad_hook(lambda _: seen.append("accumulated"))
    x = input_of(layer).requires_grad_()
    layer(x).sum().backward()
    assert seen[:2] == ["before", "after"]
    assert set(seen[2:]) == {"gradient", "accumulated", "backward"}
    plain = copy.deepcopy(layer)  # without the hooks of its tensors
    plain.zero_grad()
    plain(x).sum().backward()
    torch.testing.assert_close(layer.values.grad, 2 * plain.values.grad)


@pytest.mark.parametrize("dtype", [torch.float64, torch.int64, torch.bool])
def test_autocast_narrows_what_torch_narrows(layer, dtype):
    x = input_of(layer)
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(x).dtype == torch.bfloat16
        with pytest.raises(
            TypeError, match=f"x: expected torch.float32 like the layer's values, got {dtype}"
        ):
            layer(x.to(dtype))


def test_muon_is_for_matrices():
    net = network()
    with pytest.raises(ValueError, match="Muon only supports 2D parameters"):
        torch.optim.Muon([net[3].values])


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("script", [lambda m, x: torch.jit.trace(m, x), lambda m, x: torch.jit.script(m)])
def test_torchscript_is_refused(layer, script):
    for model in (layer, nn.Sequential(layer), esl.nn.LIF()):
        with pytest.raises(
            NotImplementedError, match=r"are no TorchScript; torch\.export\.export takes them"
        ):
            script(model, input_of(layer))
