from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from esl_sparse import PackedSpikes
from esl_sparse.functional import adaptive_avg_pool2d, avg_pool2d, max_pool2d, unpack
from esl_sparse.ops._library import raw
from esl_sparse.ops.pack import pack_tensor
from esl_sparse.packed import LANES

from .. import oracle
from ..conftest import available

pytestmark = pytest.mark.usefixtures("poison")

# T, B, C, H, W: batches off and on a multiple of 8, lanes off and on multiples of 16 and 64, channels in pieces
SHAPES = [
    (3, 5, 3, 7, 6),
    (1, 8, 17, 5, 5),
    (2, 33, 1, 6, 9),
    (4, 12, 70, 4, 5),
    (1, 0, 4, 5, 5),
]
# Triton's interpreter cuts bfloat16 off instead of rounding.
OTHER = {"reference": torch.float64, "triton": torch.float16}
DTYPES = [
    (backend, dtype)
    for backend in available()
    for dtype in (torch.float32, OTHER.get(backend, torch.bfloat16))
]
TOLERANCE = {
    torch.float64: {"rtol": 1e-12, "atol": 1e-12},
    torch.float32: {"rtol": 1e-6, "atol": 1e-6},
    torch.bfloat16: {"rtol": 2**-8, "atol": 1e-6},
    torch.float16: {"rtol": 2**-11, "atol": 1e-6},
}
by_dtype = pytest.mark.parametrize("backend,dtype", DTYPES, indirect=["backend"])


class Case(NamedTuple):
    """Arguments of torch's pooling, and planes of the input."""

    args: dict
    planes: int = 1


AVG = [
    Case({"kernel_size": 2}),
    Case({"kernel_size": 3, "stride": 2, "padding": 1}),
    Case({"kernel_size": (2, 3), "stride": (1, 2), "padding": (1, 0)}),
    Case({"kernel_size": (3, 4), "stride": 1, "padding": (0, 2)}),
    Case({"kernel_size": (1, 2), "stride": (3, 4)}),  # some pixels are in no window
    Case({"kernel_size": 2}, planes=2),
    Case({"kernel_size": (1, 2), "padding": (0, 1)}, planes=3),
    Case({"kernel_size": 1}, planes=4),
    Case({"kernel_size": 2, "divisor_override": 3}),
    Case({"kernel_size": 3, "padding": 1, "count_include_pad": False, "divisor_override": 2}),
    Case({"kernel_size": 3, "stride": 2, "ceil_mode": True, "divisor_override": 4}),
]
MAX = [
    Case({"kernel_size": 2}),
    Case({"kernel_size": 3, "stride": 2, "padding": 1}),
    Case({"kernel_size": 3, "stride": 1, "padding": 1}),
    Case({"kernel_size": (2, 4), "stride": (1, 3), "padding": (1, 2)}),
    Case({"kernel_size": 2, "stride": 3, "ceil_mode": True}),
    Case({"kernel_size": 3, "stride": 2, "padding": 1, "ceil_mode": True}),
    Case({"kernel_size": 2, "dilation": (3, 2), "padding": 1}),
    Case({"kernel_size": 3, "dilation": (1, 2), "stride": (2, 1), "ceil_mode": True}),
]


def spikes_of(levels, planes, scale, dtype=torch.float32, device="cpu"):
    """PackedSpikes with a leaf for a carrier, from the formats alone."""
    words = torch.from_numpy(oracle.pack(levels, planes)).to(device)
    carrier = torch.zeros(1, dtype=dtype, device=device).expand(*words.shape[1:], LANES).requires_grad_()
    return PackedSpikes(carrier, words, *levels.shape[:2], scale)


def random_levels(shape, planes, rate=0.6, seed=0):
    rng = np.random.default_rng(seed)
    return rng.integers(0, 2**planes, shape) * (rng.random(shape) < rate)


def on_images(pool, x, **args):
    """A torch pooling of ``[T, B, C, H, W]``."""
    return pool(x.flatten(0, 1), **args).unflatten(0, x.shape[:2])


