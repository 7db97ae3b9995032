"""Convolution layers for tests, and the float64 layers of torch that they are compared with."""

import torch
from torch import nn

from esl_sparse.nn import SparseConv1d, SparseConv2d
from esl_sparse.topology import transpose_index

from .. import oracle

ARGUMENT_NAMES = ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups")
DENSE = {SparseConv1d: nn.Conv1d, SparseConv2d: nn.Conv2d}


def spikes(*shape, rate=0.3):
    return (torch.rand(shape) < rate).float()


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def conv(*arguments, kind=SparseConv2d, density=0.5, **options):
    return kind(*arguments, density=density, generator=generator(), **options)


def weight_of(layer):
    """The dense weight by the oracle, float64."""
    kernel = (1, 1, *layer.kernel_size)[-2:]
    shape = (layer.out_channels, layer.in_channels // layer.groups, *kernel)
    values, ids = layer.values.detach().double().numpy(), layer.topology.block_ids().numpy()
    weight = torch.from_numpy(oracle.conv_dense(values, ids, shape, layer.groups))
    return weight.reshape(*shape[:2], *layer.kernel_size)


def blocks_of(layer, weight):
    """What a layer's values are in this dense weight."""
    weight = weight.reshape(*weight.shape[:2], *(1, 1, *layer.kernel_size)[-2:])
    ids = layer.topology.block_ids().numpy()
    return torch.from_numpy(oracle.conv_blocks(weight.numpy(), ids, layer.groups, layer.block_size))


def twin(layer):
    """torch's layer of the same map, in float64."""
    options = {name: getattr(layer, name) for name in ARGUMENT_NAMES}
    dense = DENSE[type(layer)](
        **options, padding_mode=layer.padding_mode, bias=layer.bias is not None
    ).double()
    dense.weight.data.copy_(weight_of(layer))
    if layer.bias is not None:
        dense.bias.data.copy_(layer.bias)
    return dense


def dense_map(dense, x):
    """A layer of torch's on x with any leading dimensions, those of time included."""
    extra = x.dim() - len(dense.kernel_size) - 2
    if extra < 1:
        return dense(x)
    y = dense(x.flatten(0, extra))
    return y.view(*x.shape[: extra + 1], *y.shape[1:])


def assert_same_map(layer, x, given=None, rtol=1.3e-6, atol=1e-5):
    """Output and every gradient are torch's; ``given`` is what the layer is called with instead of x."""
    dense, exact = twin(layer), x.detach().double().requires_grad_()
    y, expected = layer(x if given is None else given), dense_map(dense, exact)
    assert y.shape == expected.shape
    grad = torch.randn(y.shape)
    bias = [] if layer.bias is None else [layer.bias]
    actual = torch.autograd.grad(y, [x, layer.values, *bias], grad)
    wanted = list(torch.autograd.grad(expected, [exact, *dense.parameters()], grad.double()))
    wanted[1] = blocks_of(layer, wanted[1])
    for a, e in zip((y, *actual), (expected, *wanted), strict=True):
        torch.testing.assert_close(a.double(), e, rtol=rtol, atol=atol)


def assert_index_consistent(layer):
    derived = transpose_index(layer.crow_indices, layer.col_indices, layer.topology.layout.col_blocks)
    for own, fresh in zip(list(layer.topology.index_tensors())[2:], derived, strict=True):
        assert torch.equal(own, fresh)
        assert own.dtype == torch.int32
