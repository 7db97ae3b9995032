"""Small networks under the machinery that users put around them."""

from functools import partial

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from esl_sparse import PackedSpikes
from esl_sparse.functional import pack
from esl_sparse.nn import LIF, MergeTime, SparseLinear

from .. import oracle

SparseLinear = partial(SparseLinear, density=0.5, generator=torch.Generator().manual_seed(0))


class Block(nn.Module):
    """Packed spikes in and out."""

    def __init__(self, inputs, outputs, **options):
        super().__init__()
        self.linear = SparseLinear(inputs, outputs)
        self.lif = LIF(0.5, **options)

    def forward(self, x: PackedSpikes) -> PackedSpikes:
        return pack(self.lif(3 * self.linear(x)), "binary")


class Chain(nn.Module):
    """Two blocks and a readout that sees both: a carrier is used twice."""

    def __init__(self):
        super().__init__()
        self.a = Block(20, 30, learn_tau=True)
        self.b = Block(30, 30, surrogate="atan", v_reset=None)
        self.readout = SparseLinear(30, 10)

    def forward(self, x, run=lambda block, *args: block(*args)):
        a = run(self.a, pack(x, "binary"))
        b = run(self.b, a)
        return run(self.readout, b) + run(self.readout, a)


def rows(inputs=20, hidden=30, outputs=10):
    """The usual network: float rows between the layers, which pack for themselves."""
    return nn.Sequential(
        SparseLinear(inputs, hidden, bias=False, input="binary"),  # BatchNorm takes any bias away again
        MergeTime(nn.BatchNorm1d(hidden)),
        LIF(0.5),
        SparseLinear(hidden, outputs, input="binary"),
    )


NETWORKS = {"rows": rows, "packed": Chain}


@pytest.fixture(params=NETWORKS)
def problem(request):
    net = NETWORKS[request.param]()
    return net, *data()


def data():
    return (torch.rand(4, 9, 20) < 0.4).float().requires_grad_(), torch.randn(4, 9, 10)


def results(f, problem):
    """Output and every gradient."""
    net, x, g = problem
    for parameter in (x, *net.parameters()):
        parameter.grad = None
    y = f(x)
    y.backward(g)
    return y.detach(), x.grad, *(p.grad for p in net.parameters())


def assert_same(actual, expected):
    for a, e in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, e)


def test_packed_chain_agrees_with_dense_autograd(backend):
    net = Chain()
    problem = net, *data()

    def dense(linear):
        """The layer as a function of its own parameters."""
        lay, index = linear.topology, torch.tensor(linear.topology.block_ids().tolist())
        grid = torch.zeros(lay.layout.blocks, lay.layout.bm, lay.layout.bn).index_put((index,), linear.values)
        grid = grid.view(lay.layout.row_blocks, lay.layout.col_blocks, lay.layout.bm, lay.layout.bn)
        weight = grid.transpose(1, 2).flatten(2).flatten(0, 1)[: linear.out_features, : linear.in_features]
        return lambda x: nn.functional.linear(x, weight, linear.bias)

    def loop(block, x):
        lif = block.lif
        derivative = partial(oracle.SURROGATES[lif.surrogate], w=lif.width)
        tau = torch.as_tensor(lif.tau)
        current = 3 * dense(block.linear)(x)
        return oracle.lif(current, 0.0 * current[0], tau, 1.0, lif.v_reset, derivative, False)[0]

    def expected(x):
        a = loop(net.a, x)
        return dense(net.readout)(loop(net.b, a)) + dense(net.readout)(a)

    actual, exact = results(net, problem), results(expected, problem)
    assert actual[0].abs().mean() > 0.05
    assert_same(actual, exact)


@pytest.mark.parametrize(
    "problem,options",
    [
        ("rows", {"backend": "aot_eager"}),
        ("packed", {"backend": "aot_eager", "dynamic": True}),
        pytest.param("rows", {"backend": "inductor"}, marks=pytest.mark.slow),
        pytest.param("packed", {"backend": "inductor"}, marks=pytest.mark.slow),
    ],
    ids=["rows-static", "packed-dynamic", "rows-inductor", "packed-inductor"],
    indirect=["problem"],
)
def test_compiles_as_one_graph(problem, options):
    expected = results(problem[0], problem)
    torch._dynamo.reset()
    assert_same(results(torch.compile(problem[0], fullgraph=True, **options), problem), expected)


@pytest.mark.parametrize("problem", ["packed"], indirect=True)
def test_compiles_block_by_block(problem):
    """Spikes cross the boundaries of graphs, bits and carriers with them."""
    net, _, _ = problem
    expected = results(net, problem)
    torch._dynamo.reset()
    compiled = {b: torch.compile(b, fullgraph=True, backend="aot_eager") for b in net.children()}
    assert_same(results(partial(net, run=lambda block, *args: compiled[block](*args)), problem), expected)


def test_a_layer_compiles_with_what_eager_found():
    layer = SparseLinear(20, 10)
    x = (torch.rand(8, 20) < 0.3) * 0.25
    expected = layer(x)
    assert layer._kind == (1, 0.25)
    torch._dynamo.reset()
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), expected)
    with pytest.raises(ValueError, match="input: expected"):
        compiled(torch.randn(8, 20))


def test_step_by_step_compiles():
    """State between calls does not break the graph."""
    net = nn.Sequential(SparseLinear(20, 10, input="binary"), LIF(0.5, step_mode="s"))
    x = (torch.rand(4, 8, 20) < 0.5).float()
    with torch.no_grad():
        expected = torch.stack([net(step) for step in x])
        net[1].reset()
        torch._dynamo.reset()
        compiled = torch.compile(net, fullgraph=True, backend="aot_eager")
        actual = torch.stack([compiled(step) for step in x])
    assert torch.equal(actual, expected)


def test_checkpoint(problem):
    net, _, _ = problem
    expected = results(net, problem)
    run = partial(checkpoint, use_reentrant=False)
    if isinstance(net, Chain):
        f = partial(net, run=run)
    else:
        net[1].module.momentum = 0.0  # the second forward would move the statistics again

        def f(x):
            for module in net:
                x = run(module, x)
            return x

    assert_same(results(f, problem), expected)


def test_autocast_bfloat16(problem):
    net, x, g = problem
    with torch.autocast("cpu", torch.bfloat16):
        y = net(x)
    y.float().backward(g)
    for parameter in net.parameters():
        assert parameter.grad.dtype == parameter.dtype == torch.float32
        assert parameter.grad.isfinite().all()


@pytest.fixture
def process_group(tmp_path):
    if not torch.distributed.is_available():
        pytest.skip("torch was built without distributed")
    torch.distributed.init_process_group("gloo", f"file://{tmp_path}/rendezvous", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def test_distributed_data_parallel(process_group, problem):
    net, _, _ = problem
    expected = results(net, problem)
    parallel = nn.parallel.DistributedDataParallel(net)
    assert_same(results(parallel, problem), expected)
