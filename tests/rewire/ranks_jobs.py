"""What each of several processes does in ``test_ranks.py``."""

from __future__ import annotations

import os
from contextlib import suppress
from datetime import timedelta

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import esl_sparse as esl

STEPS, BATCH = 14, 16


def model(seed=0):
    """Float64: sums over fewer samples first differ by little enough for the same blocks to be the largest."""
    g = torch.Generator().manual_seed(seed)
    options = {"density": 0.3, "block_size": 2, "dtype": torch.float64, "generator": g, "input": "float"}
    return nn.Sequential(
        esl.nn.SparseConv2d(3, 8, 3, padding=1, **options),
        nn.Tanh(),
        nn.AvgPool2d(2),
        nn.Flatten(),
        esl.nn.SparseLinear(8 * 16, 20, **options),
        nn.Tanh(),
        nn.Linear(20, 5, dtype=torch.float64),
    )


def batch(step):
    g = torch.Generator().manual_seed(100 + step)
    x = torch.randn(BATCH, 3, 8, 8, generator=g, dtype=torch.float64)
    return x, torch.randint(5, (BATCH,), generator=g)


def train(net, rule, rank=0, size=1, seed=1):
    """Train with one rule; each rank sees its share of every batch, whichever it is."""
    optimizer = torch.optim.SGD(net.parameters(), 0.2, momentum=0.9)
    rewirer = esl.Rewirer(
        net, optimizer, grow=rule, interval=6, t_end=100, generator=torch.Generator().manual_seed(seed)
    )
    reports = []
    for step in range(STEPS):
        x, y = batch(step)
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(x[rank::size]), y[rank::size]).backward()
        nn.utils.clip_grad_norm_(net.parameters(), 0.05)
        optimizer.step()
        if (report := rewirer.step()) is not None:
            reports.append([(layer.name, layer.grown, layer.note) for layer in report.layers])
    return reports


def seeded(net, rule, rank, size):
    """Ranks start with different networks and generators, as they do where nobody took care."""
    return train(DistributedDataParallel(net), rule, rank, size, seed=1 + rank)


def equivalence(rank, size):
    found = {}
    for rule in ("gradient", "momentum", "random", "random_unfired"):
        torch.manual_seed(rank)
        net = model(seed=rank)
        if rank == 0:  # DDP gives its weights and index to the others
            with torch.no_grad():
                net.load_state_dict(start())
        found[rule] = seeded(net, rule, rank, size), net.state_dict()
    return found


def start():
    torch.manual_seed(7)
    return model().state_dict()


def disagreement(rank, size):
    net = DistributedDataParallel(model())
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    rewirer = esl.Rewirer(net, optimizer, grow="random", interval=1, t_end=10)
    rewirer.generator.manual_seed(rank)
    x, y = batch(0)
    nn.functional.cross_entropy(net(x), y).backward()
    optimizer.step()
    before = {name: value.clone() for name, value in net.module.state_dict().items()}
    try:
        rewirer.step()
        message = "no error"
    except RuntimeError as error:
        message = str(error)
    unchanged = all(torch.equal(value, before[name]) for name, value in net.module.state_dict().items())
    return message, unchanged, rewirer.iteration


def index_stays(rank, size):
    """Whether a rank's own index and its own statistics survive the broadcast of buffers."""
    net = DistributedDataParallel(nn.Sequential(model()[4], nn.BatchNorm1d(20, dtype=torch.float64)))
    esl.Rewirer(net, torch.optim.SGD(net.parameters(), 0.1), grow="random", t_end=10, interval=2)
    layer, norm = net.module
    other = layer.topology.col_indices.clone()
    if rank == 1:
        layer.col_indices.copy_(layer.col_indices.flip(0))
        norm.running_mean.fill_(5.0)
        other = layer.col_indices.clone()
    net.train()
    net(torch.randn(4, 128, dtype=torch.float64, requires_grad=True))
    return torch.equal(layer.col_indices, other), bool(norm.running_mean.abs().max() < 5)


def silent_on_one(rank, size):
    """A rank whose layer gets no gradient in the step that is scored counts as one that gave zeros."""
    first = esl.nn.SparseLinear(8, 8, density=0.5, block_size=1, generator=torch.Generator().manual_seed(0))
    net = DistributedDataParallel(
        nn.ModuleDict({"a": first, "b": nn.Linear(8, 8)}), find_unused_parameters=True
    )

    def forward(x):
        return net.module["a"](x) if rank == 0 else net.module["b"](x)

    net.module.forward = forward
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    rewirer = esl.Rewirer(
        net, optimizer, grow="gradient", interval=1, t_end=10, generator=torch.Generator().manual_seed(0)
    )
    net(torch.randn(4, 8, generator=torch.Generator().manual_seed(3))).square().sum().backward()
    optimizer.step()
    report = rewirer.step()
    return report.layers[0].note, report.layers[0].grown, first.topology.block_ids()


def refusals(rank, size):
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.optim import ZeroRedundancyOptimizer

    def refused(make):
        with suppress(ValueError):
            make()
            return "accepted"
        try:
            make()
        except ValueError as error:
            return str(error)

    net = model()
    ddp = DistributedDataParallel(net)
    sgd = torch.optim.SGD(net.parameters(), 0.1)
    sharded = nn.Sequential(nn.Linear(4, 4))
    fully_shard(sharded, mesh=torch.distributed.device_mesh.init_device_mesh("cpu", (size,)))
    zero = ZeroRedundancyOptimizer(net.parameters(), torch.optim.SGD, lr=0.1)
    return {
        "unwrapped": refused(lambda: esl.Rewirer(net, sgd, t_end=10, interval=2)),
        "unwrapped DeepR": refused(lambda: esl.DeepR(net, sgd)),
        "redistribute": refused(
            lambda: esl.Rewirer(ddp, sgd, t_end=10, interval=2, redistribute="magnitude")
        ),
        "drawn": refused(lambda: esl.Rewirer(ddp, sgd, t_end=10, interval=2, grow=drawn())),
        "zero": refused(lambda: esl.Rewirer(ddp, zero, t_end=10, interval=2)),
        "sharded": refused(lambda: esl.Rewirer(sharded, sgd, t_end=10, interval=2)),
    }


def drawn():
    from esl_sparse.rewire import GROW_RULES, DrawnCount, bernoulli

    return DrawnCount(GROW_RULES["random"], bernoulli)


def run(rank, size, folder, jobs):
    torch.set_num_threads(1)
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    torch.distributed.init_process_group(
        "gloo",
        init_method=f"file://{folder}/meeting",
        rank=rank,
        world_size=size,
        timeout=timedelta(seconds=60),
    )
    found = {job: globals()[job](rank, size) for job in jobs}
    torch.save(found, f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()
