"""``overhead``: what one call costs where there is next to nothing to compute."""

from __future__ import annotations

import argparse

from . import cases, linear, timing
from .providers import LINEAR
from .report import Report

HELP = "one forward+backward call of a 16-16 layer on 16 lanes against nn.Linear"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--calls", type=int, default=500, help="calls in one timed run")


def is_default(args: argparse.Namespace) -> bool:
    return True


def run(args: argparse.Namespace, report: Report) -> None:
    case = cases.OVERHEAD_CASE
    number = 3 if args.quick else args.calls
    report.set("conditions", {"rounds": args.rounds, "calls": number, "case": case._asdict()})
    report.set("method", timing.method(args.rounds))
    x, grad = linear.inputs(case)
    layers = {"dense": LINEAR["dense"](case.inputs, case.outputs, 1.0)}
    for density in cases.OVERHEAD_DENSITIES:
        layers[f"4x4, density {density:g}"] = LINEAR["4x4"](case.inputs, case.outputs, density)
    for name, layer in layers.items():
        linear.check(name, layer, x, grad)
    runs = {name: linear.forward_backward(layer, x, grad) for name, layer in layers.items()}
    timings = timing.measure(runs, "dense", args.rounds, number)
    print(f"\n{case}: one {linear.BOTH} call, median of {args.rounds} x {number} calls")
    for name, result in timings.items():
        row = {"provider": name} | result.as_row() | {"cost": result.cost.rounded()}
        report.add([row])
        print(f"  {name:20} {row['ms'][1] * 1e3:8.1f} us  {row['cost'][1]:5.2f}x nn.Linear")
    for name, result in timings.items():
        if name != "dense":
            cost, bound = result.cost.median, cases.OVERHEAD_TARGET
            report.target(f"{name}, times nn.Linear", f"<= {bound:g}", cost, cost <= bound)
