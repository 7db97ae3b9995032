"""``temporal``: a layer of neurons that fire once, spike times and gradients, beside sorting and cumulative sums."""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch
from torch import Tensor

import esl_sparse as esl

from . import cases, timing
from .report import Report

HELP = "a layer of single-spike neurons, against the dense formulation by sort and cumsum"
DENSE = "dense (sort, cumsum)"


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


def run(args: argparse.Namespace, report: Report) -> None:
    case = cases.QUICK_TEMPORAL_CASE if args.quick else cases.TEMPORAL_CASE
    times = torch.where(
        torch.rand(case.N, case.inputs) < case.early, esl.nn.temporal.EARLY, esl.nn.temporal.LATE
    )
    z = times.requires_grad_()
    grad = torch.randn(case.N, case.outputs)
    runs: dict[str, Callable[[], object]] = {}
    for block in (1, 4):
        layer = esl.nn.TemporalLinear(case.inputs, case.outputs, density=case.density, block_size=block)
        weight = layer.topology.to_dense(layer.values.detach())
        torch.testing.assert_close(layer(z), dense(z, weight), rtol=1e-3, atol=0)
        runs[f"{block}x{block}"] = _step(layer, z, layer.values, grad)
    weight = torch.empty(case.outputs, case.inputs).uniform_(0, 8 / case.inputs).requires_grad_()
    runs = {DENSE: _step(lambda z: dense(z, weight), z, weight, grad), **runs}
    report.set("conditions", {**case._asdict(), "rounds": args.rounds})
    report.set("method", f"{timing.method(args.rounds)}; forward and backward")
    print(f"\n{case}")
    for name, found in timing.measure(runs, DENSE, args.rounds).items():
        row = {"provider": name, **found.as_row(), "speedup": found.speedup.rounded()}
        report.add([row])
        print(f"{name:22}{row['ms'][1]:10.3g} ms{row['speedup'][1]:8.3g}x", flush=True)
    for row in report.rows[1:]:
        bound, ratio = cases.TEMPORAL_TARGET, None if args.quick else row["speedup"][1]
        report.target(
            f"layer of {row['provider']} blocks, times dense",
            f">= {bound:g}",
            ratio,
            ratio and ratio >= bound,
        )
