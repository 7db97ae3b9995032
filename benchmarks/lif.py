"""``lif``: forward + backward of leaky integrate-and-fire neurons beside a warm copy of their input."""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch
from torch import Tensor

from . import cases, timing
from .providers import LIF
from .report import Report

HELP = "LIF forward+backward against a clone of its input, SpikingJelly and plain loops"
BASELINE = "clone"


def forward_backward(neurons: Callable[[Tensor], Tensor], x: Tensor, grad: Tensor) -> Callable[[], object]:
    def run() -> None:
        x.grad = None
        neurons(x).backward(grad)

    return run


def check(name: str, neurons: Callable[[Tensor], Tensor], x: Tensor, grad: Tensor) -> float:
    """Compare with the plain loop; a wrong competitor is not timed. Returns the firing rate."""
    spikes, expected = neurons(x), LIF["loop"]()(x)
    if not torch.equal(spikes, expected):
        differ = (spikes != expected).sum().item()
        raise AssertionError(f"{name}: {differ} spikes differ from the plain loop's")
    (got,), (wanted,) = torch.autograd.grad(spikes, x, grad), torch.autograd.grad(expected, x, grad)
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-4, msg=lambda m: f"{name}: gradient: {m}")
    return spikes.mean().item()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--provider", nargs="+", choices=list(LIF))


def is_default(args: argparse.Namespace) -> bool:
    return not args.provider


def run(args: argparse.Namespace, report: Report) -> None:
    shape = cases.QUICK_LIF_SHAPE if args.quick else cases.LIF_SHAPE
    # Compiling takes longer than a quick run should.
    default = [name for name in LIF if not (args.quick and name == "compiled loop")]
    x, grad = torch.randn(shape).requires_grad_(), torch.randn(shape)
    runs: dict[str, Callable[[], object]] = {BASELINE: lambda: x.detach().clone()}
    rate = None
    for name in args.provider or default:
        try:
            neurons = LIF[name]()
        except ImportError as error:
            print(f"  {name}: left out, {error}")
            report.add([{"provider": name, "missing": str(error)}])
            continue
        rate = check(name, neurons, x, grad)
        runs[name] = forward_backward(neurons, x, grad)
    report.set("conditions", {"rounds": args.rounds, "shape": shape, "x": "standard normal", "rate": rate})
    report.set("method", timing.method(args.rounds))
    timings = timing.measure(runs, BASELINE, args.rounds)
    print(f"\nLIF on {list(shape)} standard normal currents (firing rate {rate:.2f}): forward+backward")
    for name, result in timings.items():
        row = {"provider": name} | result.as_row() | {"cost": result.cost.rounded()}
        report.add([row])
        print(f"  {name:20} {row['ms'][1]:8.3g} ms  {row['cost'][1]:6.3g}x a clone of the input")
    if "ours" in timings:
        cost = timings["ours"].cost.median
        report.target("ours, times a clone", f"<= {cases.LIF_TARGET:g}", cost, cost <= cases.LIF_TARGET)