def check_pooling(pool, torch_pool, case, shape, dtype, rate=0.6, device="cpu"):
    """Values, planes and gradients against torch in float64."""
    scale = 0.5
    levels = random_levels(shape, case.planes, rate)
    x = torch.tensor(levels * scale, dtype=torch.float64, requires_grad=True)
    expected = on_images(torch_pool, x, **case.args)
    spikes = spikes_of(levels, case.planes, scale, dtype, device)
    y = pool(spikes, **case.args)
    assert y.dtype == dtype
    assert y.shape == expected.shape
    np.testing.assert_array_equal(
        y.words.cpu(), oracle.pack(np.rint(expected.detach().numpy() / y.scale).astype(np.int64), y.planes)
    )
    torch.testing.assert_close(unpack(y).double().cpu(), expected, **TOLERANCE[dtype])

    cotangent = torch.randn(expected.shape).to(dtype)
    (expected_grad,) = torch.autograd.grad(expected, x, cotangent.double())
    panels = torch.from_numpy(oracle.to_panels(cotangent.double().numpy())).to(device, dtype)
    (grad,) = torch.autograd.grad(y.carrier, spikes.carrier, panels)
    assert grad.dtype == dtype and grad.is_contiguous()
    expected_panels = torch.from_numpy(oracle.to_panels(expected_grad.numpy()))  # zeros in padding lanes
    torch.testing.assert_close(grad.double().cpu(), expected_panels, **TOLERANCE[dtype])


@by_dtype
@pytest.mark.parametrize("case", AVG, ids=str)
@pytest.mark.parametrize("shape", SHAPES)
def test_avg_pool(backend, dtype, case, shape):
    check_pooling(avg_pool2d, F.avg_pool2d, case, shape, dtype)


@by_dtype
@pytest.mark.parametrize("case", MAX, ids=str)
@pytest.mark.parametrize("shape", SHAPES)
def test_max_pool(backend, dtype, case, shape):
    check_pooling(max_pool2d, F.max_pool2d, case, shape, dtype)


@pytest.mark.parametrize("rate", [0.0, 0.2, 1.0])
@pytest.mark.parametrize(
    "pool,torch_pool,case", [(avg_pool2d, F.avg_pool2d, AVG[1]), (max_pool2d, F.max_pool2d, MAX[1])]
)
def test_firing_rates(backend, pool, torch_pool, case, rate):
    check_pooling(pool, torch_pool, case, (3, 11, 5, 6, 7), torch.float32, rate)


@pytest.mark.parametrize("kernel,planes,sum_planes", [(1, 1, 1), (2, 1, 3), ((1, 3), 1, 2), ((3, 5), 1, 4)])
def test_planes_hold_the_largest_sum(backend, kernel, planes, sum_planes):
    spikes = spikes_of(np.ones((1, 2, 3, 6, 5), np.int64), planes, 1.0)
    y = avg_pool2d(spikes, kernel)
    assert y.planes == sum_planes
    assert torch.equal(unpack(y), torch.ones(y.shape))


@by_dtype
@pytest.mark.parametrize("planes", [1, 3])
@pytest.mark.parametrize("shape", SHAPES)
def test_global_average(backend, dtype, planes, shape):
    levels = random_levels(shape, planes)
    spikes = spikes_of(levels, planes, 0.25, dtype)
    y = adaptive_avg_pool2d(spikes, 1)
    x = torch.tensor(levels * 0.25)
    assert y.dtype == dtype
    torch.testing.assert_close(y.double(), x.mean((3, 4), keepdim=True), **TOLERANCE[dtype])
    cotangent = torch.randn(y.shape, dtype=dtype)
    (grad,) = torch.autograd.grad(y, spikes.carrier, cotangent)
    expected = (cotangent.double() / (shape[3] * shape[4])).expand(shape)
    assert grad.dtype == dtype and grad.is_contiguous()
    torch.testing.assert_close(
        grad.double(), torch.from_numpy(oracle.to_panels(expected.numpy())), **TOLERANCE[dtype]
    )


