"""conv2d against torch's own convolution in float64: results and every gradient, by every implementation."""

import copy
import dataclasses
import itertools
import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from esl_sparse import BlockTopology
from esl_sparse.ops._library import raw
from esl_sparse.ops.conv2d import (
    Geometry,
    conv2d,
    conv2d_grad_values,
    conv2d_packed,
    conv2d_panels,
    native,
)
from esl_sparse.packed import Lanes
from esl_sparse.topology import index_from_block_ids

from .. import oracle
from ..conftest import available
from .conv2d_cases import CASES, Case, Problem, assert_close, check, torch_conv2d
from .linear_cases import OFFERED

pytestmark = [
    pytest.mark.usefixtures("poison"),
    pytest.mark.filterwarnings("ignore:Using padding='same'"),  # torch's, about speed
]

NATIVE = [backend for backend in available() if backend.startswith("native")]
BACKENDS = available()
VARIANTS = [
    ("binary", "maps"),
    ("binary", "packed"),
    ("binary", "panels"),
    ("halves", "packed"),
    ("levels2", "panels"),
    ("levels3", "maps"),
    ("levels4", "packed"),
    ("float", "maps"),
]


def pairs(dtype):
    """Every case once, every variant with many of them; others for another dtype."""
    for shift, case in enumerate(CASES, start=len(dtype)):
        yield case, *VARIANTS[shift % len(VARIANTS)]


def served(backend, case):
    return backend != "triton" or min(CASES[case].block) >= 16


@pytest.mark.parametrize(
    "backend,case",
    [(backend, case) for case in CASES for backend in BACKENDS if served(backend, case)],
    indirect=["backend"],
)
@pytest.mark.parametrize(
    "kind,form", [("binary", "panels"), ("halves", "packed"), ("levels3", "maps"), ("float", "maps")]
)
def test_agrees_with_torch(backend, case, kind, form):
    check(CASES[case], kind, form, "float32")


@pytest.mark.parametrize(
    "backend,dtype,case,kind,form",
    [
        (backend, dtype, *variant)
        for backend in BACKENDS
        for dtype in OFFERED[backend.partition("-")[0]]
        for variant in pairs(dtype)
        if served(backend, variant[0])
    ],
    indirect=["backend"],
)
def test_agrees_with_torch_in_every_precision(backend, case, kind, form, dtype):
    check(CASES[case], kind, form, dtype)


