"""SparseConv2d as a module: kinds of input, precision, checkpoints, conversions, copies, compilation."""

import copy
import io
import pickle

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

import esl_sparse as esl
from esl_sparse.nn import SparseConv1d, SparseConv2d

from .conv_layers import (
    DENSE,
    assert_index_consistent,
    assert_same_map,
    blocks_of,
    conv,
    generator,
    spikes,
    weight_of,
)

# What the input holds


@pytest.mark.parametrize(
    "input,x,kind",
    [
        ("auto", [0, 1], (1, 1.0)),
        ("auto", [0, 0.25, 1], (3, 0.25)),
        ("auto", [0.1, 1], (0, 1.0)),
        ("auto", [float("nan"), 1], (0, 1.0)),
        ("binary", [0, 1], (1, 1.0)),
        ("levels", [0, 2], (1, 2.0)),
        ("levels", [0, 3], (2, 1.0)),
        ("float", [0, 1], (0, 1.0)),
    ],
)
def test_what_the_input_is_taken_for(backend, input, x, kind):
    x = torch.tensor(x).float().view(-1, 1, 1).expand(-1, 2, 3)
    layer = conv(len(x), 3, 1, density=1.0, input=input)
    for _ in range(2):
        y = layer(x)
        assert layer._kind == kind
        torch.testing.assert_close(y, layer.to_dense()(x), equal_nan=True)


def test_auto_follows_a_changing_input(backend):
    layer = conv(2, 3, (1, 2), density=1.0)
    for x, kind in [([0, 0.5], (1, 0.5)), ([0, 1], (1, 1.0)), ([0.1, 0], (0, 1.0)), ([1, 3], (2, 1.0))]:
        x = torch.tensor(x).float().expand(4, 2, 3, 2)
        torch.testing.assert_close(layer(x), layer.to_dense()(x))
        assert layer._kind == kind


@pytest.mark.parametrize("input", ["binary", "levels"])
def test_never_a_silent_threshold(backend, input):
    with pytest.raises(ValueError, match=r"expected .* got other values"):
        conv(2, 3, 1, input=input)(torch.full((1, 2, 2, 2), 0.3))


@pytest.mark.parametrize(
    "kind,x,error,message",
    [
        (SparseConv2d, torch.zeros(2, 7, 5, 5), ValueError, r"x: expected shape \[..., 8, H, W\] of 3 to 5"),
        (SparseConv2d, torch.zeros(5, 5), ValueError, r"3 to 5 dims, got \(5, 5\)"),
        (SparseConv2d, torch.zeros(1, 1, 1, 8, 5, 5), ValueError, "3 to 5 dims"),
        (SparseConv2d, torch.zeros(2, 8, 5, 5).double(), TypeError, "x: expected torch.float32 .*float64"),
        (SparseConv2d, torch.zeros(2, 8, 5, 5).bool(), TypeError, "x: expected torch.float32 .*torch.bool"),
        (SparseConv2d, torch.zeros(2, 8, 5, 5, device="meta"), ValueError, "values: expected on .* meta"),
        (SparseConv2d, torch.zeros(2, 8, 2, 5), ValueError, "padded size of at least the kernel's 3, got 2"),
        (SparseConv2d, [0.0] * 8, TypeError, "x: expected a tensor or PackedSpikes, got list"),
        (
            SparseConv2d,
            "packed",
            ValueError,
            r"x: expected 8 channels, got PackedSpikes of \(1, 2, 7, 5, 5\)",
        ),
        (SparseConv1d, torch.zeros(2, 7, 5), ValueError, r"x: expected shape \[..., 8, L\] of 2 to 4 dims"),
        (
            SparseConv1d,
            "packed",
            ValueError,
            r"expected PackedSpikes \(T, B, 8, 1, L\), got \(1, 2, 7, 5, 5\)",
        ),
    ],
)
def test_a_wrong_input(kind, x, error, message):
    if isinstance(x, str):
        x = esl.functional.pack(torch.zeros(1, 2, 7, 5, 5))
    with pytest.raises(error, match=message):
        conv(8, 3, 3, kind=kind)(x)


# Precision


@pytest.mark.parametrize("input", ["auto", "float"])
def test_autocast(backend, input):
    layer = conv(8, 12, 3, padding=1, input=input)
    dense, x = layer.to_dense(), spikes(3, 8, 5, 6)
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(x)
        assert y.dtype == dense(x).dtype == torch.bfloat16
        y.float().pow(2).sum().backward()
    assert layer.values.grad.dtype == layer.bias.grad.dtype == torch.float32
    torch.testing.assert_close(y.float(), dense(x), rtol=2**-7, atol=1e-2)


