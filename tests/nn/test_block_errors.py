"""What a SpikingBlock refuses, before kernels see it."""

import pytest
import torch
from torch import nn

import esl_sparse as esl
from esl_sparse.functional import pack
from esl_sparse.nn import LIF, AvgPool2d, SparseConv2d, SparseLinear, SpikingBlock


def conv(*args):
    return SparseConv2d(*args, density=0.5)


def block(**options):
    return SpikingBlock(conv(4, 6, 3, 1, 1), nn.BatchNorm2d(6), options.pop("lif", LIF()), **options)


def linear_block():
    return SpikingBlock(SparseLinear(4, 6), nn.BatchNorm1d(6), LIF())


def spikes(*shape):
    return torch.ones(*shape)


def shortcut_block():
    return block(shortcut=conv(4, 6, 1, 1))


X = (3, 5, 4, 6, 7)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: block(lif=LIF(step_mode="s")), "lif: expected step_mode 'm'"),
        (lambda: block(lif=LIF(time_dim=1)), "lif: expected step_mode 'm' and time_dim 0"),
        (lambda: SpikingBlock(nn.Conv2d(1, 1, 1), nn.SyncBatchNorm(1), LIF()), "use nn.BatchNorm2d"),
        (lambda: block(shortcut=nn.Sequential(nn.Conv2d(1, 1, 1), nn.SyncBatchNorm(1))), "use nn.BatchNorm2d"),
        (lambda: block(shortcut=nn.Sequential()), "shortcut: expected a convolution and a norm, got 0"),
        (lambda: shortcut_block()(spikes(*X)), "residual: expected one"),
        (lambda: block()(spikes(3, 5, 3, 6, 7)), r"x: expected \[T, N, 4, H, W\], got Tensor of shape \(3, 5, 3"),
        (lambda: block()(pack(spikes(3, 5, 3, 6, 7))), r"x: expected \[T, N, 4, H, W\], got PackedSpikes"),
        (lambda: block()(spikes(5, 4, 6, 7)), r"x: expected \[T, N, 4, H, W\]"),
        (lambda: linear_block()(spikes(3, 5, 5)), r"x: expected \[T, N, 4\], got Tensor of shape \(3, 5, 5\)"),
        (lambda: linear_block()(pack(spikes(3, 5, 3))), r"x: expected \[T, N, 4\]"),
        (lambda: linear_block()(pack(spikes(3, 5, 4, 2, 2))), r"x: expected \[T, N, 4\]"),
        (lambda: linear_block()(spikes(5, 4)), r"x: expected \[T, N, 4\]"),
        (lambda: block()(pack(spikes(*X)), spikes(3, 5, 6, 6, 6)), "residual: expected to add"),
        (lambda: block()(spikes(*X), spikes(3, 5, 4, 6, 7)), r"residual: expected \[T, N, 6, H, W\]"),
        (lambda: block()(spikes(*X), pack(spikes(15, 1, 6, 6, 7))), r"residual: expected to add .*\(3, 5, 6, 7, 6\)"),
        (lambda: block()(spikes(*X), pack(spikes(3, 5, 6, 6, 6))), r"to add .* got \(3, 5, 6, 6, 6\)"),
        (lambda: shortcut_block()(spikes(*X), spikes(1, 5, 4, 6, 7)), "residual: expected to add"),
        (lambda: shortcut_block()(spikes(*X), spikes(3, 5, 4, 7, 7)), "residual: expected to add"),
        (lambda: shortcut_block()(spikes(*X), spikes(3, 5, 6, 6, 7)), r"residual: expected \[T, N, 4, H, W\]"),
        (lambda: block()(spikes(1, 1, 4, 1, 1)), "more than 1 value per channel"),
        (lambda: block(pool=AvgPool2d(3))(spikes(3, 5, 4, 2, 7)), "at least one window"),
        (lambda: block(pool=AvgPool2d(4))(spikes(*X)), "expected sums of at most 15"),
        (lambda: SpikingBlock(conv(4, 6, 3), nn.BatchNorm2d(5), LIF())(spikes(*X)), "6 features"),
        (lambda: block()(torch.ones(*X, device="meta")), "x: expected on the layer's device cpu"),
    ],
)  # fmt: skip
def test_wrong_values(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: SpikingBlock(nn.Conv2d(1, 1, 1), None, nn.ReLU()), "lif: expected an esl_sparse.nn.LIF, got ReLU"),
        (lambda: block()([1.0]), "x: expected a tensor or PackedSpikes, got list"),
        (lambda: block()(spikes(*X).double()), "x: expected torch.float32 like the layer's values, got torch.float64"),
        (lambda: block()(spikes(*X).long()), "x: expected torch.float32 like the layer's values, got torch.int64"),
        (lambda: block()(spikes(*X), spikes(3, 5, 6, 6, 7).half()), "residual: expected torch.float32"),
    ],
)  # fmt: skip
def test_wrong_types(call, message):
    with pytest.raises(TypeError, match=message):
        call()


def test_words_of_another_batch_are_refused():
    x = pack(spikes(3, 5, 4, 6, 7))
    for T_, B_ in ((3, 50), (30, 5)):
        with pytest.raises(ValueError, match="x: expected"):
            block()(esl.PackedSpikes(x.carrier, x.words, T_, B_))


def test_a_residual_does_not_change_what_the_input_is_taken_for():
    b = block()
    b(torch.rand(*X), (torch.rand(3, 5, 6, 6, 7) < 0.5).float())
    assert b.conv._kind[0] == 0
    b.conv._set_input("float")
    b(torch.rand(*X), spikes(3, 5, 6, 6, 7))
