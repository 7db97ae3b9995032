"""Training steps of one network by several libraries: time, peak memory, and where ours spends it."""

from __future__ import annotations

import argparse
import copy
import json
from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor, nn

import esl_sparse as esl

from . import networks, timing
from .breakdown import OPTIMIZER, Clock, breakdown
from .cases import NetworkCase
from .process import after_torch, status
from .report import Report

MB = 1e6
STEPS_FOR_PEAK = 3


class Step:
    """One step of training: forward, TET loss, backward, Adam."""

    def __init__(self, case: NetworkCase, provider: str, seed: int) -> None:
        torch.manual_seed(seed)  # the dense networks are the same
        self.model = networks.PROVIDERS[provider](networks.dense(case))
        self.loss = esl.nn.TETLoss()
        self.optimizer = torch.optim.Adam(self.model.parameters())

    def __call__(self, x: Tensor, target: Tensor, clock: Clock | None = None) -> Tensor:
        self.optimizer.zero_grad()
        loss = self.loss(self.model(x), target)
        loss.backward()
        if clock is None:
            self.optimizer.step()
        else:
            clock.timed(OPTIMIZER, self.optimizer.step)
        return loss


def check(case: NetworkCase, steps: dict[str, Step]) -> None:
    """On a few samples, each dense network gives the first one's loss and gradients, ours those of its dense copy.

    Without a flipped spike they agree to 1e-6, but rounding flips a few: .07 was seen. Gradients are those of the
    norms, which all networks have.
    """
    x, target = networks.batch(case._replace(N=min(case.N, 4)))

    def found(model: nn.Module) -> Tensor:
        model = copy.deepcopy(model)
        loss = esl.nn.TETLoss()(model(x), target)
        norms = [m.weight for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
        return torch.stack([loss, *(grad.norm() for grad in torch.autograd.grad(loss, norms))]).detach()

    expected = None
    for name, step in steps.items():
        if name == "torch compiled":
            continue  # for another size it would be compiled anew; its parts are those of `torch`
        got = found(step.model)
        if name in networks.OURS:
            esl.densify(own := copy.deepcopy(step.model))
            wanted = found(own)
        else:
            wanted = expected = got if expected is None else expected
        torch.testing.assert_close(
            got, wanted, rtol=0.2, atol=1e-6, msg=lambda text, name=name: f"{name} differs from dense: {text}"
        )


class Found(NamedTuple):
    """Networks that could be built, and why others could not."""

    steps: dict[str, Step]
    missing: dict[str, str]


def build(case: NetworkCase, providers: Iterable[str], seed: int) -> Found:
    found = Found({}, {})
    for name in providers:
        try:
            found.steps[name] = Step(case, name, seed)
        except ImportError as error:
            found.missing[name] = str(error)
    return found


def peak(case: NetworkCase, provider: str, args: argparse.Namespace) -> dict:
    """``peak``: bytes resident above ``import torch`` at the highest, in a process that takes a few steps."""
    request = {"case": case, "provider": provider, "threads": args.threads, "seed": args.seed}
    return after_torch("benchmarks.training", request)


def child(held: int, request: str) -> None:
    options = json.loads(request)
    torch.set_num_threads(options["threads"])
    case = NetworkCase(*options["case"])
    step = Step(case, options["provider"], options["seed"])
    x, target = networks.batch(case)
    for _ in range(STEPS_FOR_PEAK):
        step(x, target)
    print(json.dumps({"peak": status("VmHWM") - held}))


def measure(
    case: NetworkCase, found: Found, baselines: tuple[str, ...], args: argparse.Namespace
) -> list[dict]:
    """A row for each network: ms, times faster than each baseline, multiply-adds left of dense, peak memory."""
    x, target = networks.batch(case)
    runs = {name: (lambda step=step: step(x, target)) for name, step in found.steps.items()}
    baselines = tuple(name for name in baselines if name in runs) or tuple(runs)[:1]
    timings = timing.measure(runs, baselines[0], args.rounds)
    positions = networks.positions(case)
    full = networks.multiply_adds(networks.dense(case), positions)
    rows = []
    for name, step in found.steps.items():
        row = {**case._asdict(), "provider": name, **timings[name].as_row()}
        for base in baselines:
            _, beside = timing.beside_fastest(timings, [base])
            row[f"times {base}"] = beside[name].speedup.rounded()
        if name in networks.OURS:
            row["multiply_adds"] = round(networks.multiply_adds(step.model, positions) / full, 4)
        # A process takes longer than a quick run should.
        rows.append(row if args.quick and name != [*found.steps][-1] else row | peak(case, name, args))
    rows += [{**case._asdict(), "provider": name, "missing": why} for name, why in found.missing.items()]
    return rows


def print_rows(case: NetworkCase, rows: list[dict]) -> None:
    columns = dict.fromkeys(key for row in rows for key in row if key.startswith("times "))
    print(f"\n{case}: one step with Adam, median; peak memory above `import torch`, each in its own process")
    header = "".join(f"{name:>22}" for name in columns)
    print(f"{'':16}{'ms':>10}{header}{'peak MB':>10}   multiply-adds")
    for row in rows:
        if "missing" in row:
            print(f"{row['provider']:16} left out: {row['missing']}")
            continue
        cells = []
        for column in columns:
            ratio = row[column][1]
            cells.append(
                f"{ratio:.2f}x" + (" LOSES" if ratio < 1 and row["provider"] in networks.OURS else "")
            )
        shown = f"{row['peak'] / MB:10.0f}" if "peak" in row else f"  {row.get('error', ''):>8}"
        left = row.get("multiply_adds")
        bound = f"   {left:.1%} left: {1 / left:.2f}x by them alone" if left else ""
        mark = "*" if row["runs"] == 1 else ""
        print(
            f"{row['provider']:16}{row['ms'][1]:>9.4g}{mark:1}"
            + "".join(f"{c:>22}" for c in cells)
            + shown
            + bound
        )


def times(rows: list[dict], ours: str, other: str) -> float | None:
    """How many times faster one provider was than another, median."""
    row = next((row for row in rows if row["provider"] == ours), {})
    return row[f"times {other}"][1] if f"times {other}" in row else None


def parts(case: NetworkCase, name: str, step: Step, rounds: int) -> list[dict]:
    """The breakdown of one of our networks."""
    x, target = networks.batch(case)
    return [
        {**case._asdict(), "provider": name, **row}
        for row in breakdown(lambda clock: step(x, target, clock), rounds)
    ]


def print_parts(name: str, rows: list[dict]) -> None:
    print(f"\nwhere a step of {name} goes; grad-input and grad-values are timed one after the other")
    for row in rows:
        calls = f"{row['calls']} calls" if row["calls"] else ""
        print(f"  {row['op']:20}{row['ms']:9.4g} ms{row['share']:8.1%}  {calls}")


def run_cases(
    args: argparse.Namespace,
    report: Report,
    chosen: Iterable[NetworkCase],
    providers: Iterable[str],
    baselines: tuple[str, ...],
) -> None:
    """Time, memory and breakdown of every case."""
    report.set(
        "conditions", {"rounds": args.rounds, "rule": timing.RULE, "optimiser": "torch.optim.Adam, defaults"}
    )
    report.set("method", f"{timing.method(args.rounds)}; peaks: resident memory of one process each")
    broken_down: list[dict] = []
    for case in chosen:
        found = build(case, providers, args.seed)
        check(case, found.steps)
        rows = measure(case, found, baselines, args)
        report.add(rows)
        print_rows(case, rows)
        for name, step in found.steps.items():
            if name in networks.OURS:
                rows = parts(case, name, step, args.rounds)
                print_parts(name, rows)
                broken_down += rows
        report.set("breakdown", broken_down)
    print()
