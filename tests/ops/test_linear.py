import itertools
import math

import numpy as np
import pytest
import torch

from esl_sparse.functional import linear, linear_packed
from esl_sparse.ops._library import raw
from esl_sparse.ops.linear import native

from ..conftest import available
from .linear_cases import CASES, OFFERED, Case, Problem, assert_close, check, topology_of

pytestmark = pytest.mark.usefixtures("poison")

NATIVE = [backend for backend in available() if backend.startswith("native")]
VARIANTS = [
    ("binary", "rows"),
    ("binary", "packed"),
    ("binary", "panels"),
    ("levels2", "panels"),
    ("levels3", "rows"),
    ("levels4", "packed"),
    ("float", "rows"),
]


def offered(backend, block):
    """Whether a backend takes blocks of this size: ``tl.dot`` wants 16 both ways."""
    return backend != "triton" or min(block) >= 16


@pytest.mark.parametrize(
    "backend,dtype,case",
    [
        (backend, dtype, case)
        for backend in available()
        for dtype in OFFERED[backend.partition("-")[0]]
        for case in CASES
        if offered(backend, CASES[case].block)
    ],
    indirect=["backend"],
)
@pytest.mark.parametrize("kind,form", VARIANTS)
def test_agrees_with_the_oracle(backend, case, kind, form, dtype):
    check(CASES[case], kind, form, dtype)


def strided(tensor, layout):
    """The same elements in another layout."""
    return {
        "transposed": lambda t: t.t().contiguous().t(),
        "sliced": lambda t: torch.cat([t, torch.full_like(t, torch.nan)], 1)[:, : t.shape[1]],
        "reversed twice": lambda t: t.flip(0).contiguous().flip(0),
        "unaligned": lambda t: torch.cat([t.new_zeros(1), t.flatten()])[1:].view(t.shape),
    }[layout](tensor)


@pytest.mark.parametrize("layout", ["transposed", "sliced", "reversed twice", "unaligned"])
@pytest.mark.parametrize("kind", ["binary", "float"])
def test_strides_do_not_matter(backend, kind, layout):
    p = Problem(CASES["16x16"], kind, "float32")
    results = []
    for x, grad in ((p.x, p.grad), (strided(p.x.detach(), layout).requires_grad_(), strided(p.grad, layout))):
        y = linear(x, p.values, p.bias, p.topology, p.planes, p.scale)
        results.append((y, *torch.autograd.grad(y, (x, p.values, p.bias), grad)))
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("kind", ["binary", "float"])
def test_an_expanded_gradient(backend, kind):
    """What ``y.sum().backward()`` sends: one element, strides of zero."""
    p = Problem(CASES["16x16"], kind, "float32")
    p.grad = torch.ones_like(p.grad)
    y = linear(p.x, p.values, p.bias, p.topology, p.planes, p.scale)
    results = torch.autograd.grad(y.sum(), (p.x, p.values, p.bias))
    for name, actual in zip(("x.grad", "values.grad", "bias.grad"), results, strict=True):
        assert_close(name, actual, *p.expected()[name], p.tolerance)


@pytest.mark.parametrize("wanted", list(itertools.product([False, True], repeat=3)))
@pytest.mark.parametrize("form", ["rows", "packed"])
def test_only_wanted_gradients(backend, form, wanted):
    p = Problem(CASES["16x16-two-steps"], "binary", "float32")
    tensors = [p.x, p.values, p.bias]
    spikes = p.packed()
    if form == "packed":
        tensors[0] = spikes.carrier
    for tensor, want in zip(tensors, wanted, strict=True):
        tensor.requires_grad_(want)
    if form == "rows":
        y = linear(p.x, p.values, p.bias, p.topology, 1)
    else:
        y = linear_packed(spikes, p.values, p.bias, p.topology).flatten(0, 1)
    assert y.requires_grad == any(wanted)
    if y.requires_grad:
        y.backward(p.grad)
    assert tuple(t.grad is not None for t in tensors) == wanted
    for name, tensor in (("values.grad", p.values), ("bias.grad", p.bias)):
        if tensor.grad is not None:
            assert_close(name, tensor.grad, *p.expected()[name], p.tolerance)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize(
    "kind,where",
    [("binary", "grad"), ("binary", "values"), ("float", "x"), ("float", "grad"), ("float", "values")],
)
@pytest.mark.parametrize(
    "backend,block",
    [(b, size) for b in available() for size in [(1, 1), (4, 4), (16, 16)] if offered(b, size)],
    indirect=["backend"],
)
def test_nan_and_infinity_propagate(backend, block, kind, where, bad):
    """Where the bad number meets no zero, the result is that of dense arithmetic; elsewhere nothing changes.

    A bad number times zero is the one freedom: an absent spike may skip the product.
    """
    p = Problem(Case(37, 41, block, B=70, density=1.0), kind, "float32")
    place = {"x": (5, 7), "grad": (5, 7), "values": (0, 0, 0)}[where]
    getattr(p, where).data[place] = bad
    y = linear(p.x, p.values, p.bias, p.topology, p.planes, p.scale)
    grads = torch.autograd.grad(y, (p.x, p.values, p.bias), p.grad)
    with np.errstate(invalid="ignore"):
        expected = p.expected()
        zeroed = p.expected(zero_times_anything_is_zero=True)
    for name, actual in zip(expected, (y, *grads), strict=True):
        actual = actual.detach().double().numpy()
        dense, skipping = expected[name][0], zeroed[name][0]
        fine, must = np.isfinite(dense), ~np.isfinite(skipping)
        np.testing.assert_allclose(actual[fine], dense[fine], rtol=1e-4, atol=1e-5, err_msg=name)
        np.testing.assert_array_equal(actual[must], skipping[must], err_msg=name)


