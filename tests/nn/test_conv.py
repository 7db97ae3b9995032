"""SparseConv2d and SparseConv1d against torch's layers: construction, forward and backward."""

import re

import numpy as np
import pytest
import torch
from torch import nn

import esl_sparse as esl
from esl_sparse.functional import Geometry, conv2d
from esl_sparse.nn import LIF, SparseConv1d, SparseConv2d

from .. import oracle
from .conv_layers import (
    ARGUMENT_NAMES,
    DENSE,
    assert_index_consistent,
    assert_same_map,
    blocks_of,
    conv,
    dense_map,
    generator,
    spikes,
    twin,
    weight_of,
)

pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same'")


# Construction

ARGUMENTS = {
    "square": ((6, 10, 3), {}),
    "rectangular": ((6, 10, (3, 2), (2, 1), (1, 0), (1, 2)), {"bias": False}),
    "groups": ((12, 8, 3), {"groups": 4, "padding": 1}),
    "depthwise": ((7, 14, 3), {"groups": 7, "stride": 2}),
    "pointwise": ((5, 9, 1), {}),
    "same": ((3, 5, (2, 4)), {"padding": "same", "padding_mode": "circular"}),
    "valid": ((3, 5, 2), {"padding": "valid"}),
    "reflect": ((3, 5, 3), {"padding": (2, 1), "padding_mode": "reflect"}),
}
ATTRIBUTES = [*ARGUMENT_NAMES, "padding_mode", "transposed", "output_padding"]


@pytest.mark.parametrize("name", ARGUMENTS)
@pytest.mark.parametrize("block_size,density", [("auto", 0.333), (1, 0.1), ((2, 8), 1.0), (128, 0.0)])
def test_construction(name, block_size, density):
    arguments, options = ARGUMENTS[name]
    dense = nn.Conv2d(*arguments, **options)
    layer = conv(*arguments, density=density, block_size=block_size, **options)
    for attribute in ATTRIBUTES:
        assert getattr(layer, attribute) == getattr(dense, attribute), attribute
    block = layer.block_size
    blocks = oracle.conv_block_count(dense.weight.shape, dense.groups, block)
    assert layer.topology.nnzb == round(density * blocks)
    assert layer.values.shape == (layer.topology.nnzb, *block)
    assert not layer.values[blocks_of(layer, torch.ones_like(dense.weight)) == 0].any()
    assert layer.nnz == np.count_nonzero(weight_of(layer))
    assert layer.density == pytest.approx(layer.nnz / dense.weight.numel())
    bias = ["bias"] * (dense.bias is not None)
    assert [name for name, _ in layer.named_parameters()] == ["values", *bias]
    assert set(layer.state_dict()) == {"values", "crow_indices", "col_indices", *bias}
    assert_index_consistent(layer)


def test_blocks_are_clamped_to_a_group():
    assert conv(64, 64, 3).block_size == (4, 4)
    assert conv(12, 30, 3, groups=2, block_size=64).block_size == (16, 8)
    assert conv(8, 16, 3, groups=8).block_size == (2, 1)


def test_one_dimension():
    layer, dense = conv(6, 10, 5, 2, 1, 3, 2, kind=SparseConv1d), nn.Conv1d(6, 10, 5, 2, 1, 3, 2)
    for attribute in ATTRIBUTES:
        assert getattr(layer, attribute) == getattr(dense, attribute), attribute
    assert layer.topology.layout.taps == 5


@pytest.mark.parametrize(
    "layer,text",
    [
        (conv(6, 10, 3), "SparseConv2d(6, 10, kernel_size=(3, 3), stride=(1, 1), bias=True, density="),
        (
            conv(6, 12, (3, 2), 2, 1, (1, 2), 2, False, "reflect", density=1.0, block_size=(2, 1)),
            "SparseConv2d(6, 12, kernel_size=(3, 2), stride=(2, 2), padding=(1, 1), dilation=(1, 2), groups=2, "
            "padding_mode='reflect', bias=False, density=1, block_size=(2, 1))",
        ),
        (
            conv(6, 10, 3, padding="same", kind=SparseConv1d, device="meta"),
            "SparseConv1d(6, 10, kernel_size=(3,), stride=(1,), padding='same', bias=True, block_size=(4, 4))",
        ),
    ],
)
def test_repr(layer, text):
    assert repr(layer).startswith(text)


