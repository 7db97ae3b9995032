"""How often an update makes the host wait for a GPU: counted on the CPU, where it takes the GPU's way."""

import importlib

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import esl_sparse as esl
from esl_sparse.rewire import host

READS = ("_local_scalar_dense", "nonzero", "equal", "masked_select", "_unique2", "is_nonzero")


class Waits(TorchDispatchMode):
    """Notes each op whose result the host needs at once: numbers, masks that make sizes, and unpromised selections."""

    def __init__(self):
        super().__init__()
        self.seen = []
        self._after = ""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.name().split("::")[1]
        from_host_generator = name == "_local_scalar_dense" and self._after.startswith("randint")
        by_mask = name in ("index.Tensor", "index_put_") and any(
            index is not None and index.dtype == torch.bool for index in args[1]
        )
        unpromised = name == "select" and func.namespace == "esl_sparse" and not (len(args) > 5 and args[5])
        if (name in READS and not from_host_generator) or by_mask or unpromised:
            self.seen.append(name)
        self._after = name
        return func(*args, **(kwargs or {}))


@pytest.fixture
def remote(monkeypatch):
    """CPU tensors are taken for those of a GPU; holds the readings, which the mode does not see."""
    readings = []

    def read(scalars):
        readings.append("read")
        return host.read(scalars)

    for name in ("blocks", "evolver", "prune", "rewiring", "watch", "host"):
        module = importlib.import_module(f"esl_sparse.rewire.{name}")
        if hasattr(module, "is_remote"):
            monkeypatch.setattr(module, "is_remote", lambda tensor: True)
        if hasattr(module, "read") and module is not host:
            monkeypatch.setattr(module, "read", read)
    return readings


def update(prune, grow, layers, readings=None):
    """Topologies after two updates, and what the second one waited for."""
    torch.manual_seed(0)
    model = nn.Sequential(*(esl.nn.SparseLinear(64, 64, density=0.2, block_size=1) for _ in range(layers)))
    optimizer = torch.optim.Adam(model.parameters())
    rewirer = esl.Rewirer(model, optimizer, prune=prune, grow=grow, interval=2, t_end=20)
    readings = [] if readings is None else readings
    for _ in range(4):
        optimizer.zero_grad()
        model(torch.randn(8, 64)).square().sum().backward()
        optimizer.step()
        readings.clear()
        with Waits() as mode:
            report = rewirer.step()
    assert all(layer.grown > 0 for layer in report.layers)
    return [layer.topology.block_ids() for layer in model], mode.seen + readings


@pytest.mark.parametrize(
    "prune, grow, each",
    [("magnitude", "random", 2), ("set", "random", 3), ("set", "momentum", 4), ("magnitude", "gradient", 3)],
)
def test_an_update_waits_a_few_times(remote, prune, grow, each):
    """Once for all layers: are weights finite, is what goes and what comes a choice. For each layer: how many of the
    chosen places are new, how many never were active; which blocks have which sign; are gradients finite."""
    for layers in (1, 3):
        _, waits = update(prune, grow, layers, remote)
        assert len(waits) == 3 + each * layers, waits


@pytest.mark.parametrize("prune", esl.PRUNE_RULES)
@pytest.mark.parametrize("grow", esl.GROW_RULES)
def test_the_way_of_a_gpu_chooses_the_same(prune, grow, request):
    expected, _ = update(prune, grow, 2)
    request.getfixturevalue("remote")
    ours, _ = update(prune, grow, 2)
    assert all(map(torch.equal, ours, expected))
