"""``temporal``: neurons that fire once, beside sorting and cumulative sums: a layer, and a step of training."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import esl_sparse as esl

from . import cases, timing
from .report import Report

HELP = "single-spike neurons, a layer and a training step, against the dense formulation by sort and cumsum"
DENSE = "dense (sort, cumsum)"
EPOCH = 540  # batches of 100: 54,000 images, the others are for validation


def add_arguments(parser: argparse.ArgumentParser) -> None:
    pass


def is_default(args: argparse.Namespace) -> bool:
    return True


def dense(z: Tensor, weight: Tensor) -> Tensor:
    """Every prefix of the inputs in the order of their times is solved; the first valid solution is the spike."""
    times, order = z.sort(dim=1)
    w = weight.t()[order]  # [N, inputs, outputs]
    weights, moments = w.cumsum(1), (w * times.unsqueeze(2)).cumsum(1)
    solved = moments / (weights - 1)
    following = torch.cat([times[:, 1:], times.new_full((len(z), 1), torch.inf)], 1).unsqueeze(2)
    valid = (weights > 1) & (solved < following)
    first = valid.int().argmax(1, keepdim=True)
    return torch.where(valid.any(1), solved.gather(1, first).squeeze(1), torch.inf)


def _step(layer: Callable[[Tensor], Tensor], z: Tensor, values: Tensor, grad: Tensor) -> Callable[[], object]:
    return lambda: torch.autograd.grad(layer(z), (z, values), grad)


class Dense(nn.Module):
    """A layer as a plain module: what ``TemporalLinear`` offers, of every connection."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(outputs, inputs).uniform_(0, 8 / inputs))

    def forward(self, z: Tensor) -> Tensor:
        return dense(z, self.weight)

    def weight_sum_cost(self) -> Tensor:
        return F.relu(1 - self.weight.sum(1)).sum()


def _training(layers: Sequence[Any], z: Tensor, labels: Tensor) -> Callable[[], object]:
    """One iteration: spike times, Eq. 6, the cost of weights that are too small, gradients, Adam."""
    loss_of = esl.nn.TemporalCrossEntropy()
    optimizer = torch.optim.Adam([p for layer in layers for p in layer.parameters()], 1e-3, fused=True)

    def step() -> None:
        x = z
        for layer in layers:
            x = layer(x)
        loss = loss_of(x, labels) + 100 * sum(layer.weight_sum_cost() for layer in layers)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def _layer(case: cases.TemporalCase, z: Tensor) -> dict[str, Callable[[], object]]:
    z = z.clone().requires_grad_()
    grad = torch.randn(case.N, case.outputs)
    runs: dict[str, Callable[[], object]] = {}
    for block in (1, 4):
        layer = esl.nn.TemporalLinear(case.inputs, case.outputs, density=case.density, block_size=block)
        weight = layer.topology.to_dense(layer.values.detach())
        torch.testing.assert_close(layer(z), dense(z, weight), rtol=1e-3, atol=0)
        runs[f"{block}x{block}"] = _step(layer, z, layer.values, grad)
    weight = torch.empty(case.outputs, case.inputs).uniform_(0, 8 / case.inputs).requires_grad_()
    return {DENSE: _step(lambda z: dense(z, weight), z, weight, grad), **runs}


def _network(case: cases.TemporalCase, z: Tensor) -> dict[str, Callable[[], object]]:
    classes = 10
    labels = torch.randint(classes, (case.N,))
    runs = {DENSE: _training([Dense(case.inputs, case.outputs), Dense(case.outputs, classes)], z, labels)}
    for block in (1, 4):
        hidden = esl.nn.TemporalLinear(case.inputs, case.outputs, density=case.density, block_size=block)
        readout = esl.nn.TemporalLinear(case.outputs, classes, density=1.0)
        runs[f"{block}x{block}"] = _training([hidden, readout], z, labels)
    return runs


def run(args: argparse.Namespace, report: Report) -> None:
    case = cases.QUICK_TEMPORAL_CASE if args.quick else cases.TEMPORAL_CASE
    early, late = esl.nn.temporal.EARLY, esl.nn.temporal.LATE
    z = torch.where(torch.rand(case.N, case.inputs) < case.early, early, late)
    report.set("conditions", {**case._asdict(), "classes": 10, "rounds": args.rounds})
    report.set(
        "method",
        f"{timing.method(args.rounds)}; {timing.RULE}; layer: forward and backward; training: a whole iteration with"
        f" Adam, of which an epoch of MNIST has {EPOCH}",
    )
    for what, runs in (("layer", _layer(case, z)), ("training", _network(case, z))):
        print(f"\n{what}: {case}")
        for name, found in timing.measure(runs, DENSE, args.rounds).items():
            row = {"what": what, "provider": name, **found.as_row(), "speedup": found.speedup.rounded()}
            report.add([row])
            print(f"{name:22}{row['ms'][1]:10.3g} ms{row['speedup'][1]:8.3g}x", flush=True)
    for row in report.rows:
        if row["provider"] == DENSE:
            continue
        bound, ratio = cases.TEMPORAL_TARGET, None if args.quick else row["speedup"][1]
        report.target(
            f"{row['what']}, {row['provider']} blocks, times dense",
            f">= {bound:g}",
            ratio,
            ratio and ratio >= bound,
        )
