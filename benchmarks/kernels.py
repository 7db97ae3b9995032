"""``kernels``: each kernel that multiplies packed spikes against the one that is chosen automatically."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from itertools import product

import torch

import esl_sparse as esl
from esl_sparse._backends import choose
from esl_sparse.ops.linear import native

from . import cases, timing
from .report import Report

HELP = "forward on packed spikes by each kernel against the automatic choice"
BASELINE = "automatic"


def forward(layer: esl.nn.SparseLinear, spikes: esl.PackedSpikes, kernel: str) -> Callable[[], object]:
    def run() -> None:
        native.set_spike_kernel(kernel)
        with torch.no_grad():
            layer(spikes)

    return run


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--block", nargs="+", metavar="BMxBN", help="block sizes, such as 4x4 16x1")


def is_default(args: argparse.Namespace) -> bool:
    return not args.block


def run(args: argparse.Namespace, report: Report) -> None:
    if choose("linear", "cpu", torch.float32) != "native":
        raise SystemExit("kernels: needs the native kernels; see `esl-sparse info`")
    features, lanes = (48, 32) if args.quick else cases.KERNEL_SIZE
    blocks = [tuple(map(int, b.split("x"))) for b in args.block] if args.block else cases.KERNEL_BLOCKS
    grid = product(blocks, cases.KERNEL_DENSITIES, cases.KERNEL_RATES)
    report.set("conditions", {"features": features, "lanes": lanes, "rounds": args.rounds})
    report.set("method", timing.method(args.rounds))
    print(f"\n{features}-{features}, {lanes} lanes, packed spikes: forward, median ms; > marks the fastest")
    print(f"{'block':>7} {'density':>7} {'rate':>5} " + "".join(f"{k:>11}" for k in native.KERNELS))
    worst = 1.0
    try:
        for block, density, rate in list(grid)[:: 8 if args.quick else 1]:
            layer = esl.nn.SparseLinear(features, features, density=density, block_size=block)
            spikes = esl.functional.pack(torch.bernoulli(torch.full((1, lanes, features), rate)))
            runs = {kernel: forward(layer, spikes, kernel) for kernel in native.KERNELS}
            timings = timing.measure(runs, BASELINE, args.rounds)
            name = "x".join(map(str, block))
            case = {"block": name, "density": density, "rate": rate}
            rows = [
                case | {"provider": kernel} | result.as_row() | {"cost": result.cost.rounded()}
                for kernel, result in timings.items()
            ]
            report.add(rows)
            best = min(row["ms"][1] for row in rows)
            cells = "".join(f"{'>' if r['ms'][1] == best else '':>3}{r['ms'][1]:8.3g}" for r in rows)
            print(f"{name:>7} {density:7g} {rate:5g} {cells}", flush=True)
            worst = max(worst, timings[BASELINE].cost.median / min(t.cost.median for t in timings.values()))
    finally:
        native.set_spike_kernel(BASELINE)
    bound = cases.KERNEL_TARGET
    report.target("automatic over the fastest kernel, worst case", f"<= {bound:g}", worst, worst <= bound)
