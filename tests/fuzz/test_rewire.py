"""Sequences of updates of drawn models under every pair of rules: what has to hold whatever the rules choose."""

from __future__ import annotations

import copy
from itertools import pairwise

import torch
from hypothesis import strategies as st
from torch import nn, optim

import esl_sparse as esl
from esl_sparse.topology import check_block_ids, check_index

from ..rewire.models import by_id
from . import draws
from .profiles import fuzz

OPTIMIZERS = {  # how it is made, and how a slot starts where that is not 0
    "Adam": (lambda p: optim.Adam(p, 0.02), {}),
    "Adam amsgrad": (lambda p: optim.Adam(p, 0.02, amsgrad=True), {}),
    "SGD": (lambda p: optim.SGD(p, 0.02, momentum=0.9), {}),
    "Adagrad": (lambda p: optim.Adagrad(p, 0.02, initial_accumulator_value=0.3), {"sum": 0.3}),
    "Rprop": (lambda p: optim.Rprop(p, 0.02), {"step_size": 0.02}),
}


def check_topology(topology) -> None:
    ids = topology.block_ids()
    check_block_ids(ids, topology.layout)
    check_index(topology.crow_indices, topology.col_indices, topology.layout)
    # Places as (column, row), in this order, are the transposed index.
    places = [divmod(i, topology.layout.col_blocks)[::-1] for i in ids.tolist()]
    order = sorted(range(len(places)), key=places.__getitem__)
    assert topology.block_offsets_t.tolist() == order
    assert topology.row_indices_t.tolist() == [places[p][1] for p in order]
    counts = torch.bincount(topology.col_indices, minlength=topology.layout.col_blocks)
    assert topology.ccol_indices.diff().tolist() == counts.tolist() and topology.ccol_indices[0] == 0


def model_of(case, random) -> nn.Sequential:
    sparse = {"density": case.density, "block_size": case.block, "generator": random.generator}
    a, b, c = case.sizes
    sequence = [esl.nn.SparseLinear(a, b, **sparse), esl.nn.LIF(), esl.nn.SparseLinear(b, c, **sparse)]
    if case.conv:
        side = 3
        conv = esl.nn.SparseConv2d(2, 4, 3, padding=1, groups=2, **sparse)
        sequence = [conv, nn.Flatten(-3), esl.nn.SparseLinear(4 * side * side, c, **sparse)]
    return nn.Sequential(*sequence)


def states(model, follower, optimizer) -> list[dict]:
    """By layer: values, those of the follower, gradient and slots, each by block id."""
    copies = esl.rewire.sparse_layers(follower)
    found = []
    for name, layer in esl.rewire.sparse_layers(model).items():
        tensors = {"values": layer.values, "follower": copies[name].values, "grad": layer.values.grad}
        for key, entry in optimizer.state[layer.values].items():
            if isinstance(entry, torch.Tensor) and entry.dim() == 3:
                tensors[key] = entry
        found.append({key: by_id(layer, tensor) for key, tensor in tensors.items()})
    return found


@fuzz(
    70,
    draws.options(
        sizes=st.tuples(*[st.integers(1, 40)] * 3), conv=st.booleans(), block=draws.blocks,
        density=draws.densities, prune=st.sampled_from(["magnitude", "set", "set_itop", "global_magnitude"]),
        grow=st.sampled_from(["random", "random_unfired", "gradient", "momentum", "momentum_neuron"]),
        alpha=st.sampled_from([0.1, 0.5, 0.9]), interval=st.integers(1, 3), protect=st.integers(0, 2),
        redistribute=st.sampled_from([None, None, "magnitude", "gradient"]),
        optimizer=st.sampled_from(sorted(OPTIMIZERS)), rate=draws.rates, seed=draws.seeds,
    ),
)  # fmt: skip
def test_updates(case):
    random = draws.Random(case.seed)
    model = model_of(case, random)
    layers = esl.rewire.sparse_layers(model)
    for layer in layers.values():
        with torch.no_grad():
            layer.values.copy_(random.normal(*layer.values.shape))
    follower = copy.deepcopy(model)
    for param in follower.parameters():
        with torch.no_grad():
            param.copy_(random.normal(*param.shape))
    make, start = OPTIMIZERS[case.optimizer]
    optimizer = make(model.parameters())
    rewirer = esl.Rewirer(
        model, optimizer, prune=case.prune, grow=case.grow, alpha=case.alpha, interval=case.interval,
        t_end=100, schedule="constant", protect=case.protect, redistribute=case.redistribute,
        followers=[follower], generator=random.generator,
    )  # fmt: skip
    shape = (2, 5, 2, 3, 3) if case.conv else (2, 5, case.sizes[0])
    params = list(model.parameters())
    for _ in range(3 * case.interval):
        optimizer.zero_grad(set_to_none=False)
        x = random.inputs(shape, "binary", case.rate).float()
        y = model(x)
        (y * random.normal(*y.shape).float()).sum().backward()
        optimizer.step()
        before = states(model, follower, optimizer)
        report = rewirer.step()
        after = states(model, follower, optimizer)
        check_update(case, report, before, after, start)
    assert all(a is b for a, b in zip(params, model.parameters(), strict=True))
    copies = esl.rewire.sparse_layers(follower)
    for name, layer in layers.items():
        check_topology(layer.topology)
        for mine, theirs in pairwise([layer.topology, copies[name].topology]):
            assert all(map(torch.equal, mine.index_tensors(), theirs.index_tensors()))


def check_update(case, report, before, after, start) -> None:
    sizes = [(len(old["values"]), len(new["values"])) for old, new in zip(before, after, strict=True)]
    if case.redistribute is None:  # a layer grows what it lost, whatever the rule prunes
        assert all(old == new for old, new in sizes)
    assert sum(old for old, _ in sizes) == sum(new for _, new in sizes)
    for i, (old, new) in enumerate(zip(before, after, strict=True)):
        kept, grown = old["values"].keys() & new["values"].keys(), new["values"].keys() - old["values"].keys()
        assert len(grown) == (0 if report is None else report.layers[i].grown)
        assert old.keys() == new.keys()
        for key in new:
            assert all(torch.equal(new[key][b], old[key][b]) for b in kept), key
            assert all((new[key][b] == torch.tensor(start.get(key, 0.0))).all() for b in grown), key
