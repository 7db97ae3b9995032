import math

import numpy as np
import pytest
import torch

from esl_sparse import PackedSpikes
from esl_sparse.functional import pack, unpack
from esl_sparse.ops._library import raw
from esl_sparse.ops.pack import detect, pack_tensor

from .. import oracle
from ..conftest import available

pytestmark = pytest.mark.usefixtures("poison")

# T, B, C, H, W: batches off and on a multiple of 8, lanes off and on multiples of 16 and 64, nothing at all
SHAPES = [
    (1, 1, 1, 1, 1),
    (1, 8, 5, 1, 1),
    (3, 5, 7, 1, 1),
    (2, 32, 16, 1, 1),
    (1, 64, 33, 1, 1),
    (4, 33, 20, 1, 1),
    (1, 200, 3, 1, 1),
    (7, 9, 65, 1, 1),
    (2, 0, 4, 1, 1),
    (0, 3, 4, 1, 1),
    (2, 3, 0, 1, 1),
    (2, 3, 4, 5, 2),
    (4, 9, 3, 1, 6),
    (1, 1, 1, 3, 5),
    (3, 5, 3, 4, 7),
    (1, 8, 17, 5, 5),
    (3, 12, 64, 2, 9),
    (1, 40, 17, 7, 3),
    (3, 40, 3, 1, 33),
]
NARROW = [torch.float32, torch.bfloat16]  # the native kernels offer no more


def random_levels(shape, planes, seed=0):
    rng = np.random.default_rng(seed)
    return rng.integers(0, 2**planes, shape) * (rng.random(shape) < 0.6)


def squeezed(x, shape):
    """Drop H and W of a linear activation, as the op's rows do."""
    return x.reshape(shape[:3]) if shape[3:] == (1, 1) else x


@pytest.mark.parametrize(
    "backend,dtype",
    [(b, d) for b in available() for d in (*NARROW, torch.float64) if b == "reference" or d in NARROW],
    indirect=["backend"],
)
@pytest.mark.parametrize("planes,scale", [(1, 1.0), (1, 0.5), (2, 1.0), (3, 0.25), (4, 2.0)])
@pytest.mark.parametrize("shape", SHAPES)
def test_words_and_back(backend, shape, planes, scale, dtype):
    levels = random_levels(shape, planes)
    x = squeezed(torch.tensor(levels * scale, dtype=dtype), shape)
    spikes = pack_tensor(x, planes, scale)
    np.testing.assert_array_equal(spikes.words, oracle.pack(levels, planes))
    assert (spikes.T, spikes.B, spikes.planes, spikes.scale) == (*shape[:2], planes, scale)
    assert spikes.shape == tuple(x.shape)
    assert spikes.carrier.untyped_storage().nbytes() == dtype.itemsize
    back = unpack(spikes)
    assert back.dtype == dtype
    assert torch.equal(back, x)


@pytest.mark.parametrize("shape", SHAPES)
def test_gradients_are_changes_of_layout(backend, shape):
    rng = np.random.default_rng(0)
    x = squeezed(torch.tensor(random_levels(shape, 1), dtype=torch.float32), shape).requires_grad_()
    spikes = pack_tensor(x, 1, 1.0)
    panels = rng.standard_normal(spikes.carrier.shape).astype(np.float32)  # padding lanes are dropped
    (grad_x,) = torch.autograd.grad(spikes.carrier, x, torch.from_numpy(panels))
    np.testing.assert_array_equal(grad_x, squeezed(oracle.from_panels(panels, *shape[:2]), shape))

    rows = rng.standard_normal(shape).astype(np.float32)
    leaf = PackedSpikes(spikes.carrier.detach().requires_grad_(), spikes.words, *shape[:2])
    (grad_carrier,) = torch.autograd.grad(unpack(leaf), leaf.carrier, squeezed(torch.from_numpy(rows), shape))
    np.testing.assert_array_equal(grad_carrier, oracle.to_panels(rows))


def test_a_map_of_one_pixel_keeps_its_dimensions_in_the_gradient(backend):
    x = torch.ones(2, 3, 4, 1, 1, requires_grad=True)
    cotangent = torch.randn(2, 3, 4)
    pack(x).unpack().backward(cotangent)
    assert torch.equal(x.grad, cotangent[..., None, None])