@pytest.mark.parametrize(
    "dtype,tolerance", [(torch.float64, 1e-12), (torch.bfloat16, 0.02), (torch.float16, 0.005)]
)
@pytest.mark.parametrize("packed", [False, True])
def test_other_precisions(dtype, tolerance, packed):
    layer = conv(6, 10, 3, 2, 1, dtype=dtype)
    x = spikes(2, 3, 6, 5, 5).to(dtype).requires_grad_()
    y = layer(esl.functional.pack(x) if packed else x)
    assert y.dtype == dtype
    assert_same_map(layer, x, esl.functional.pack(x) if packed else None, rtol=tolerance, atol=tolerance)


# Being a module


def _saved(thing):
    file = io.BytesIO()
    torch.save(thing, file)
    file.seek(0)
    return file


@pytest.mark.parametrize("kind", DENSE)
@pytest.mark.parametrize(
    "duplicate",
    [
        copy.deepcopy,
        lambda m: pickle.loads(pickle.dumps(m)),
        lambda m: torch.load(_saved(m), weights_only=False),
    ],
    ids=["deepcopy", "pickle", "torch.save"],
)
def test_copies_share_nothing(duplicate, kind):
    layer = conv(8, 10, 3, padding="same", padding_mode="reflect", kind=kind)
    other = duplicate(layer)
    x = spikes(4, 8, *(5,) * len(layer.kernel_size))
    assert torch.equal(layer(x), other(x))
    assert repr(other) == repr(layer)
    other.topology.assign_(torch.arange(other.topology.nnzb))
    other.values.data.zero_()
    assert layer.values.any()
    assert not torch.equal(layer.col_indices, other.col_indices)
    assert_index_consistent(layer)


def layers(**other):
    """Two of one shape, with other blocks."""
    options = {"groups": 2, "padding": 1}
    source = SparseConv2d(8, 14, (3, 2), density=0.5, generator=generator(1), **options)
    return source, SparseConv2d(8, 14, (3, 2), **{"density": 0.5, **other}, generator=generator(2), **options)


def test_state_dict_through_a_file():
    source, target = layers()
    parameter = target.values
    target.load_state_dict(torch.load(_saved(source.state_dict()), weights_only=True), strict=True)
    assert target.values is parameter
    assert_index_consistent(target)
    assert torch.equal(weight_of(target), weight_of(source))
    x = spikes(3, 8, 4, 4)
    assert torch.equal(target(x), source(x))


@pytest.mark.parametrize("assign", [False, True])
def test_state_dict_of_another_density(assign):
    source, target = layers(density=0.2)
    target.load_state_dict({k: v.clone() for k, v in source.state_dict().items()}, assign=assign)
    assert_index_consistent(target)
    assert torch.equal(weight_of(target), weight_of(source))
    target(spikes(3, 8, 4, 4)).sum().backward()
    assert target.values.grad.shape == source.values.shape


def set_entry(key, place, value):
    def corrupt(state):
        state[key] = state[key].clone()
        state[key][place] = value

    return corrupt


def replace(key, make):
    def corrupt(state):
        state[key] = make(state[key])

    return corrupt


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize(
    "corrupt,message",
    [
        (set_entry("col_indices", 2, 6), r"col_indices\[2\] = 6 is outside \[0, 6\)"),
        (set_entry("col_indices", 1, -1), r"col_indices\[1\] = -1 is outside"),
        (set_entry("crow_indices", 1, 99), r"crow_indices\[2\] = \d+ is less than"),
        (set_entry("crow_indices", -1, 3), r"crow_indices\[4\] = 3, expected the number of blocks"),
        (replace("crow_indices", lambda t: t[:-1]), r"crow_indices: expected 5 entries"),
        (replace("col_indices", lambda t: t.flip(0)), "does not exceed the entry before it in block row 0"),
        (replace("col_indices", lambda t: t.float()), "col_indices: expected int32 or int64"),
        (replace("values", lambda t: t[1:]), "values: expected shape"),
        (replace("values", list), "values: expected a tensor, got list"),
        (replace("bias", lambda t: t[1:]), r"bias: expected shape \(14,\), got \(13,\)"),
        (lambda state: state.pop("crow_indices"), "crow_indices"),
        (lambda state: state.pop("values"), "values"),
    ],
)
def test_a_hostile_checkpoint_changes_nothing(corrupt, message, strict):
    source, target = layers()
    before, state = copy.deepcopy(target.state_dict()), dict(source.state_dict())
    corrupt(state)
    with pytest.raises(RuntimeError, match=message):
        target.load_state_dict(state, strict=strict)
    for key, value in target.state_dict().items():
        assert torch.equal(value, before[key]), key
    assert_index_consistent(target)