@pytest.mark.parametrize("backend", [backend for backend in BACKENDS if backend == "triton"], indirect=True)
def test_tuning_leaves_nothing_in_the_statistics(backend, monkeypatch):
    """Tiles of all sizes run on the buffers of the call that is tuned, the narrowest most often."""
    from esl_sparse.ops.conv2d import triton_kernels

    kernel, timed = triton_kernels.forward, []

    def time(call, quantiles):
        call()
        timed.append(call)
        return [1 / len(timed)] * len(quantiles)  # the last one is the fastest

    p = Problem(CASES["16x16"]._replace(T=3, B=60), "binary", "float16")
    operands = p.packed(), p.values, p.bias, p.topology, p.geometry
    _, expected = conv2d_panels(*operands, want_stats=True)
    wider = copy.deepcopy(kernel.configs[0])
    wider.kwargs["UNITS"] = 2
    monkeypatch.setattr(kernel, "configs", [*kernel.configs, wider])
    monkeypatch.setattr(kernel, "do_bench", time)
    monkeypatch.setattr(kernel, "cache", {})
    _, stats = conv2d_panels(*operands, want_stats=True)
    assert len(timed) == 2
    torch.testing.assert_close(stats, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kernel", native.KERNELS[1:])
@pytest.mark.parametrize("case", [name for name, case in CASES.items() if case.block[1] % 4 == 0])
@pytest.mark.parametrize("backend", NATIVE, indirect=True)
def test_every_spike_kernel(backend, case, kernel):
    """Where tables can be used at all, both ways are right."""
    kind, form = VARIANTS[list(CASES).index(case) % 6]
    native.set_spike_kernel(kernel)
    try:
        check(CASES[case], kind, form, "float32")
    finally:
        native.set_spike_kernel("automatic")


LAYOUTS = {
    "channels_last": lambda t: t.contiguous(memory_format=torch.channels_last),
    "sliced": lambda t: torch.cat([t, torch.full_like(t, torch.nan)], 3)[..., : t.shape[3]],
    "transposed": lambda t: t.transpose(0, 1).contiguous().transpose(0, 1),
    "every second": lambda t: torch.stack([t, torch.full_like(t, torch.nan)], 2).flatten(1, 2)[:, ::2],
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kind", ["binary", "float"])
def test_strides_do_not_matter(backend, kind, layout):
    p = Problem(CASES["3x3"], kind, "float32")
    same = LAYOUTS[layout]
    results = []
    for change in (lambda t: t, same):
        p.x, p.grad = change(p.x.detach()).requires_grad_(), change(p.grad)
        y = p.maps_result()
        results.append((y, *torch.autograd.grad(y, p.leaves(), p.grad)))
    assert not p.x.is_contiguous() and not p.grad.is_contiguous()
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


@pytest.mark.parametrize("kind", ["binary", "float"])
def test_an_expanded_gradient(backend, kind):
    """What ``y.sum().backward()`` sends: one element, strides of zero."""
    p = Problem(CASES["groups"], kind, "float32")
    p.grad = torch.ones_like(p.grad)
    results = torch.autograd.grad(p.maps_result().sum(), p.leaves())
    for name, actual in zip(("x.grad", "values.grad", "bias.grad"), results, strict=True):
        assert_close(name, actual, *p.expected()[name], p.tolerance)


@pytest.mark.parametrize("wanted", list(itertools.product([False, True], repeat=3)))
@pytest.mark.parametrize("form", ["maps", "packed", "panels"])
def test_only_wanted_gradients(backend, form, wanted):
    p = Problem(CASES["3x3-80-lanes"], "binary", "float32")
    tensors, grad, spikes = p.leaves(), p.grad, p.packed()
    if form != "maps":
        tensors[0] = spikes.carrier
    for tensor, want in zip(tensors, wanted, strict=True):
        tensor.requires_grad_(want)
    operands = (spikes, p.values, p.bias, p.topology, p.geometry)
    if form == "maps":
        y = p.maps_result()
    elif form == "packed":
        y, grad = conv2d_packed(*operands), p.maps(p.grad)
    else:
        (y, _), grad = conv2d_panels(*operands), p.panels(p.grad)
    assert y.requires_grad == any(wanted)
    if y.requires_grad:
        y.backward(grad)
    assert tuple(t.grad is not None for t in tensors) == wanted
    expected = p.expected()
    for name, tensor in (("values.grad", p.values), ("bias.grad", p.bias)):
        if tensor.grad is not None:
            assert_close(name, tensor.grad, *expected[name], p.tolerance)


FACTORS = {
    "y": ("x", "values"),
    "x.grad": ("grad", "values"),
    "values.grad": ("grad", "x"),
    "bias.grad": ("grad",),
}


def touched(p, where, place, *, zeros, absent=False):
    """Which entries of each result have the operand's element as a factor; optionally beside another factor of zero
    (an absent spike, a pixel of the border), and of absent weights too."""
    operands = {name: getattr(p, name).detach().double().clone() for name in ("x", "values", "grad")}
    for name, tensor in operands.items():
        tensor.copy_(torch.ones_like(tensor) if zeros else tensor != 0)
        if name == where:
            tensor.zero_()[place] = 1
    shape, groups = p.case.weight_shape, p.case.groups
    weight = torch.from_numpy(oracle.conv_dense(operands["values"].numpy(), p.ids, shape, groups))
    if absent and where != "values":
        weight.fill_(1)
    x, weight = operands["x"].requires_grad_(), weight.requires_grad_()
    above, left = p.case.padding
    padded = F.pad(x, (left, left, above, above), value=float(zeros))
    y = torch_conv2d(p.case._replace(padding=(0, 0)), padded, weight, None)
    grad_x, grad_weight = torch.autograd.grad(y, (x, weight), operands["grad"])
    results = (y, grad_x, p.blocks(grad_weight.numpy()), operands["grad"].sum((0, 2, 3)))
    return {
        name: (np.asarray(result.detach() if torch.is_tensor(result) else result) != 0) & (where in factors)
        for (name, factors), result in zip(FACTORS.items(), results, strict=True)
    }


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize(
    "kind,where",
    [("binary", "grad"), ("binary", "values"), ("float", "x"), ("float", "grad"), ("float", "values")],
)
@pytest.mark.parametrize("block", [(1, 1), (4, 4)])
def test_nan_and_infinity_propagate(backend, block, kind, where, bad):
    """As in torch where a connection exists, and nowhere else.

    A bad number times zero is the one freedom: the product may be skipped. The reference has the zeros of a dense
    weight as well.
    """
    p = Problem(Case(6, 9, (3, 3), (5, 4), block, padding=(1, 0), B=70, density=0.6), kind, "float32")
    place = {"x": (65, 2, 2, 1), "grad": (65, 4, 2, 1), "values": (3, 0, 0)}[where]
    expected = p.expected()
    may = touched(p, where, place, zeros=True, absent=backend == "reference")
    must = touched(p, where, place, zeros=False)
    getattr(p, where).data[place] = bad
    y = p.maps_result()
    results = (y, *torch.autograd.grad(y, p.leaves(), p.grad))
    for name, actual in zip(expected, results, strict=True):
        actual, (exact, bound) = actual.detach().double().numpy(), expected[name]
        good = ~may[name]
        assert (np.abs(actual - exact)[good] <= p.tolerance * bound[good]).all(), name
        assert not np.isfinite(actual[must[name]]).any(), name
    assert any(must[name].any() for name in must)


@pytest.mark.parametrize(
    "case", ["3x3-112-lanes", "3x3-136-lanes", "1x1-kernel-one-pixel", "groups", "many-tables"]
)
@pytest.mark.parametrize("kind", ["binary", "levels3"])
def test_statistics_of_a_large_mean(backend, case, kind):
    """As exact as float64 sums over the panel that is returned; sums of squares would cancel."""
    p = Problem(CASES[case]._replace(bias=True), kind, "float32")
    p.bias.data.fill_(1e4)
    p.values.data.mul_(0.01)
    y, stats = conv2d_panels(p.packed(), p.values, p.bias, p.topology, p.geometry, want_stats=True)
    y = p.from_panels(y).double().transpose(0, 1).flatten(1)
    torch.testing.assert_close(stats[0], y.mean(1), rtol=1e-9, atol=0)
    torch.testing.assert_close(stats[1], y.var(1, correction=0), rtol=1e-5, atol=1e-12)
    assert (stats[1] >= 0).all()


@pytest.mark.parametrize("case", ["3x3-80-lanes", "no-samples", "groups-overhang"])
def test_statistics_change_nothing_else(backend, case):
    p = Problem(CASES[case], "binary", "float32")
    operands = (p.packed(), p.values, p.bias, p.topology, p.geometry)
    (y, stats), (plain, none) = (conv2d_panels(*operands, want_stats=want) for want in (True, False))
    assert torch.equal(p.from_panels(y), p.from_panels(plain))
    assert stats.shape == (2, p.case.outputs) and none.shape == (0,)
    assert not stats.requires_grad


@pytest.mark.parametrize(
    "kind,form,block,groups",
    [
        ("binary", "panels", (4, 4), 1),
        ("binary", "panels", (1, 1), 6),
        ("levels3", "packed", (1, 1), 1),
        ("levels3", "packed", (8, 2), 2),
        ("float", "maps", (8, 2), 1),
        ("float", "maps", (4, 4), 6),
    ],
)
@pytest.mark.parametrize("backend", NATIVE, indirect=True)
def test_bits_do_not_depend_on_the_thread_count(backend, threads, kind, form, block, groups):
    case = Case(12, 24, (3, 3), (5, 9), block, padding=(1, 1), B=130, density=0.8, groups=groups)
    p = Problem(case, kind, "float32")
    spikes = p.packed() if p.planes else None

    def everything():
        operands = (spikes, p.values, p.bias, p.topology, p.geometry)
        if form == "panels":
            y, stats = conv2d_panels(*operands, want_stats=True)
            grads = torch.autograd.grad(y, (spikes.carrier, p.values, p.bias), p.panels(p.grad))
            return p.from_panels(y), *grads, stats
        if form == "packed":
            y = conv2d_packed(*operands)
            return y, *torch.autograd.grad(y, (spikes.carrier, p.values, p.bias), p.maps(p.grad))
        y = p.maps_result()
        return y, *torch.autograd.grad(y, p.leaves(), p.grad)

    one = everything()
    for count in (2, 3):
        threads(count)
        for a, b in zip(everything(), one, strict=True):
            assert torch.equal(a, b)


def test_gradcheck(threads):
    threads(1)
    case = Case(4, 6, (2, 3), (3, 4), (4, 2), stride=(2, 1), padding=(1, 1), groups=2, B=1)
    p = Problem(case, "float", "float64")
    p.values.data.masked_fill_(torch.from_numpy(p.overhang), 0.0)
    assert torch.autograd.gradcheck(
        lambda x, v, b: conv2d(x, v, b, p.topology, p.geometry), (p.x, p.values, p.bias)
    )


@pytest.mark.parametrize(
    "kind,form,case",
    [("binary", "panels", "3x3-80-lanes"), ("levels3", "packed", "depthwise"), ("float", "maps", "groups")],
)
@pytest.mark.parametrize("backend", sorted({BACKENDS[0], BACKENDS[-1]}), indirect=True)
def test_opcheck(backend, kind, form, case):
    p = Problem(CASES[case], kind, "float32")
    with torch.no_grad():  # opcheck compares clones, and NaN is not NaN
        p.values.masked_fill_(torch.from_numpy(p.overhang), 0.0)
    source = p.packed().words if p.planes else p.panels(p.x)
    values, bias, index = p.values.detach(), p.bias.detach(), list(p.topology.index_tensors())
    lay = p.topology.layout
    call = (list(p.geometry), lay.rows, lay.cols, p.case.T, p.case.B, p.planes, p.scale)
    checks = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")
    arguments = (source, values, bias, *index, *call, form == "panels")
    # Padding lanes of the result are undefined: two runs of opcheck would not agree on NaN.
    torch.library.opcheck(raw.conv2d.default, arguments, test_utils=checks[:3])
    for needs in (7, 2, 0):
        arguments = (p.panels(p.grad), source, values, *index, *call, needs)
        torch.library.opcheck(raw.conv2d_backward.default, arguments, test_utils=checks)


@pytest.mark.parametrize("form", ["maps", "packed", "panels"])
def test_double_backward_raises(backend, form):
    p = Problem(CASES["3x3"], "binary", "float32")
    spikes = p.packed()
    operands = (spikes, p.values, p.bias, p.topology, p.geometry)
    if form == "maps":
        y = p.maps_result()
    elif form == "packed":
        y = conv2d_packed(*operands)
    else:
        y, _ = conv2d_panels(*operands)
    grad = torch.zeros_like(y).requires_grad_()
    (penalised,) = torch.autograd.grad(y, p.values, grad, create_graph=True)
    with pytest.raises(RuntimeError, match="double backward is not supported"):
        penalised.pow(2).sum().backward()


def test_wrong_arguments():
    p = Problem(CASES["3x3"], "binary", "float32")
    x, values, bias, spikes, g = p.x.detach(), p.values.detach(), p.bias.detach(), p.packed(), p.geometry
    nnzb, topology = p.topology.nnzb, p.topology
    other = Problem(CASES["groups"], "binary", "float32").topology
    small = g._replace(H=4, Ho=4)
    five = dataclasses.replace(spikes, words=spikes.words.expand(5, -1, -1, -1, -1))
    more = dataclasses.replace(spikes, B=33)
    panels, grad, lanes = p.panels(x), p.panels(p.grad), spikes.lanes
    table = [
        (conv2d, (x.int(), values, bias, topology, g), TypeError, r"x: expected a floating-point.*int32"),
        (conv2d, (x.double(), values, bias, topology, g), TypeError, r"x: expected torch.float32.*float64"),
        (conv2d, (x[0], values, bias, topology, g), ValueError, r"x: expected shape \[N, C, 5, 7\]"),
        (conv2d, (x, values, bias, topology, small), ValueError, r"x: expected shape \[N, C, 4, 7\], got"),
        (conv2d, (x[:, 1:], values, bias, topology, g), ValueError, "x: expected 6 channels, got 5"),
        (conv2d, (x, values, bias, topology, g, 5), ValueError, "planes: expected 0 to 4, got 5"),
        (conv2d, (x + 0.5, values, bias, topology, g, 1), ValueError, "input: expected binary"),
        (conv2d, (x, values[1:], bias, topology, g), ValueError, rf"values: expected shape \({nnzb}, 4, 4\)"),
        (conv2d, (x, values.to("meta"), bias, topology, g), ValueError, "values: expected on .* got meta"),
        (
            conv2d,
            (x, values, bias[1:], topology, g),
            ValueError,
            r"bias: expected torch.float32 \[10\] on cpu",
        ),
        (
            conv2d,
            (x, values, bias.double(), topology, g),
            ValueError,
            r"bias: expected .*torch.float64 \[10\]",
        ),
        (conv2d, (x, values, bias, other, g), ValueError, "topology: expected 1 groups and 9 taps, got 2"),
        (conv2d_packed, (spikes, values[1:], bias, topology, g), ValueError, "values: expected shape"),
        (conv2d_packed, (spikes, values, bias, topology, small), ValueError, "PackedSpikes of 4 x 7 pixels"),
        (conv2d_panels, (spikes, values, bias, topology, small), ValueError, "PackedSpikes of 4 x 7 pixels"),
        (conv2d_panels, (five, values, bias, topology, g), ValueError, r"words of 1 to 4 planes.*got \(5, 1"),
        (conv2d_packed, (more, values, bias, topology, g), ValueError, r"and 2 groups of lanes, got \(1, 1"),
        (conv2d_grad_values, (panels, grad[:, 1:], topology, g, lanes), ValueError, "grad: expected panels"),
        (conv2d_grad_values, (panels[1:], grad, topology, g, lanes), ValueError, "x: expected panels"),
        (conv2d_grad_values, (panels, grad, other, g, lanes), ValueError, "topology: expected 1 groups"),
        (conv2d_grad_values, (spikes, grad, topology, small, lanes), ValueError, "PackedSpikes of 4 x 7"),
    ]
    for op, arguments, error, message in table:
        with pytest.raises(error, match=message):
            op(*arguments)


@pytest.mark.parametrize(
    "arguments,message",
    [
        (((4, 5), (5, 3)), r"x: expected a padded size of at least the kernel's 5, got 4"),
        (((4, 5), (3, 3), (1, 1), (0, 0), (1, 3)), r"at least the kernel's 7, got 5"),
        (((4, 5), (3, 3), (0, 1)), r"stride: expected at least 1, got \(0, 1\)"),
        (((4, 5), (3, 3), (1, 1), (0, 0), (1, 0)), r"dilation: expected at least 1, got \(1, 0\)"),
        (((4, 5), (3, 3), (1, 1), (1, -1)), r"padding: expected at least 0, got \(1, -1\)"),
    ],
)
def test_a_wrong_geometry(arguments, message):
    with pytest.raises(ValueError, match=message):
        Geometry.of(*arguments)


@pytest.mark.parametrize("kind", ["binary", "levels3", "float"])
@pytest.mark.parametrize("case", ["3x3-80-lanes", "groups-overhang", "many-tables-1x4", "no-samples"])
def test_gradients_at_other_blocks(backend, case, kind):
    """What rewiring asks: the gradient that weights would have at places where there are none."""
    p = Problem(CASES[case], kind, "float32")
    count = oracle.conv_block_count(p.case.weight_shape, p.case.groups, p.case.block)
    p.ids = np.setdiff1d(np.arange(count), p.ids)
    every = torch.from_numpy(p.ids)
    # Only the index by rows is asked for: candidates have no other.
    crow, col = index_from_block_ids(every, p.topology.layout)
    topology = BlockTopology(p.topology.layout, crow, col, *(col.new_empty(0) for _ in range(3)))
    x = p.packed() if p.planes else p.panels(p.x)
    actual = conv2d_grad_values(x, p.panels(p.grad), topology, p.geometry, Lanes(p.case.T, p.case.B))
    assert actual.dtype == torch.float32
    p.values = torch.zeros(len(p.ids), *p.case.block)
    assert_close("values.grad", actual, *p.expected()["values.grad"], p.tolerance)
