"""``linear``: float spikes in, float out, packing and changes of layout included."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor, nn

from . import cases, timing
from .cases import LinearCase
from .providers import LINEAR, OURS
from .report import Report

HELP = "provider x case table of the linear layer against nn.Linear, dense+mask and torch.sparse"
BASELINE = "dense"
BOTH = "forward+backward"


def forward(layer: nn.Module, x: Tensor, grad: Tensor) -> Callable[[], object]:
    """Inference: nothing is kept for backward."""

    def run() -> Tensor:
        with torch.no_grad():
            return layer(x)

    return run


def forward_backward(layer: nn.Module, x: Tensor, grad: Tensor) -> Callable[[], object]:
    """Gradients of input, weight and bias from a random cotangent."""
    leaves = [x, *layer.parameters()]

    def run() -> None:
        for leaf in leaves:
            leaf.grad = None
        layer(x).backward(grad)

    return run


MODES = {"forward": forward, BOTH: forward_backward}


def inputs(case: LinearCase) -> tuple[Tensor, Tensor]:
    """Spikes as floats that want a gradient, and a cotangent."""
    x = torch.bernoulli(torch.full((case.lanes, case.inputs), case.rate)).requires_grad_()
    return x, torch.randn(case.lanes, case.outputs)


def same(name: str, what: str, got: Tensor, expected: Tensor) -> None:
    """Raise unless two results differ by rounding only: a wrong competitor is not timed."""
    error = (got - expected).abs().max().item()
    if not error <= 1e-4 * max(1.0, expected.abs().max().item()):
        raise AssertionError(f"{name}: {what} differs from dense by {error:.3g}")


def check(name: str, layer: nn.Module, x: Tensor, grad: Tensor, lanes: int = 64) -> None:
    """Compare with the dense layer of the same weights, on a few lanes."""
    dense = layer.to_dense()
    results = []
    for module in (layer, dense):
        some = x[:lanes].detach().requires_grad_()
        y = module(some)
        weight, bias = module.parameters()
        grads = torch.autograd.grad(y, (some, weight, bias), grad[:lanes])
        # Weights differ in layout: compare <gradient, weight>, which absent weights do not enter.
        terms = grads[1] * weight
        along = terms.sum() / (terms.abs().sum() + 1e-30)
        results.append((y, grads[0], grads[2], along))
    for what, got, expected in zip(("y", "grad x", "grad bias", "grad weight"), *results, strict=True):
        same(name, what, got, expected)


def measure(
    case: LinearCase, density: float, providers: Iterable[str], modes: Iterable[str], rounds: int
) -> Iterator[dict]:
    """One row for each mode and provider."""
    x, grad = inputs(case)
    layers = {name: LINEAR[name](case.inputs, case.outputs, density) for name in (BASELINE, *providers)}
    for name, layer in layers.items():
        check(name, layer, x, grad)
    for mode in modes:
        runs = {name: MODES[mode](layer, x, grad) for name, layer in layers.items()}
        for name, result in timing.measure(runs, BASELINE, rounds).items():
            row = {**case._asdict(), "density": density, "mode": mode, "provider": name}
            yield row | result.as_row() | {"speedup": result.speedup.rounded()}


def cell(row: dict) -> str:
    """``12.3 4.56x``: median ms and times faster than dense."""
    text = f"{row['ms'][1]:.3g}" + ("*" if row["runs"] == 1 else "")
    if row["provider"] == BASELINE:
        return text
    ratio = row["speedup"][1]
    shown = f"{ratio:.2g}" if ratio < 100 else f"{ratio:.0f}"
    return f"{text} {shown}x" + (" LOSES" if ratio < 1 else "")


def print_rows(rows: list[dict]) -> None:
    """One line: the providers of one case, density and mode."""
    cells = " ".join(f"{cell(row):>20}" for row in rows)
    print(f"{rows[0]['mode']:17} {rows[0]['density']:7g} {cells}", flush=True)


def break_even(points: Iterable[tuple[float, float]]) -> tuple[float, str]:
    """The density at which the speed-up falls to 1, from ``(density, speedup)``.

    Interpolated between the two measured densities around it, linear in both logarithms. The sign is ``=``,
    or ``>=`` and ``<`` where all measured densities win or lose.
    """
    points = sorted(points)
    lost = next((i for i, (_, speedup) in enumerate(points) if speedup < 1), None)
    if lost is None:
        return points[-1][0], ">="
    if lost == 0:
        return points[0][0], "<"
    (d0, s0), (d1, s1) = points[lost - 1 : lost + 1]
    at = math.log(s0) / math.log(s0 / s1)
    return d0 * (d1 / d0) ** at, "="


def speedups(rows: list[dict], case: LinearCase, provider: str, mode: str = BOTH) -> dict[float, float]:
    """Median speed-up by density of one provider."""
    wanted = {**case._asdict(), "provider": provider, "mode": mode}
    return {r["density"]: r["speedup"][1] for r in rows if all(r[k] == v for k, v in wanted.items())}


def print_summary(report: Report) -> None:
    measured = sorted({LinearCase(*(r[f] for f in LinearCase._fields)) for r in report.rows})
    found = []
    for case in measured:
        for name in LINEAR:
            curve = speedups(report.rows, case, name)
            if name != BASELINE and len(curve) > 1:
                density, sign = break_even(curve.items())
                found.append({**case._asdict(), "provider": name, "sign": sign, "density": round(density, 4)})
                if name in OURS and (case == cases.TARGET_CASE or sign == "="):
                    print(f"  break-even density of {name}, {BOTH}, {case}: {sign} {density:.2g}")
    report.set("break_even", found)
    print(f"targets, {BOTH}, {cases.TARGET_CASE}")
    for name, density, bound in cases.LINEAR_TARGETS:
        speedup = speedups(report.rows, cases.TARGET_CASE, name).get(density)
        met = None if speedup is None else speedup >= bound
        report.target(f"{name} at density {density:g}, times dense", f">= {bound:g}", speedup, met)
    for name, bound in cases.BREAK_EVEN_TARGETS:
        curve = speedups(report.rows, cases.TARGET_CASE, name)
        density = break_even(curve.items())[0] if len(curve) > 1 else None
        met = None if density is None else density >= bound
        report.target(f"break-even density of {name}", f">= {bound:g}", density, met)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--case", nargs="+", metavar="IN-OUT", help="shapes, such as 1024-1024")
    parser.add_argument("--lanes", nargs="+", type=int, help="rows of the input: time steps x batch")
    parser.add_argument("--rate", nargs="+", type=float, help="firing rates")
    parser.add_argument("--density", nargs="+", type=float)
    parser.add_argument("--provider", nargs="+", choices=[n for n in LINEAR if n != BASELINE])
    parser.add_argument("--mode", nargs="+", choices=list(MODES), default=list(MODES))
    parser.add_argument("--full", action="store_true", help="every case at every density: hours")


FILTERS = ("case", "lanes", "rate", "density")


def selected(args: argparse.Namespace) -> list[tuple[LinearCase, list[float]]]:
    """Cases and densities: the default table, or the part of the full product that the filters name."""
    if args.quick:
        return [(case, list(cases.QUICK_DENSITIES)) for case in cases.QUICK_LINEAR_CASES]
    filtered = args.full or any(getattr(args, name) for name in FILTERS)
    chosen = []
    for case in cases.LINEAR_CASES:
        wanted = ((case.shape, args.case), (case.lanes, args.lanes), (case.rate, args.rate))
        if any(values and value not in values for value, values in wanted):
            continue
        densities = args.density or list(cases.DENSITIES)
        if not filtered:
            densities = [d for d in densities if cases.in_default_table(case, d)]
        if densities:
            chosen.append((case, densities))
    if not chosen:
        raise SystemExit("no case passes the filters; the table stands in benchmarks/cases.py")
    return chosen


def is_default(args: argparse.Namespace) -> bool:
    partial = args.full or args.provider or list(args.mode) != list(MODES)
    return not partial and not any(getattr(args, name) for name in FILTERS)


def run(args: argparse.Namespace, report: Report) -> None:
    providers = args.provider or [name for name in LINEAR if name != BASELINE]
    report.set("conditions", {"rounds": args.rounds, "rule": timing.RULE})
    report.set("method", f"{timing.method(args.rounds)}; float in, float out, packing included")
    for case, densities in selected(args):
        print(f"\n{case}: median ms, times faster than {BASELINE} in the same round")
        print(f"{'mode':17} {'density':>7} " + " ".join(f"{n:>20}" for n in (BASELINE, *providers)))
        for density in densities:
            rows = list(measure(case, density, providers, args.mode, args.rounds))
            for mode in args.mode:
                print_rows([row for row in rows if row["mode"] == mode])
            report.add(rows)
    print()
    print_summary(report)