@pytest.mark.parametrize("kind", DENSE)
def test_a_dense_checkpoint_loads_at_the_layer_s_own_blocks(kind):
    dense, layer = DENSE[kind](8, 14, 3, groups=2), conv(8, 14, 3, groups=2, kind=kind)
    layer.load_state_dict(dense.state_dict(), strict=True)
    mask = weight_of(layer) != 0
    assert mask.sum() == layer.nnz
    assert torch.equal(weight_of(layer), dense.weight.detach().double() * mask)
    assert torch.equal(layer.bias, dense.bias)
    with pytest.raises(RuntimeError, match=r"weight: expected shape \(14, 4, .*got \(14, 8"):
        layer.load_state_dict(DENSE[kind](8, 14, 3).state_dict())


def test_moving():
    layer = conv(8, 14, 3, groups=2)
    weight, index = weight_of(layer), [t.clone() for t in layer.topology.index_tensors()]
    layer.to(torch.bfloat16)
    assert layer(spikes(3, 8, 4, 4).bfloat16()).dtype == torch.bfloat16
    for own, before in zip(layer.topology.index_tensors(), index, strict=True):
        assert torch.equal(own, before)
    torch.testing.assert_close(weight_of(layer.double()), weight, rtol=2**-8, atol=0)
    layer.float().to(device="meta")
    assert {t.device.type for t in layer.topology.index_tensors()} == {"meta"}
    assert layer(torch.zeros(3, 8, 4, 4, device="meta")).shape == (3, 14, 2, 2)


def test_a_meta_layer_takes_a_checkpoint():
    source, _ = layers()
    target = SparseConv2d(8, 14, (3, 2), density=0.5, groups=2, padding=1, device="meta")
    assert target.values.is_meta
    target.load_state_dict(source.state_dict(), assign=True)
    assert_index_consistent(target)
    x = spikes(3, 8, 4, 4)
    assert torch.equal(target(x), source(x))


def test_torch_func(backend):
    layer = conv(6, 10, 3)
    x, g = spikes(4, 6, 5, 5), torch.randn(4, 10, 3, 3)
    parameters = {k: v.detach() for k, v in layer.named_parameters()}
    grads = torch.func.grad(lambda p: (torch.func.functional_call(layer, p, (x,)) * g).sum())(parameters)
    layer(x).backward(g)
    for name, parameter in layer.named_parameters():
        torch.testing.assert_close(grads[name], parameter.grad)


class Net(nn.Module):
    """Maps, packed spikes with a border, and currents."""

    def __init__(self):
        super().__init__()
        self.first = conv(2, 8, 3, padding=1, input="binary")
        self.second = conv(8, 6, 3, groups=2, padding=1, padding_mode="circular")

    def forward(self, x):
        fired = esl.nn.LIF(0.5)(self.first(x))
        return self.second(esl.functional.pack(fired, "binary"))


