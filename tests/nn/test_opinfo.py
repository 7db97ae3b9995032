"""torch's own sample inputs for linear, conv1d and conv2d, through our layers, with all weights and with a third."""

import pytest
import torch
from torch.testing._internal.common_methods_invocations import op_db

import esl_sparse as esl

LAYERS = {
    "nn.functional.linear": esl.nn.SparseLinear,
    "nn.functional.conv1d": esl.nn.SparseConv1d,
    "nn.functional.conv2d": esl.nn.SparseConv2d,
}
OPS = [op for op in op_db if op.name in LAYERS]
pytestmark = [
    pytest.mark.filterwarnings("ignore:Using padding='same'"),
    pytest.mark.filterwarnings("ignore:Casting complex"),
]


def layer_of(op, weight, bias, options):
    """A layer with these weights, blocks where they are not 0."""
    kind = LAYERS[op.name]
    if op.name.endswith("linear"):
        dense = torch.nn.Linear(weight.shape[1], weight.shape[0], bias is not None)
    else:
        make = torch.nn.Conv1d if op.name.endswith("1d") else torch.nn.Conv2d
        channels = weight.shape[1] * options.get("groups", 1)
        dense = make(channels, weight.shape[0], weight.shape[2:], bias=bias is not None, **options)
    with torch.no_grad():
        dense.weight.copy_(weight)
        if bias is not None:
            dense.bias.copy_(bias)
    return kind.from_dense(dense, mask=weight != 0, block_size=1)


@pytest.mark.parametrize("op", OPS, ids=lambda op: op.name)
@pytest.mark.parametrize("density", [1.0, 0.3])
def test_samples(op, density):
    generator = torch.Generator().manual_seed(0)
    samples = list(op.sample_inputs("cpu", torch.float32, requires_grad=True))
    assert len(samples) >= 10
    for sample in samples:
        x = sample.input.detach().requires_grad_()
        weight, *rest = sample.args
        bias = rest[0] if rest else None
        mask = torch.rand(weight.shape, generator=generator) < density
        mask.view(-1)[0] = True
        weight = (weight.detach() * mask).requires_grad_()
        # an entry that is 0 by chance would not be a block
        with torch.no_grad():
            weight += mask * (weight == 0)
        expected = op(x, weight, *([] if bias is None else [bias]), **sample.kwargs)
        cotangent = torch.randn(expected.shape, generator=generator)
        layer = layer_of(op, weight.detach(), None if bias is None else bias.detach(), sample.kwargs)
        assert layer.nnz == int(mask.sum())
        found = layer(x)
        assert found.shape == expected.shape and found.dtype == expected.dtype
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
        wanted = [x, weight] + ([] if bias is None else [bias])
        grads = torch.autograd.grad(expected, wanted, cotangent)
        mine = torch.autograd.grad(
            found, [x, layer.values] + ([] if bias is None else [layer.bias]), cotangent
        )
        torch.testing.assert_close(mine[0], grads[0], rtol=1e-4, atol=1e-4)
        of_values = layer.topology.to_dense(mine[1]).reshape(len(weight), -1)
        of_weight = (grads[1] * mask).flatten(1)
        if weight.dim() > 2:  # blocks hold taps before channels
            of_weight = (grads[1] * mask).movedim(1, -1).flatten(1)
        torch.testing.assert_close(of_values, of_weight, rtol=1e-4, atol=1e-4)
        if bias is not None:
            torch.testing.assert_close(mine[2], grads[2], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("op", [op for op in OPS if op.error_inputs_func], ids=lambda op: op.name)
def test_what_torch_refuses_is_refused(op):
    """By an exception, as torch does; the layer's constructor may be first to see it."""
    checked = 0
    for case in op.error_inputs("cpu"):
        sample = case.sample_input
        weight, *rest = sample.args
        bias = rest[0] if rest else None
        if weight.dim() != (3 if op.name.endswith("1d") else 4) or not weight.is_floating_point():
            continue  # no layer has such a weight
        with pytest.raises((RuntimeError, TypeError, ValueError)):
            layer_of(op, weight, bias, sample.kwargs)(sample.input)
        checked += 1
    assert checked >= 3