@pytest.mark.parametrize("size", [(3, 2), (6, 4), (None, 2), 2, (3, None)])
def test_adaptive_average(backend, size):
    shape = (2, 3, 4, 6, 4)
    check_pooling(
        adaptive_avg_pool2d, F.adaptive_avg_pool2d, Case({"output_size": size}), shape, torch.float32
    )


def test_consumers_add_their_gradients(backend):
    shape = (2, 5, 3, 4, 6)
    x = torch.tensor(random_levels(shape, 1), dtype=torch.float32, requires_grad=True)
    spikes = pack_tensor(x, 1, 1.0)
    chain = max_pool2d(avg_pool2d(spikes, 1), 3, 1, 1)
    outputs = [
        unpack(avg_pool2d(spikes, 2)),
        unpack(max_pool2d(spikes, 3, 2, 1)),
        adaptive_avg_pool2d(chain, 1),
        unpack(spikes),
    ]
    reference = [
        on_images(F.avg_pool2d, x, kernel_size=2),
        on_images(F.max_pool2d, x, kernel_size=3, stride=2, padding=1),
        on_images(F.max_pool2d, x, kernel_size=3, stride=1, padding=1).mean((3, 4), keepdim=True),
        x,
    ]
    cotangents = [torch.randn(y.shape) for y in outputs]
    (grad,) = torch.autograd.grad(outputs, x, cotangents)
    (expected,) = torch.autograd.grad(reference, x, cotangents)
    torch.testing.assert_close(grad, expected)


def test_strided_gradients(backend):
    spikes = spikes_of(random_levels((2, 9, 5, 4, 6), 1), 1, 1.0)
    for y in (avg_pool2d(spikes, 2), max_pool2d(spikes, 2)):
        panels = torch.randn(y.carrier.shape)
        strided = panels.transpose(3, 4).contiguous().transpose(3, 4)
        grads = [
            torch.autograd.grad(y.carrier, spikes.carrier, g, retain_graph=True)[0] for g in (panels, strided)
        ]
        assert torch.equal(*grads)


def test_threads_change_nothing(threads):
    levels = random_levels((2, 40, 20, 6, 6), 1)
    results = []
    for n in (1, 2, 5):
        threads(n)
        spikes = spikes_of(levels, 1, 1.0)
        torch.manual_seed(0)
        found = [adaptive_avg_pool2d(spikes, 1)]
        for y in (avg_pool2d(spikes, 3, 2, 1), max_pool2d(spikes, 3, 2, 1)):
            found += [y.words, *torch.autograd.grad(y.carrier, spikes.carrier, torch.randn(y.carrier.shape))]
        results.append(found)
    for found in results[1:]:
        assert all(map(torch.equal, found, results[0]))


def test_double_backward_raises(backend):
    spikes = spikes_of(random_levels((1, 2, 3, 4, 4), 1), 1, 1.0)
    for y in (avg_pool2d(spikes, 2).carrier, max_pool2d(spikes, 2).carrier, adaptive_avg_pool2d(spikes, 1)):
        cotangent = torch.ones_like(y).requires_grad_()
        (grad,) = torch.autograd.grad(y, spikes.carrier, cotangent, create_graph=True)
        with pytest.raises(RuntimeError, match="double backward is not supported"):
            grad.sum().backward()


def test_compiles_whole(backend):
    def network(x):
        spikes = pack_tensor(x, 1, 1.0)
        return adaptive_avg_pool2d(avg_pool2d(max_pool2d(spikes, 3, 2, 1), 2, ceil_mode=True), 1).squeeze()

    x = torch.tensor(random_levels((2, 5, 3, 8, 7), 1), dtype=torch.float32, requires_grad=True)
    expected = network(x)
    torch._dynamo.reset()
    y = torch.compile(network, fullgraph=True, backend="aot_eager")(x)
    assert torch.equal(y, expected)
    cotangent = torch.randn(y.shape)
    (grad,) = torch.autograd.grad(y, x, cotangent)
    (expected_grad,) = torch.autograd.grad(expected, x, cotangent)
    assert torch.equal(grad, expected_grad)


WINDOW = ([3, 3], [2, 2], [1, 1], [1, 1], False)


