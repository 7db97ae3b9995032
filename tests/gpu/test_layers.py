"""Everything but linear's kernels: layouts, neurons and layers on the GPU."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from esl_sparse.functional import unpack
from esl_sparse.nn import SparseLinear
from esl_sparse.ops._library import raw
from esl_sparse.ops.pack import detect, pack_tensor

from .. import oracle
from ..nn.test_network import NETWORKS, data, results
from ..ops import test_lif, test_pack

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("planes,scale", [(1, 1.0), (3, 0.25)])
@pytest.mark.parametrize("shape", test_pack.SHAPES)
def test_words_and_back(shape, planes, scale):
    levels = test_pack.random_levels(shape, planes)
    x = test_pack.squeezed(torch.tensor(levels * scale, dtype=torch.bfloat16, device="cuda"), shape)
    spikes = pack_tensor(x, planes, scale)
    np.testing.assert_array_equal(spikes.words.cpu(), oracle.pack(levels, planes))
    assert torch.equal(unpack(spikes), x)
    np.testing.assert_array_equal(raw.to_panels(x).float().cpu(), oracle.to_panels(levels * scale))
    if levels.any():
        assert detect(x) is not None


@pytest.mark.parametrize("v_reset", test_lif.RESETS)
@pytest.mark.parametrize("surrogate", oracle.SURROGATES)
def test_neurons_agree_with_autograd_through_the_loop(surrogate, v_reset):
    options = {"v_threshold": 1.0, "v_reset": v_reset, "detach_reset": False}
    x, v = test_lif.dyadic(5, 3, 37).cuda(), test_lif.dyadic(3, 37, seed=1).cuda()
    test_lif.check(x, v, 0.5, options, surrogate, 1.0)


@pytest.mark.parametrize("dtype", [None, torch.bfloat16], ids=["float32", "autocast"])
@pytest.mark.parametrize("network", NETWORKS)
def test_networks_agree_with_the_cpu(untuned, network, dtype):
    net = NETWORKS[network]()
    x, g = data()
    on_gpu = copy.deepcopy(net).cuda()
    x_gpu = x.detach().cuda().requires_grad_()

    def run(net, device):
        with torch.autocast(device, torch.bfloat16, enabled=dtype is not None):
            return lambda x: net(x).float()

    expected = results(run(net, "cpu"), (net, x, g))
    actual = results(run(on_gpu, "cuda"), (on_gpu, x_gpu, g.cuda()))
    tolerance = 1e-4 if dtype is None else 3e-2
    for a, e in zip(actual, expected, strict=True):
        torch.testing.assert_close(a.cpu(), e, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("network", NETWORKS)
def test_compiles_as_one_graph(untuned, network):
    net = NETWORKS[network]().cuda()
    x, g = data()
    problem = net, x.detach().cuda().requires_grad_(), g.cuda()
    expected = results(net, problem)
    torch._dynamo.reset()
    for a, e in zip(results(torch.compile(net, fullgraph=True), problem), expected, strict=True):
        torch.testing.assert_close(a, e, rtol=1e-4, atol=1e-4)


def test_a_layer_made_on_the_gpu():
    cpu, gpu = (
        SparseLinear(
            100, 70, density=0.3, block_size=16, device=d, generator=torch.Generator().manual_seed(0)
        )
        for d in ("cpu", "cuda")
    )
    for a, b in zip(cpu.state_dict().values(), gpu.state_dict().values(), strict=True):
        assert b.is_cuda
        assert torch.equal(a, b.cpu())
    assert SparseLinear(100, 70, device="cuda").block_size == (16, 16)


def test_moving_between_devices():
    layer = SparseLinear(100, 70, density=0.3, block_size=16)
    x = (torch.rand(9, 100) < 0.3).float()
    expected = layer(x)
    layer.cuda()
    assert all(t.is_cuda for t in layer.topology.index_tensors())
    torch.testing.assert_close(layer(x.cuda()).cpu(), expected)
    other = SparseLinear(100, 70, density=0.1, block_size=16)
    other.load_state_dict(layer.state_dict())
    torch.testing.assert_close(other(x), expected)
    with pytest.raises(ValueError, match=r"cuda.*cpu|cpu.*cuda"):
        layer(x)


def test_conversions():
    dense = nn.Linear(100, 70, device="cuda")
    layer = SparseLinear.from_dense(dense, 1.0)
    assert layer.values.is_cuda
    assert torch.equal(layer.to_dense().weight, dense.weight)
    assert torch.equal(layer.to_torch_bsr().to_dense()[:70, :100], dense.weight)