TORCH_RAISES = [
    ((3, 5, 3, 1, 0, 1, 2), {}),
    ((4, 5, 3, 1, 0, 1, 2), {}),
    ((4, 4, 3, 1, 0, 1, 0), {}),
    ((3, 5, -1), {}),
    ((-3, 5, 3), {}),
    ((3, 5, 3), {"padding": "sane"}),
    ((3, 5, 3, 2), {"padding": "same"}),
    ((3, 5, 3), {"padding_mode": "zero"}),
    ((3.0, 5, 3), {}),
    ((3, 5, 2.5), {}),
    (("3", 5, 3), {}),
]


@pytest.mark.parametrize("arguments,options", TORCH_RAISES)
@pytest.mark.parametrize("kind", DENSE)
def test_what_torch_refuses_is_refused_alike(kind, arguments, options):
    with pytest.raises(Exception) as of_torch:
        DENSE[kind](*arguments, **options)
    with pytest.raises(type(of_torch.value), match=re.escape(str(of_torch.value))):
        kind(*arguments, **options)


@pytest.mark.filterwarnings("ignore:Initializing zero-element")
@pytest.mark.parametrize(
    "options,message",
    [
        ({"in_channels": 0}, "in_channels: expected at least 1, got 0"),
        ({"out_channels": 0}, "out_channels: expected at least 1, got 0"),
        ({"kernel_size": 0}, r"kernel_size: expected 2 numbers of at least 1, got \(0, 0\)"),
        ({"kernel_size": (3, 3, 3)}, r"kernel_size: expected 2 numbers of at least 1, got \(3, 3, 3\)"),
        ({"stride": (1, 0)}, r"stride: expected 2 numbers of at least 1, got \(1, 0\)"),
        ({"padding": -1}, r"padding: expected 2 numbers of at least 0, got \(-1, -1\)"),
        ({"dilation": 0}, r"dilation: expected 2 numbers of at least 1, got \(0, 0\)"),
        ({"density": 1.1}, "density: expected a fraction from 0 to 1, got 1.1"),
        ({"block_size": 3}, "block_size: expected powers of two"),
        ({"input": "spikes"}, "input: expected one of .*got 'spikes'"),
    ],
)
def test_what_torch_would_not_notice(options, message):
    with pytest.raises(ValueError, match=message):
        SparseConv2d(**{"in_channels": 8, "out_channels": 8, "kernel_size": 3, **options})


def test_the_generator_decides_everything():
    before = torch.get_rng_state()
    first, again, other = (
        SparseConv2d(16, 16, 3, generator=generator(seed)).state_dict().values() for seed in (1, 1, 2)
    )
    for a, b, c in zip(first, again, other, strict=True):
        assert torch.equal(a, b)
        assert a.shape != c.shape or not torch.equal(a, c)
    assert torch.equal(torch.get_rng_state(), before)


def test_initial_values_follow_the_sparse_fan_in():
    layer = conv(100, 80, 3, density=0.1)
    bound = 900**-0.5 * 10**0.5  # 1 / sqrt(100 * 9 * 0.1)
    for tensor in (layer.values, layer.bias):
        assert tensor.abs().max().item() == pytest.approx(bound, rel=0.03)
    assert layer.values.std().item() == pytest.approx(bound / 3**0.5, rel=0.03)
    grouped = conv(100, 80, 3, density=0.1, groups=4)
    assert grouped.values.abs().max().item() == pytest.approx(2 * bound, rel=0.03)


def test_there_is_no_dense_weight():
    layer = conv(8, 8, 3)
    with pytest.raises(
        AttributeError, match=r"no dense weight: .*\.values.*\.to_dense\(\) gives an nn.Conv2d"
    ):
        _ = layer.weight
    assert not isinstance(layer, nn.Conv2d)


# Forward and backward


@pytest.mark.parametrize("lead", [(), (5,), (3, 5), (0,), (3, 0)])
@pytest.mark.parametrize("source", ["spikes", "floats", "channels_last"])
def test_is_the_convolution_of_its_dense_weight(backend, lead, source):
    layer = conv(6, 10, 3, 2, 1, block_size=(4, 2))
    x = torch.randn(*lead, 6, 7, 5) if source == "floats" else spikes(*lead, 6, 7, 5)
    if source == "channels_last":
        x = x.movedim(-3, -1).contiguous().movedim(-1, -3)
    assert_same_map(layer, x.requires_grad_())