@pytest.mark.parametrize("shape", [(2, 40, 70), (2, 40, 17, 3, 5)])
def test_bfloat16_panels(backend, shape):
    rows = torch.randn(shape).bfloat16()
    panels = raw.to_panels(rows)
    assert panels.dtype == torch.bfloat16
    five = (*shape, 1, 1)[:5]
    np.testing.assert_array_equal(panels.float(), oracle.to_panels(rows.float().view(five).numpy()))
    assert torch.equal(raw.from_panels(panels, *shape[:2]), rows)


@pytest.mark.parametrize("layout", ["transposed", "sliced", "expanded"])
def test_strides_do_not_matter(backend, layout):
    x = torch.tensor(random_levels((3, 9, 12), 2), dtype=torch.float32)
    strided = {
        "transposed": x.transpose(0, 2).contiguous().transpose(0, 2),
        "sliced": x.repeat(1, 1, 2)[..., :12],
        "expanded": x[:1].expand(3, 9, 12),
    }[layout]
    words = pack_tensor(strided, 2, 1.0).words
    assert torch.equal(words, pack_tensor(strided.contiguous(), 2, 1.0).words)
    assert torch.equal(raw.to_panels(strided), raw.to_panels(strided.contiguous()))
    panels = raw.to_panels(x)
    swapped = panels.transpose(3, 4).contiguous().transpose(3, 4)
    assert torch.equal(raw.from_panels(swapped, 3, 9), x)


@pytest.mark.parametrize(
    "layout", ["channels last", "channels last, transposed", "transposed", "sliced", "expanded"]
)
@pytest.mark.parametrize("shape", [(3, 12, 17, 3, 7), (1, 5, 64, 6, 3), (2, 9, 1, 4, 5), (1, 8, 5, 1, 1)])
def test_strides_of_feature_maps_do_not_matter(backend, shape, layout):
    T, B = shape[:2]
    levels = random_levels(shape, 2)
    rows = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    if layout == "expanded":
        levels, rows = (np.broadcast_to(x[:, :1], shape) for x in (levels, rows))

    def strided(array):
        x = torch.tensor(np.ascontiguousarray(array), dtype=torch.float32)
        if layout == "channels last":
            return x.permute(0, 1, 3, 4, 2).contiguous().permute(0, 1, 4, 2, 3)
        if layout == "channels last, transposed":
            return x.permute(0, 1, 4, 3, 2).contiguous().permute(0, 1, 4, 3, 2)
        if layout == "transposed":
            return x.transpose(0, 1).contiguous().transpose(0, 1)
        if layout == "sliced":
            return x.repeat(1, 1, 1, 1, 2)[..., : shape[4]]
        return x[:, :1].expand(shape)

    np.testing.assert_array_equal(pack_tensor(strided(levels), 2, 1.0).words, oracle.pack(levels, 2))
    panels = raw.to_panels(strided(rows))
    np.testing.assert_array_equal(panels, oracle.to_panels(rows))
    swapped = panels.transpose(1, 4).contiguous().transpose(1, 4)
    back = raw.from_panels(swapped, T, B)
    np.testing.assert_array_equal(back, squeezed(torch.tensor(rows), shape))
    assert back.is_contiguous()


@pytest.mark.parametrize("planes,scale", [(1, 1.0), (2, 0.5)])
@pytest.mark.parametrize("bad", [0.25, 2.0, -1.0, 4.0, math.nan, math.inf, -math.inf, 1e-30, 1 + 2**-7])
@pytest.mark.parametrize("place", [0, 100, 3 * 9 * 12 - 1])
def test_a_broken_promise_raises(backend, planes, scale, bad, place):
    x = torch.zeros(3, 9, 12)
    x.view(-1)[place] = bad
    for rows in (x, x.view(3, 9, 3, 2, 2)):
        with pytest.raises(ValueError, match="input: expected"):
            pack_tensor(rows, planes, scale)


@pytest.mark.parametrize("shape", [(2, 40, 70), (2, 40, 70, 5, 9)])
def test_threads_change_nothing(threads, shape):
    x = torch.tensor(random_levels(shape, 3), dtype=torch.float32)
    results = []
    for n in (1, 2, 5):
        threads(n)
        words, panels = pack_tensor(x, 3, 1.0).words, raw.to_panels(x)
        assert torch.equal(raw.unpack(words, 2, 40, 1.0, torch.float32), x)
        assert torch.equal(raw.from_panels(panels, 2, 40), x)
        results.append((words, panels))
    for words, panels in results[1:]:
        assert torch.equal(words, results[0][0]) and torch.equal(panels, results[0][1])