@pytest.mark.parametrize("dtype,dynamic", [(torch.float32, True), (torch.float64, False)])
def test_compiles_as_one_graph(dtype, dynamic):
    net, x, g = Net().to(dtype), spikes(2, 5, 2, 6, 5).to(dtype), torch.randn(2, 5, 6, 6, 5, dtype=dtype)

    def results(f):
        net.zero_grad()
        source = x.clone().requires_grad_()
        y = f(source)
        y.backward(g)
        return y.detach(), source.grad, *(p.grad.clone() for p in net.parameters())

    expected = results(net)
    torch._dynamo.reset()
    compiled = torch.compile(net, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    for a, e in zip(results(compiled), expected, strict=True):
        torch.testing.assert_close(a, e)


@pytest.mark.parametrize("packed", [False, True])
def test_backward_keeps_bits(packed):
    layer, x = conv(6, 10, 3), spikes(3, 20, 6, 8, 7).requires_grad_()
    given, saved = esl.functional.pack(x) if packed else x, []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        layer(given).sum().backward()
    words = [t for t in saved if t.dtype == torch.int64]
    groups = 2 if packed else 1  # of 64 lanes: 3 steps of 24, or 60 samples
    assert [t.numel() for t in words] == [groups * 8 * 7 * 6]
    assert max(t.numel() for t in saved if t.is_floating_point()) <= layer.values.numel()


# Conversions


@pytest.mark.parametrize("kind", DENSE)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("block_size", [1, (4, 2), 16])
def test_to_dense(kind, block_size, bias):
    layer = conv(6, 10, 3, 2, 1, 1, 2, bias, "circular", kind=kind, block_size=block_size)
    layer.values.data.masked_fill_(~layer.topology.valid(), torch.nan)
    dense = layer.to_dense()
    assert type(dense) is DENSE[kind]
    assert torch.equal(dense.weight.double(), weight_of(layer))
    assert dense.bias is None if not bias else torch.equal(dense.bias, layer.bias)
    x = torch.randn(3, 6, *(7,) * len(layer.kernel_size))
    torch.testing.assert_close(layer(x), dense(x))


@pytest.mark.parametrize("kind", DENSE)
@pytest.mark.parametrize("block", [(1, 1), (4, 2), (8, 8)])
@pytest.mark.parametrize("density", [0.0, 0.3, 1.0])
def test_from_dense_keeps_the_largest_blocks(kind, block, density):
    dense = DENSE[kind](9, 12, 3, 2, 2, groups=3, padding_mode="reflect")
    layer = kind.from_dense(dense, density, block_size=block)
    assert layer.block_size == (min(block[0], 4), min(block[1], 4))
    every = kind(9, 12, 3, density=1.0, block_size=block, groups=3)
    inside = blocks_of(every, torch.ones_like(dense.weight))
    score = blocks_of(every, dense.weight.detach().abs().double()).sum((1, 2)) / inside.sum((1, 2))
    kept = score.argsort(descending=True)[: round(density * len(score))].sort().values
    assert torch.equal(layer.topology.block_ids(), kept)
    assert torch.equal(layer.values.detach(), blocks_of(layer, dense.weight.detach()))
    assert torch.equal(layer.bias, dense.bias)
    assert (layer.stride, layer.padding, layer.padding_mode) == (dense.stride, dense.padding, "reflect")
    assert_index_consistent(layer)


@pytest.mark.parametrize("kind", DENSE)
def test_from_dense_by_the_mask_of_torch_s_pruning(kind):
    dense = DENSE[kind](8, 12, 3, groups=2, bias=False)
    prune.random_unstructured(dense, "weight", 0.9)
    mask = dense.weight_mask.bool()
    layer = kind.from_dense(dense, mask=mask, block_size=(4, 2))
    assert torch.equal(weight_of(layer), dense.weight.detach().double())
    every = kind(8, 12, 3, density=1.0, block_size=(4, 2), groups=2)
    touched = blocks_of(every, mask).any(2).any(1).nonzero().flatten()
    assert torch.equal(layer.topology.block_ids(), touched)
    assert layer.bias is None


@pytest.mark.parametrize(
    "arguments,error,message",
    [
        ({"module": nn.Linear(1, 1), "density": 0.1}, TypeError, "expected an nn.Conv2d, got Linear"),
        ({"module": nn.Conv1d(1, 1, 1), "density": 0.1}, TypeError, "expected an nn.Conv2d, got Conv1d"),
        ({}, ValueError, "either density or mask"),
        ({"density": 1.5}, ValueError, "density: expected a fraction from 0 to 1, got 1.5"),
        (
            {"mask": torch.ones(4, 2, 3, 3)},
            ValueError,
            r"mask: expected bool \(4, 2, 3, 3\), got torch.float",
        ),
        ({"mask": torch.ones(4, 2, 9) > 0}, ValueError, r"mask: expected bool .*\(4, 2, 9\)"),
    ],
)
def test_from_dense_wrong(arguments, error, message):
    with pytest.raises(error, match=message):
        SparseConv2d.from_dense(**{"module": nn.Conv2d(2, 4, 3), **arguments})


def test_conversions_leave_the_random_state_alone():
    dense = nn.Conv2d(6, 8, 3)
    before = torch.get_rng_state()
    SparseConv2d.from_dense(dense, density=0.5).to_dense()
    assert torch.equal(torch.get_rng_state(), before)