@pytest.mark.parametrize("source", ["spikes", "floats", "packed"])
@pytest.mark.parametrize("mode", ["zeros", "reflect", "replicate", "circular"])
@pytest.mark.parametrize(
    "name", ["square", "rectangular", "groups", "depthwise", "pointwise", "same", "reflect"]
)
def test_every_padding_mode(backend, name, mode, source):
    arguments, options = ARGUMENTS[name]
    layer = conv(*arguments, block_size=(2, 4), **(options | {"padding_mode": mode}))
    shape = (2, 3, arguments[0], 6, 5)
    x = (torch.randn(shape) if source == "floats" else spikes(*shape)).requires_grad_()
    assert_same_map(layer, x, esl.functional.pack(x) if source == "packed" else None)


@pytest.mark.parametrize("lead", [(), (5,), (3, 5), (0,)])
@pytest.mark.parametrize("mode", ["zeros", "reflect", "replicate", "circular"])
@pytest.mark.parametrize("source", ["spikes", "floats"])
def test_in_one_dimension(backend, lead, mode, source):
    layer = conv(6, 8, 3, 2, 2, 1, 2, padding_mode=mode, kind=SparseConv1d)
    x = torch.randn(*lead, 6, 11) if source == "floats" else spikes(*lead, 6, 11)
    assert_same_map(layer, x.requires_grad_())


@pytest.mark.parametrize("mode", ["zeros", "reflect", "replicate", "circular"])
def test_packed_spikes_in_one_dimension(backend, mode):
    layer = conv(6, 8, 3, 2, 2, 1, 2, padding_mode=mode, kind=SparseConv1d)
    x = spikes(3, 5, 6, 11).requires_grad_()
    assert_same_map(layer, x, esl.functional.pack(x.unsqueeze(3)))


def test_currents_are_panels(backend):
    layer, x = conv(6, 10, 3, padding=1), spikes(2, 5, 6, 4, 7)
    panels = layer(esl.functional.pack(x), currents=True)
    assert panels.shape == (1, 4, 7, 10, 64)
    maps = torch.from_numpy(oracle.from_panels(panels.detach().numpy(), 2, 5))
    torch.testing.assert_close(maps, layer(x).detach())
    with pytest.raises(TypeError, match="x: currents are made from PackedSpikes, got Tensor"):
        layer(x, currents=True)


def test_one_input_of_two_layers_collects_both_gradients(backend):
    a, b = conv(6, 10, 3, padding=1), conv(6, 4, 1, block_size=1)
    x = spikes(3, 5, 6, 4, 7).requires_grad_()
    packed = esl.functional.pack(x)
    grads = torch.randn(3, 5, 10, 4, 7), torch.randn(3, 5, 4, 4, 7)
    torch.autograd.backward([a(packed), b(packed)], grads)
    exact = x.detach().double().requires_grad_()
    expected = [dense_map(twin(layer), exact) for layer in (a, b)]
    torch.autograd.backward(expected, [g.double() for g in grads])
    torch.testing.assert_close(x.grad, exact.grad.float())


def test_training_lowers_the_loss(backend):
    """Convolutions with neurons between them tell three textures apart."""
    torch.manual_seed(1)
    net = nn.Sequential(
        conv(2, 16, 3, padding=1, input="binary"),
        LIF(0.5, 0.3),
        conv(16, 16, 3, 2, groups=2, input="binary"),
        LIF(0.5, 0.3),
        nn.Flatten(2),
        esl.nn.SparseLinear(16 * 9, 3, density=0.5, generator=generator()),
    )
    optimizer = torch.optim.Adam(net.parameters(), 0.01)
    labels = torch.arange(24) % 3
    pattern = spikes(3, 2, 8, 8, rate=0.5)
    losses = []
    for _ in range(12):
        x = (pattern[labels] * spikes(4, 24, 2, 8, 8, rate=0.7)).clamp(max=1)
        loss = nn.functional.cross_entropy(net(x).mean(0), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0], losses


@pytest.mark.parametrize("field", [name for name in Geometry._fields if name not in ("groups", "kh", "kw")])
@pytest.mark.parametrize("number", [-1, 2**40, 2**62])
def test_a_geometry_that_cannot_be_is_refused(field, number):
    layer = SparseConv2d(4, 6, 3, padding=1, density=0.5)
    x = torch.ones(2, 4, 5, 6)
    geometry = layer.geometry(5, 6)._replace(**{field: number})
    with pytest.raises(ValueError, match=r"geometry: expected one that Geometry\.of makes|x: expected shape"):
        conv2d(x, layer.values, layer.bias, layer.topology, geometry)