@pytest.mark.parametrize(
    "values,found",
    [
        ([0, 1], (1, 1.0)),
        ([0, 0], (1, 1.0)),
        ([], (1, 1.0)),
        ([-0.0, 1], (1, 1.0)),
        ([0, 0.5], (1, 0.5)),
        ([0, 4], (1, 4.0)),
        ([0, 1, 2], (2, 1.0)),
        ([0, 0.25, 0.5, 0.75, 1], (3, 0.25)),
        ([0.25, 1.5], (3, 0.25)),
        ([1, 15], (4, 1.0)),
        ([1, 16], None),
        ([0.0625, 1], None),
        ([0, -1], None),
        ([0, 0.1, 1], None),
        ([math.nan, 1], None),
        ([1, math.nan], None),
        ([math.inf, 1], None),
        ([-math.inf, 1], None),
        ([1e-40, 1e-40], None),
    ],
)
@pytest.mark.parametrize("length", [8, 10_000])
def test_detect(values, found, length):
    """The smallest description of what x holds; a long input shows its odd element at the end only."""
    x = torch.zeros(length if values else 0)
    if values:
        x[-len(values) :] = torch.tensor(values)
    assert detect(x) == found


@pytest.mark.parametrize("input", ["auto", "levels"])
def test_pack_detects(backend, input):
    x = torch.tensor([[[0.0, 0.25, 1.0]]])
    spikes = pack(x, input)
    assert (spikes.planes, spikes.scale) == (3, 0.25)
    assert torch.equal(spikes.unpack(), x)


@pytest.mark.parametrize(
    "x,input,error,message",
    [
        (torch.zeros(1, 2, 3, dtype=torch.int64), "auto", TypeError, r"x: expected a floating-point.*int64"),
        ([0.0], "auto", TypeError, r"x: expected a floating-point tensor, got list"),
        (torch.zeros(2, 3), "auto", ValueError, r"x: expected \[T, B, C\].*\(2, 3\)"),
        (torch.zeros(1, 2, 3), "bits", ValueError, r"input: expected .*'bits'"),
        (torch.full((1, 2, 3), 0.1), "auto", ValueError, r"x: expected spikes or"),
        (torch.full((1, 2, 3), 0.5), "binary", ValueError, r"input: expected binary"),
    ],
)
def test_wrong_arguments(backend, x, input, error, message):
    with pytest.raises(error, match=message):
        pack(x, input)


def test_double_backward_raises(backend):
    x = torch.ones(1, 2, 3, requires_grad=True)
    spikes = pack(x)
    leaf = PackedSpikes(spikes.carrier.detach().requires_grad_(), spikes.words, 1, 2)
    for y, source in ((spikes.carrier, x), (unpack(leaf), leaf.carrier)):
        cotangent = torch.ones_like(y).requires_grad_()
        (grad,) = torch.autograd.grad(y, source, cotangent, create_graph=True)
        with pytest.raises(RuntimeError, match="double backward is not supported"):
            grad.sum().backward()


@pytest.mark.parametrize("shape", [(2, 9, 5), (2, 3, 4, 5, 2)])
@pytest.mark.parametrize("op", ["pack", "unpack", "to_panels", "from_panels"])
def test_opcheck(backend, op, shape):
    x = torch.tensor(random_levels(shape, 2), dtype=torch.float32)
    T, B = shape[:2]
    arguments = {
        "pack": (x, 2, 1.0),
        "unpack": (pack_tensor(x, 2, 1.0).words, T, B, 1.0, torch.float32),
        "to_panels": (x,),
        "from_panels": (raw.to_panels(x), T, B),
    }[op]
    torch.library.opcheck(getattr(raw, op).default, arguments)


@pytest.mark.parametrize("planes", [0, 5])
@pytest.mark.parametrize("backend", [b for b in available() if b.startswith("native")], indirect=True)
def test_the_kernels_refuse_more_planes_than_they_hold(backend, planes):
    with pytest.raises(ValueError, match=f"planes: expected 1 to 4, got {planes}"):
        pack_tensor(torch.zeros(1, 2, 3), planes, 1.0)
    with pytest.raises(ValueError, match=f"planes: expected 1 to 4, got {planes}"):
        raw.unpack(torch.zeros(planes, 1, 1, 1, 3, dtype=torch.int64), 1, 2, 1.0, torch.float32)
