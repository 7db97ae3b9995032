"""How often an update makes the host wait for a GPU: counted on the CPU, where it takes the GPU's way."""

import copy
import importlib
import pkgutil
from itertools import product

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import esl_sparse as esl

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
    """CPU tensors are taken for those of a GPU; holds the calls of ``tolist``, which the mode does not see."""
    readings, tolist = [], torch.Tensor.tolist

    def counted(tensor):
        readings.append("tolist")
        return tolist(tensor)

    monkeypatch.setattr(torch.Tensor, "tolist", counted)
    for info in pkgutil.iter_modules(esl.rewire.__path__):
        module = importlib.import_module(f"esl_sparse.rewire.{info.name}")
        if hasattr(module, "is_remote"):
            monkeypatch.setattr(module, "is_remote", lambda tensor: True)
    return readings


def model_of(layers, density):
    torch.manual_seed(0)
    blocks = [(4, 4), (1, 1), (4, 4)]
    return nn.Sequential(
        *(esl.nn.SparseLinear(66, 66, density=density, block_size=blocks[i % 3]) for i in range(layers))
    )


def train(rewire, model, steps, readings):
    """Of each step what the backward and the optimiser waited for, what the update, and the last report."""
    waits = []
    for _ in range(steps):
        rewire.optimizer.zero_grad()
        loss = model(torch.randn(8, 66)).square().sum()
        readings.clear()
        with Waits() as in_step:
            loss.backward()
            rewire.optimizer.step()
        in_step.seen += readings
        readings.clear()
        with Waits() as in_update:
            report = rewire.step()
        waits.append((in_step.seen, in_update.seen + readings))
    return waits, report


def update(prune, grow, layers, readings=None, density=0.2, followers=0, **options):
    """Topologies after two updates, and what the second one waited for."""
    model = model_of(layers, density)
    copies = [copy.deepcopy(model) for _ in range(followers)]
    optimizer = torch.optim.Adam(model.parameters())
    rewirer = esl.Rewirer(
        model, optimizer, prune=prune, grow=grow, interval=2, t_end=20, followers=copies, **options
    )
    waits, report = train(rewirer, model, 4, [] if readings is None else readings)
    assert sum(layer.grown for layer in report.layers) > 0
    return [layer.topology.block_ids() for layer in model], waits[-1][1]


# Once for all layers: are weights finite; is what goes, is what comes a choice; what of it is new; how many weights
# blocks at the edge hold. Each of these needs more: which blocks have which sign, in which layer the weakest are, are
# gradients finite, what is each layer worth, do followers stand as the model does, how many
# blocks are not protected.
@pytest.mark.parametrize(
    "prune, grow, expected, options",
    [
        ("magnitude", "random", 5, {}),
        ("set", "random", 6, {}),
        ("global_magnitude", "random", 6, {}),
        ("magnitude", "gradient", 6, {}),
        ("magnitude", "random", 7, {"redistribute": "magnitude"}),
        ("magnitude", "random", 6, {"followers": 2}),
        ("magnitude", "random", 6, {"protect": 1}),
        ("global_magnitude", "random", 7, {"protect": 1}),
    ],
)
@pytest.mark.parametrize("density", [0.2, 0.01])  # what was ever active is a bitmap, or ids
def test_an_update_waits_as_often_for_many_layers_as_for_one(remote, prune, grow, expected, options, density):
    for layers in (1, 3):
        _, waits = update(prune, grow, layers, remote, density, **options)
        assert len(waits) == expected, waits


def test_following_gradients_waits_for_the_first_look_only(remote):
    model = model_of(3, 0.2)
    optimizer = torch.optim.SGD(model.parameters(), 0.01, momentum=0.9)
    rewirer = esl.Rewirer(model, optimizer, prune="set", grow="momentum", interval=30, t_end=90)
    waits, report = train(rewirer, model, 30, remote)
    assert report is not None
    assert [i for i, (in_step, _) in enumerate(waits, start=1) if in_step] == [11]
    assert [(i, len(in_update)) for i, (_, in_update) in enumerate(waits, start=1) if in_update] == [(30, 7)]


def test_after_loading_it_waits_once_more(remote):
    waits = []
    for load in (False, True):
        model = model_of(3, 0.2)
        optimizer = torch.optim.SGD(model.parameters(), 0.01)
        rewirer = esl.Rewirer(model, optimizer, prune="set", grow="random", interval=2, t_end=20)
        train(rewirer, model, 3, remote)
        if load:
            rewirer.load_state_dict(rewirer.state_dict())
        waits.append(len(train(rewirer, model, 1, remote)[0][0][1]))
    assert waits == [6, 7]


def test_deep_r_waits_four_times(remote):
    for layers in (1, 3):
        model = model_of(layers, 0.2)
        optimizer = torch.optim.SGD(model.parameters(), 0.01, momentum=0.9)
        waits, report = train(esl.DeepR(model, optimizer, l1=1.0), model, 4, remote)
        assert sum(layer.grown for layer in report.layers) > 0
        assert len(waits[-1][1]) == 4, waits[-1]


@pytest.mark.parametrize(
    "prune, grow, density",
    [*product(esl.PRUNE_RULES, esl.GROW_RULES, [0.2]), *product(["set"], esl.GROW_RULES, [0.01])],
)
def test_the_way_of_a_gpu_chooses_the_same(prune, grow, density, request):
    expected, _ = update(prune, grow, 3, density=density)
    request.getfixturevalue("remote")
    ours, _ = update(prune, grow, 3, density=density)
    assert all(map(torch.equal, ours, expected))
