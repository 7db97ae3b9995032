import pytest
import torch
from torch import nn

import esl_sparse as esl
from esl_sparse.energy import ENERGY_CONSTANTS, EnergyConstants, mean_of
from esl_sparse.models import SingleSpikeMLP
from esl_sparse.nn import LIF, AvgPool2d, SpikingBlock, TemporalLinear
from esl_sparse.ops.pack.op import pack


@pytest.fixture
def g():
    return torch.Generator().manual_seed(0)


def spikes(*shape, rate=0.3, g=None):
    return (torch.rand(*shape, generator=g) < rate).float()


def test_the_paper_s_table_1():
    """784-800-10, dense and at eps = 60: FLOPs of every connection once give its energies."""
    dense, sparse = 784 * 800 + 800 * 10, 95_040 + 8_000
    paper = ENERGY_CONSTANTS["paper"]
    printed = {dense: (1.13e-5, 7.95e-6), sparse: (1.84e-6, 1.29e-6)}
    for connections, (gpu, truenorth) in printed.items():
        assert connections * paper.mac == pytest.approx(gpu, rel=0.005)
        assert connections * paper.sop == pytest.approx(truenorth, rel=0.005)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(
    "make, x",
    [
        (lambda: esl.nn.SparseLinear(13, 9, density=0.4, block_size=(4, 2)), (5, 3, 13)),
        (lambda: esl.nn.SparseConv2d(5, 7, (3, 2), stride=2, padding=1, density=0.5), (4, 3, 5, 9, 8)),
    ],
)
def test_operations_of_a_layer(make, x, packed, g):
    """Against the sum over its input, spike by spike, of the mean number of connections."""
    torch.manual_seed(0)
    layer = make()
    T, N = x[:2]
    x = spikes(*x, g=g)
    with esl.measure_rates(layer) as rates:
        layer(pack(x, "binary") if packed else x)
    report = esl.energy_report(layer, rates, samples=N)
    (row,) = report.layers
    out = layer.to_dense()(x.flatten(0, 1))
    positions = out.shape[2:].numel() * T
    assert row.connections == layer.nnz == int((layer.to_dense().weight != 0).sum())
    assert row.rate == pytest.approx(float(x.mean()))
    assert (row.flops, row.macs) == (positions * layer.nnz, 0)
    assert row.sops == pytest.approx(positions * layer.nnz * float(x.mean()))
    assert row.energy == pytest.approx(row.sops * 0.9e-12)


def test_grey_input_is_multiplied_and_pooled_spikes_are_counted_before_the_pool(g):
    layer = nn.Conv2d(2, 3, 3)
    grey, fired = torch.rand(4, 2, 6, 6, generator=g), spikes(4, 2, 12, 12, g=g)
    pooled = nn.functional.avg_pool2d(fired, 2)
    for x, rate in ((grey, None), (pooled, 4 * float(fired.mean()))):
        with esl.measure_rates(layer) as rates:
            layer(x)
        (row,) = esl.energy_report(layer, rates, "truenorth").layers
        assert row.rate == (rate if rate is None else pytest.approx(rate))
        flops = 54 * 4 * 4
        macs, sops = (flops, 0) if rate is None else (0, pytest.approx(flops * rate))
        assert (row.flops, row.macs, row.sops) == (flops, macs, sops)
        assert row.energy == pytest.approx(row.macs * 12.5e-12 + row.sops * 77e-15)


def test_a_fused_network_is_counted_like_its_modules(g):
    """Block-sparse at density 1, bits between blocks, against the same network of dense layers and float tensors."""
    torch.manual_seed(0)

    def network():
        return nn.Sequential(
            SpikingBlock(nn.Conv2d(2, 8, 3, padding=1), nn.BatchNorm2d(8), LIF(), AvgPool2d(2)),
            SpikingBlock(nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), LIF()),
        )

    dense = network()
    fused = network()
    fused.load_state_dict(dense.state_dict())
    esl.sparsify(fused, density=1.0, distribution="uniform", init="magnitude", block_size=4)
    x = spikes(4, 3, 2, 8, 8, g=g)
    reports = []
    for model in (dense, fused):
        with esl.measure_rates(model) as rates:
            model(x)
        reports.append(esl.energy_report(model, rates, samples=3))
    for a, b in zip(*(report.layers for report in reports), strict=True):
        assert (a.name, a.connections, a.flops, a.macs) == (b.name, b.connections, b.flops, b.macs)
        assert (
            a.rate == pytest.approx(b.rate, abs=2e-3) and a.rate > 0
        )  # a current at the threshold may differ
    assert "1.conv" in str(reports[1])


def test_neurons_that_fire_once():
    torch.manual_seed(0)
    model = SingleSpikeMLP(20, (16,), 4, layer=lambda n, m: TemporalLinear(n, m, density=0.5, block_size=2))
    with torch.no_grad():
        first_row = int(model.hidden[0].crow_indices[1])
        model.hidden[0].values[:first_row] = 0  # its neurons stay silent
    images = torch.rand(6, 20)
    with esl.measure_rates(model) as rates:
        z = model.hidden[0](torch.where(images > 0.5, 1.0, 6.0))
        model(images)
    report = esl.energy_report(model, rates, "paper", samples=6)
    hidden, readout = report.layers
    assert hidden.rate == 1.0
    assert readout.rate == pytest.approx(float(z.isfinite().float().mean())) and readout.rate < 1
    assert hidden.sops == 2 * hidden.connections  # of two calls
    assert report.connections == model.hidden[0].nnz + 64


def test_calls_add_up_and_hooks_go(g):
    model = nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 2))
    first, second = spikes(4, 6, g=g), spikes(8, 6, rate=0.8, g=g)
    with esl.measure_rates(model) as rates:
        model(first)
        model(second)
    model(first)
    assert rates.samples == 12
    row = esl.energy_report(model, rates).layers[0]
    assert row.rate == pytest.approx(float(torch.cat([first, second]).mean()))
    assert row.sops == pytest.approx(30 * row.rate)
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_what_is_not_connected_or_not_counted():
    model = nn.Sequential(nn.Linear(6, 5), nn.ConvTranspose2d(2, 3, 2), nn.BatchNorm2d(3))
    with torch.no_grad():
        model[0].weight[0] = 0
    with esl.measure_rates(model) as rates:
        model[0](torch.ones(2, 6))
    report = esl.energy_report(model, rates, EnergyConstants(1.0, 0.5), samples=2)
    assert report.layers[0].connections == 24 and report.energy == 12
    assert report.left_out == ("1 (ConvTranspose2d)",) and "not counted: 1" in str(report)


def test_errors():
    model = nn.Sequential(nn.Linear(6, 5))
    with esl.measure_rates(model) as rates:
        pass
    with pytest.raises(ValueError, match="samples: expected at least 1, got 0"):
        esl.energy_report(model, rates)
    with pytest.raises(ValueError, match="constants: expected one of 45nm, paper, truenorth, got 'gpu'"):
        esl.energy_report(model, rates, "gpu", samples=1)
    with pytest.raises(ValueError, match="no layer '0'; they were measured on another model"):
        esl.energy_report(nn.Sequential(nn.ReLU()), rates, samples=1)


@pytest.mark.parametrize("planes", [1, 3])
def test_mean_of_bits_is_the_mean(planes, g):
    x = torch.randint(0, 2 if planes == 1 else 5, (3, 5, 7, 2, 3), generator=g) * (1 if planes == 1 else 0.25)
    assert (
        mean_of(pack(x.float()))
        == pytest.approx(mean_of(x.float()))
        == pytest.approx(float(x.float().mean()))
    )