@pytest.mark.parametrize("block", [(1, 1), (4, 4), (16, 8)])
@pytest.mark.parametrize("kind", ["binary", "levels3", "float"])
@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize("backend", NATIVE, indirect=True)
def test_bits_do_not_depend_on_the_thread_count(backend, threads, kind, block, count):
    p = Problem(Case(150, 170, block, B=700, rate=0.2), kind, "float32")

    def everything():
        y = linear(p.x, p.values, p.bias, p.topology, p.planes, p.scale)
        return y, *torch.autograd.grad(y, (p.x, p.values, p.bias), p.grad)

    expected = everything()
    threads(count)
    for (name, (exact, bound)), a, b in zip(p.expected().items(), everything(), expected, strict=True):
        assert torch.equal(a, b), name
        assert_close(name, a, exact, bound, p.tolerance)


def test_gradcheck():
    p = Problem(Case(7, 10, (4, 4), B=3), "float", "float64")
    p.values.data.masked_fill_(~p.topology.valid(), 0.0)
    assert torch.autograd.gradcheck(lambda x, v, b: linear(x, v, b, p.topology), (p.x, p.values, p.bias))


@pytest.mark.parametrize("kind,form", VARIANTS)
def test_opcheck(backend, kind, form):
    p = Problem(CASES["16x16-two-steps"], kind, "float32")
    with torch.no_grad():
        p.values.masked_fill_(~p.topology.valid(), 0.0)  # opcheck compares clones, and NaN is not NaN
    x = p.x.detach() if form == "rows" else p.packed().words
    values, bias, index = p.values.detach(), p.bias.detach(), list(p.topology.index_tensors())
    T, B = (1, len(p.x)) if form == "rows" else (p.case.T, p.case.B)
    call = (p.case.rows, p.case.cols, T, B, p.planes, p.scale, form == "panels")
    torch.library.opcheck(raw.linear.default, (x, values, bias, *index, *call))
    y, words = raw.linear(x, values, bias, *index, *call)
    saved = words if form == "rows" and p.planes else x
    for needs in (7, 2, 0):
        arguments = (torch.randn(y.shape), saved, values, *index, *call, form != "rows", needs)
        torch.library.opcheck(raw.linear_backward.default, arguments)


def test_double_backward_raises(backend):
    p = Problem(CASES["16x16"], "float", "float32")
    y = linear(p.x, p.values, p.bias, p.topology)
    (grad,) = torch.autograd.grad(y.sum(), p.x, create_graph=True)
    with pytest.raises(RuntimeError, match="double backward is not supported"):
        grad.pow(2).sum().backward()


def test_wrong_arguments():
    p = Problem(CASES["4x4-overhang"], "binary", "float32")
    x, values, bias, spikes = p.x.detach(), p.values.detach(), p.bias.detach(), p.packed()
    nnzb, T, B = p.topology.nnzb, spikes.T, spikes.B
    narrow = topology_of(p.case._replace(cols=17), p.ids)
    table = [
        (linear, (x.int(), values, bias), TypeError, r"x: expected a floating-point tensor.*int32"),
        (linear, (x.double(), values, bias), TypeError, r"x: expected torch.float32.*torch.float64"),
        (linear, (x[:, 1:], values, bias), ValueError, r"x: expected shape \[N, 18\], got \(63, 17\)"),
        (linear, (x[0], values, bias), ValueError, r"x: expected shape \[N, 18\], got \(18,\)"),
        (linear, (x, values[1:], bias), ValueError, rf"values: expected shape \({nnzb}, 4, 4\)"),
        (linear, (x, values.flatten(), bias), ValueError, rf"values: expected shape \({nnzb}, 4, 4\)"),
        (linear, (x, values.to("meta"), bias), ValueError, r"values: expected on .* cpu, got meta"),
        (linear, (x, values, bias[1:]), ValueError, r"bias: expected shape \(13,\), got \(12,\)"),
        (linear, (x, values, bias.double()), ValueError, r"bias: expected torch.float32.*torch.float64"),
        (linear, (x, values, bias.to("meta")), ValueError, r"bias: expected .* cpu, got .* meta"),
        (linear, (x + 0.5, values, bias), ValueError, r"input: expected binary"),
        (linear_packed, (spikes, values[1:], bias), ValueError, r"values: expected shape"),
        (
            lambda x, v, b, _: linear_packed(x, v, b, narrow),
            (spikes, values, bias),
            ValueError,
            rf"x: expected PackedSpikes of shape \(T, B, 17\), got \({T}, {B}, 18\)",
        ),
    ]
    for op, arguments, error, message in table:
        planes = (1,) if op is linear else ()
        with pytest.raises(error, match=message):
            op(*arguments, p.topology, *planes)


@pytest.mark.parametrize("kernel", native.KERNELS[1:])
@pytest.mark.parametrize("kind,form", [("binary", "rows"), ("binary", "panels"), ("levels3", "packed")])
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("backend", NATIVE, indirect=True)
def test_every_spike_kernel(backend, case, kind, form, kernel):
    """The automatic choice is by rate and block; each kernel is right wherever it can run at all."""
    native.set_spike_kernel(kernel)
    try:
        check(CASES[case], kind, form, "float32")
    finally:
        native.set_spike_kernel("automatic")
