"""Linear maps and convolutions of drawn sizes and options against torch's own layers in float64."""

from __future__ import annotations

import pytest
import torch
from hypothesis import assume
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

import esl_sparse as esl
from esl_sparse.functional import pack

from .. import oracle
from . import draws
from .exact import assert_sums
from .profiles import fuzz

# The layer's dtype, that of autocast (none: ""), and the precision of sums.
PRECISIONS = {
    "float32": (torch.float32, None, 2.0**-24),
    "float64": (torch.float64, None, 2.0**-53),
    "autocast": (torch.float32, torch.bfloat16, 2.0**-24),
}
precisions = st.sampled_from(["float32", "float32", "float32", "float64", "autocast"])


class Reference:
    """A dense layer in float64, and the same on absolute values, which bounds the error of sums."""

    def __init__(self, run, x, weight, bias, grad) -> None:
        def both(x, weight, bias, grad):
            leaves = [t.detach().clone().requires_grad_() for t in (x, weight, bias)]
            y = run(*leaves)
            return y.detach(), *torch.autograd.grad(y, leaves, grad)

        names = ("y", "grad x", "grad weight", "grad bias")
        self.found = dict(zip(names, both(x, weight, bias, grad), strict=True))
        absolute = both(x.abs(), weight.abs(), bias.abs(), grad.abs())
        self.size = dict(zip(names, absolute, strict=True))


def check(layer, x, packed, blocks_of, run, dense_weight, grad_of, precision, terms) -> None:
    """``layer(x)`` and every gradient; ``packed``: x as bits, or None."""
    dtype, narrow, sum_eps = PRECISIONS[precision]
    bias = layer.bias if layer.bias is not None else torch.zeros(layer._layout.rows, dtype=dtype)
    seen = x.to(narrow) if narrow else x  # what the layer computes with
    leaf = x.detach().requires_grad_()
    with torch.autocast("cpu", narrow or torch.bfloat16, enabled=narrow is not None):
        y = layer(pack(leaf) if packed else leaf)
    grad = grad_of(y)
    y.backward(grad)
    reference = Reference(run, seen.double(), dense_weight, bias.detach().double(), grad.double())
    found = {"y": y, "grad x": leaf.grad}
    if layer.bias is not None:
        found["grad bias"] = layer.bias.grad
    for name, tensor in found.items():
        expected, size = reference.found[name].view_as(tensor), reference.size[name].view_as(tensor)
        n = tensor.numel() and terms[name]
        rounded = dtype if name == "grad bias" else narrow or dtype
        assert_sums(name, tensor, expected, size, n, sum_eps, rounded)
    expected, size = (blocks_of(part["grad weight"].numpy()) for part in (reference.found, reference.size))
    assert_sums("grad values", layer.values.grad, torch.from_numpy(expected), torch.from_numpy(size),
                terms["grad values"], sum_eps, dtype)  # fmt: skip


def fill(layer, random) -> None:
    """Numbers that are not the initial ones; NaN where blocks overhang."""
    with torch.no_grad():
        layer.values.copy_(draws.garbage(random.normal(*layer.values.shape), layer.topology.valid()))
        if layer.bias is not None:
            layer.bias.copy_(random.normal(*layer.bias.shape))


@fuzz(
    110,
    draws.options(
        cols=st.integers(1, 70),
        rows=st.integers(1, 70),
        lead=st.one_of(
            st.lists(st.integers(0, 5), max_size=3), st.lists(st.integers(0, 300), min_size=1, max_size=1)
        ),
        block=draws.blocks,
        density=draws.densities,
        bias=st.booleans(),
        kind=draws.kinds,
        rate=draws.rates,
        form=draws.forms,
        input=st.sampled_from(["auto", "auto", "float", "promised"]),
        packed=st.booleans(),
        precision=precisions,
        seed=draws.seeds,
    ),
)
def test_linear(case):
    random = draws.Random(case.seed)
    dtype = PRECISIONS[case.precision][0]
    kind = case.kind
    input = case.input if case.input != "promised" else kind
    layer = esl.nn.SparseLinear(
        case.cols, case.rows, case.bias, density=case.density, block_size=case.block, input=input, dtype=dtype,
        generator=random.generator,
    )  # fmt: skip
    fill(layer, random)
    ids, shape = layer.topology.block_ids().tolist(), (case.rows, case.cols)
    packed = case.packed and len(case.lead) == 2 and kind != "float" and case.precision != "autocast"
    x = draws.formed(random.inputs((*case.lead, case.cols), kind, case.rate).to(dtype), case.form)
    N = x.numel() // case.cols

    def run(x, weight, bias):
        return F.linear(x.reshape(N, case.cols), weight, bias)

    check(
        layer, x, packed, lambda weight: oracle.blocks(weight, ids, layer.block_size),
        lambda *operands: run(*operands).view(*x.shape[:-1], case.rows),
        torch.from_numpy(oracle.dense(layer.values.detach().double().numpy(), ids, shape)),
        lambda y: draws.formed(random.normal(*y.shape).to(y.dtype), case.form),
        case.precision,
        {"y": case.cols, "grad x": case.rows, "grad values": N, "grad bias": N},
    )  # fmt: skip


