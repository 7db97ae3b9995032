"""How CUDA kernels are launched, and what captured graphs do with what nothing can wait for. Needs no GPU."""

from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import esl_sparse as esl
from esl_sparse import BlockLayout, BlockTopology, _cuda
from esl_sparse.functional import temporal
from esl_sparse.nn import LIF, AvgPool2d, SparseConv2d, SparseLinear, SpikingBlock
from esl_sparse.ops import select
from esl_sparse.ops._library import raw

from . import emulation


def test_launches_on_the_tensors_device_and_torchs_stream(monkeypatch):
    device, log = torch.device("cuda", 3), []

    @contextmanager
    def guard(which):
        log.append(("enter", which))
        yield
        log.append(("exit", which))

    def run(*args):
        log.append(args)
        return 7

    monkeypatch.setattr(torch.cuda, "device", guard)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda which: SimpleNamespace(cuda_stream=(which, 42)))
    monkeypatch.setattr(_cuda, "kernels", lambda: SimpleNamespace(cuda_op=run))
    assert _cuda.launch("op", device, 1, 2) == 7
    assert log == [("enter", device), (1, 2, (device, 42)), ("exit", device)]


@pytest.mark.parametrize("offset,layout", [(0, "contiguous"), (1, "contiguous"), (0, "strided")])
def test_aligned_copies_only_what_must_be_copied(offset, layout):
    x = torch.arange(65.0)[offset : 64 + offset].view(8, 8)
    x = x.t() if layout == "strided" else x
    y = _cuda.aligned(x)
    assert torch.equal(x, y) and y.is_contiguous() and y.data_ptr() % 16 == 0
    assert (y is x) == (offset == 0 and layout == "contiguous")


@pytest.fixture
def capture(monkeypatch):
    """Emulated kernels in a graph that is being captured: nothing may be read back."""

    def refuse(*_):
        raise AssertionError("waits for the GPU")

    with emulation.emulated():
        for module in ("ops.pack.cuda", "ops.select.cuda", "ops.temporal.op", "nn.silence"):
            monkeypatch.setattr(f"esl_sparse.{module}.capturing", lambda device: True)
        for name in ("item", "tolist", "numpy", "nonzero", "__int__", "__bool__", "__float__", "__index__"):
            monkeypatch.setattr(torch.Tensor, name, refuse)
        yield


def test_a_broken_promise_in_a_captured_graph(capture):
    good, bad = torch.eye(3)[None], torch.eye(3)[None] / 2
    assert raw.pack(good, 1, 1.0).shape == (1, 1, 1, 1, 3)
    with pytest.raises(RuntimeError, match="other values than it was promised"):
        raw.pack(bad, 1, 1.0)


def test_nan_in_a_captured_graph(capture):
    score, ids = torch.randn(100), torch.arange(100)
    assert select.largest(score, ids, 10, 0).shape == (10,)
    score[3] = torch.nan
    with pytest.raises(RuntimeError, match="a score is NaN"):
        select.largest(score, ids, 10, 0)


@pytest.fixture
def two_inputs():
    return BlockTopology.from_block_ids(torch.arange(2), BlockLayout(1, 2, 1, 1))


def test_what_is_no_time_in_a_captured_graph(two_inputs, capture):
    z, values = torch.tensor([[1.0, 2.0]], requires_grad=True), torch.ones(2, 1, 1, requires_grad=True)
    z_out, _ = temporal(z, values, two_inputs)
    z_out.sum().backward()
    assert torch.equal(z_out, torch.tensor([[3.0]])) and torch.equal(z.grad, torch.ones(1, 2))
    with pytest.raises(RuntimeError, match="z: expected exp"):
        temporal(torch.tensor([[1.0, -2.0]]), values, two_inputs)


@pytest.fixture(params=["linear", "block", "lif"])
def net(request):
    """A layer and the shape of what it takes, made before anything is captured."""
    if request.param == "linear":
        return SparseLinear(40, 24, density=0.3, block_size=4, input="binary"), (9, 40)
    if request.param == "lif":
        return LIF(), (4, 30)
    conv = SparseConv2d(3, 8, 3, padding=1, density=0.5, block_size=4, input="binary")
    return SpikingBlock(conv, nn.BatchNorm2d(8), LIF(), pool=AvgPool2d(2)), (2, 9, 3, 6, 6)


def test_a_training_step_waits_for_nothing(net, capture):
    layer, shape = net
    x = (torch.rand(shape) < 0.3).float().requires_grad_()
    y = layer(x)
    (y.unpack() if isinstance(y, esl.PackedSpikes) else y).sum().backward()
    assert x.grad is not None


def test_tau_of_another_dtype():
    """Its address is what kernels take: it must be that of a float32."""
    x, v, grad = torch.randn(4, 30), torch.zeros(30), torch.randn(4, 30)
    panel, tau = torch.randn(1, 2, 3, 5, 64), torch.tensor(0.625)
    expected: tuple[torch.Tensor, ...] = ()
    with emulation.emulated():
        for narrow in (tau, tau.bfloat16(), tau.double()):
            spikes, _ = raw.lif(x, v, narrow, 1.0, 0.0, False)
            options = ("triangle", 1.0, False, False, True)
            grads = raw.lif_backward(grad, None, x, v, narrow, 1.0, 0.0, *options)
            words = raw.norm_lif(panel, narrow, 2, 20, 0.5, None, *(None,) * 6, 1.0)
            found = (spikes, grads[0], words)
            expected = expected or found
            assert all(map(torch.equal, found, expected))
            assert grads[2].dtype == narrow.dtype