@pytest.mark.parametrize(
    "op",
    [
        "avg_pool",
        "avg_pool_backward",
        "max_pool",
        "max_pool_backward",
        "global_avg_pool",
        "global_avg_pool_backward",
    ],
)
def test_opcheck(backend, op):
    T, B, C, H, W = 2, 9, 3, 4, 6
    words = torch.from_numpy(oracle.pack(random_levels((T, B, C, H, W), 1), 1))
    grad = torch.randn(words.shape[1], 2, 3, C, LANES)
    arguments = {
        "avg_pool": (words, 4, *WINDOW),
        "avg_pool_backward": (grad, [H, W], 9, *WINDOW),
        "max_pool": (words, *WINDOW),
        "max_pool_backward": (grad, words, *WINDOW),
        "global_avg_pool": (words, T, B, 1.0, torch.float32),
        "global_avg_pool_backward": (torch.randn(T, B, C), [H, W]),
    }[op]
    torch.library.opcheck(getattr(raw, op).default, arguments)


SPIKES = spikes_of(np.ones((1, 2, 3, 5, 5), np.int64), 1, 1.0)
LEVELS = spikes_of(np.ones((1, 2, 3, 5, 5), np.int64), 2, 1.0)


@pytest.mark.parametrize(
    "call,error,message",
    [
        (lambda: avg_pool2d(torch.zeros(1), 2), TypeError, r"x: expected PackedSpikes .*got Tensor"),
        (lambda: max_pool2d(torch.zeros(1), 2), TypeError, r"x: expected PackedSpikes"),
        (lambda: adaptive_avg_pool2d(torch.zeros(1), 2), TypeError, r"x: expected PackedSpikes"),
        (lambda: avg_pool2d(SPIKES, 4), ValueError, r"x: expected sums of at most 15.*got up to 16.*unpack"),
        (lambda: avg_pool2d(LEVELS, 3), ValueError, r"levels 0..3, windows of 9\); pool x.unpack\(\)"),
        (lambda: avg_pool2d(SPIKES, 2, ceil_mode=True), ValueError, r"ceil_mode=True.*unpack"),
        (
            lambda: avg_pool2d(SPIKES, 3, 1, 1, count_include_pad=False),
            ValueError,
            r"count_include_pad=False.*divisor_override.*unpack",
        ),
        (lambda: avg_pool2d(SPIKES, 2, divisor_override=0), ValueError, r"divisor_override: .*got 0"),
        (lambda: avg_pool2d(SPIKES, 0), ValueError, r"kernel_size: expected an integer >= 1, or two, got 0"),
        (lambda: avg_pool2d(SPIKES, (2, 2, 2)), ValueError, r"kernel_size: .*\(2, 2, 2\)"),
        (lambda: avg_pool2d(SPIKES, 2, 0), ValueError, r"stride: .*got 0"),
        (lambda: avg_pool2d(SPIKES, 2, 2, 2), ValueError, r"padding: expected at most half.*got 2"),
        (lambda: avg_pool2d(SPIKES, 2, 2, -1), ValueError, r"padding: .*got -1"),
        (lambda: max_pool2d(SPIKES, 6), ValueError, r"x: expected a map of at least one window.*got 5 x 5"),
        (lambda: max_pool2d(SPIKES, 2, dilation=0), ValueError, r"dilation: .*got 0"),
        (
            lambda: max_pool2d(spikes_of(np.ones((1, 1, 1, 5, 2), np.int64), 1, 1.0), 2, 1, 2, 4),
            ValueError,
            r"padding: window 0 of dimension -1 holds no pixel",
        ),
        (lambda: max_pool2d(LEVELS, 2), ValueError, r"x: expected spikes \(1 plane\), got 2.*unpack"),
        (lambda: adaptive_avg_pool2d(SPIKES, 2), ValueError, r"output_size: .*5 x 5, got 2 x 2.*unpack"),
        (lambda: adaptive_avg_pool2d(SPIKES, 0), ValueError, r"output_size: .*got 0"),
    ],
)
def test_wrong_arguments(call, error, message):
    with pytest.raises(error, match=message):
        call()