@st.composite
def conv_cases(draw, dims: int):
    pair = lambda least, most: draw(st.tuples(*[st.integers(least, most)] * dims))  # noqa: E731
    groups = draw(st.integers(1, 3))
    kernel, stride, dilation = pair(1, 4), pair(1, 3), pair(1, 3)
    padding = draw(st.one_of(st.tuples(*[st.integers(0, 3)] * dims), st.sampled_from(["same", "valid"])))
    return draw(
        draws.options(
            groups=st.just(groups),
            channels=st.integers(1, 9).map(lambda n: n * groups),
            rows=st.integers(1, 9).map(lambda n: n * groups),
            kernel=st.just(kernel),
            stride=st.just((1,) * dims if padding == "same" else stride),
            dilation=st.just(dilation),
            padding=st.just(padding),
            padding_mode=st.sampled_from(["zeros", "zeros", "zeros", "reflect", "replicate", "circular"]),
            size=st.tuples(*[st.integers(1, 11)] * dims),
            lead=st.lists(st.integers(1, 5), max_size=2),
            block=draws.blocks,
            density=draws.densities,
            bias=st.booleans(),
            kind=draws.kinds,
            rate=draws.rates,
            form=draws.forms,
            packed=st.booleans(),
            precision=precisions,
            seed=draws.seeds,
        )
    )


def check_conv(case, sparse, dense) -> None:
    random = draws.Random(case.seed)
    dtype = PRECISIONS[case.precision][0]
    arguments = (case.channels, case.rows, case.kernel, case.stride, case.padding, case.dilation, case.groups)
    layer = sparse(
        *arguments, case.bias, case.padding_mode, density=case.density, block_size=case.block, dtype=dtype,
        generator=random.generator,
    )  # fmt: skip
    fill(layer, random)
    like = dense(*arguments, True, case.padding_mode, dtype=torch.float64)
    shape, size = tuple(like.weight.shape), case.size
    map_shape = (*shape[:2], 1, *shape[2:]) if len(size) == 1 else shape
    lead = tuple(case.lead)
    x = random.inputs((*lead, case.channels, *size), case.kind, case.rate).to(dtype)
    x = draws.formed(x, case.form)
    maps = lambda t: t.reshape(-1, case.channels, *size)  # noqa: E731

    def run(x, weight, bias):
        return torch.func.functional_call(like, {"weight": weight, "bias": bias}, (maps(x),))

    with torch.no_grad():
        try:
            y = run(x.double(), like.weight, like.bias)
        except RuntimeError:  # a kernel larger than the map, a border wider than it
            with pytest.raises((ValueError, RuntimeError)):
                layer(x)
            return
    assume(y.numel())
    packed = case.packed and len(lead) == 2 and case.kind != "float" and case.precision != "autocast"
    packed = packed and len(size) == 2
    ids = layer.topology.block_ids().tolist()
    weight = oracle.conv_dense(layer.values.detach().double().numpy(), ids, map_shape, case.groups)
    pixels, taps = y.shape[0] * y[0, 0].numel(), like.weight[0, 0].numel()
    # A border that repeats pixels adds up their gradients.
    repeats = 1 if case.padding_mode == "zeros" else 3 ** len(size)
    check(
        layer, x, packed,
        lambda weight: oracle.conv_blocks(weight.reshape(map_shape), ids, case.groups, layer.block_size),
        lambda *operands: run(*operands).view(*lead, case.rows, *y.shape[2:]),
        torch.from_numpy(weight).view(shape),
        lambda y: draws.formed(random.normal(*y.shape).to(y.dtype), case.form),
        case.precision,
        {"y": shape[1] * taps, "grad x": shape[0] * taps * repeats, "grad values": pixels, "grad bias": pixels},
    )  # fmt: skip


@fuzz(130, conv_cases(2))
def test_conv2d(case):
    check_conv(case, esl.nn.SparseConv2d, nn.Conv2d)


@fuzz(40, conv_cases(1))
def test_conv1d(case):
    check_conv(case, esl.nn.SparseConv1d, nn.Conv1d)
