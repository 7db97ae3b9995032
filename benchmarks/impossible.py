"""``impossible``: a layer of 4.3 billion potential weights is trained and rewired in a few hundred MB.

One process trains a 65,536 -> 65,536 linear layer with LIF under Adam; three rules rewire it, one after the other.
Memory is resident memory above what the process held right after ``import torch``. Linux only.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

import esl_sparse as esl

from . import cases
from .allocations import saved_for_backward
from .cases import ImpossibleCase
from .memory import MB, _bytes
from .process import after_torch, reset_peak, status
from .report import Report
from .rewire import GIVE_BACK

HELP = "a 65,536 x 65,536 layer, trained and rewired in one process: peak memory, seconds"

# What the process holds in the end, as in `memory`. ``record``: of what was ever active, the largest of the three
# rules'. ``libraries``: what importing takes. ``other``: the rest of the peak: code that ran, temporaries, what malloc
# still holds.
PARTS = (
    "values",
    "gradients",
    "optimizer",
    "index",
    "record",
    "batch",
    "saved",
    "arena",
    "libraries",
    "other",
)
LIBRARIES = ("import esl_sparse", "torch.optim.Adam")  # the first optimiser made imports torch._dynamo

ENVIRONMENTS = {
    " ".join(f"{name}={value}" for name, value in GIVE_BACK.items()): GIVE_BACK,
    "glibc's defaults": {},
}

# ---- the training, in its own process


class Phases:
    """Peak resident memory of one phase after the other, above ``held``."""

    def __init__(self, held: int) -> None:
        self.held = held
        self.rows: list[dict] = []

    def end(self, phase: str, *seconds: float) -> None:
        """What ran since the last call, and what it took."""
        before = self.rows[-1]["after"] if self.rows else 0
        peak, after = (status(name) - self.held for name in ("VmHWM", "VmRSS"))
        spent = [float(f"{s:.4g}") for s in seconds]
        self.rows.append(
            {"phase": phase, "peak": peak, "after": after, "grown": after - before, "seconds": spent}
        )
        reset_peak()


def _seconds(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def train(case: ImpossibleCase, held: int) -> dict:
    """All phases; ``held``: bytes resident when only torch was imported."""
    phases = Phases(held)
    phases.end("import esl_sparse")
    layer = esl.nn.SparseLinear(case.neurons, case.neurons, density=case.density, block_size=case.block)
    model = nn.Sequential(layer, esl.nn.LIF())
    x = torch.bernoulli(torch.full((case.T, case.N, case.neurons), case.rate))
    target = torch.rand(case.N, case.neurons)
    phases.end("layer and batch")
    optimizer = torch.optim.Adam(model.parameters(), lr=case.lr)
    phases.end("torch.optim.Adam")  # imports torch._dynamo
    losses: list[float] = []
    record = 0
    for grow, interval, iterations in cases.IMPOSSIBLE_PHASES:
        rewirer = esl.Rewirer(model, optimizer, grow=grow, interval=interval, t_end=3 * interval)
        for i in range(1, iterations + 1):
            due = i % interval == 0
            kind = f"watched step, {grow}" if due and grow == "gradient" else "plain step"
            phases.end(kind, _seconds(lambda: losses.append(_step(model, optimizer, x, target))))
            seconds = _seconds(rewirer.step)
            if due:
                phases.end(f"update, {grow}", seconds)
        record = max(record, *(one.nbytes for one in rewirer.ever_active.values()))

    sparse = esl.memory_report(model, optimizer).sparse
    parameters, buffers = list(model.parameters()), list(model.buffers())
    parts = {name: getattr(sparse, name) for name in ("values", "gradients", "optimizer", "index")}
    parts["record"] = record
    parts["batch"] = _bytes([x, target])
    saved = saved_for_backward(model, x, [*parameters, *buffers, x, target])
    parts["saved"] = sum(storage.nbytes() for storage in saved)
    parts["arena"] = esl.arena.bytes
    parts["libraries"] = sum(row["grown"] for row in phases.rows if row["phase"] in LIBRARIES)
    peak = max(row["peak"] for row in phases.rows)
    parts["other"] = peak - sum(parts.values())
    return {"held": held, "peak": peak, "parts": parts, "losses": losses, "phases": phases.rows}


def _step(model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, target: Tensor) -> float:
    optimizer.zero_grad()
    loss = (model(x).mean(0) - target).square().mean()
    loss.backward()
    optimizer.step()
    return loss.item()


def child(held: int, request: str) -> None:
    options = json.loads(request)
    torch.set_num_threads(options["threads"])
    torch.manual_seed(options["seed"])
    print(json.dumps(train(ImpossibleCase(*options["case"]), held)))


# ---- the report


def merged(phases: Iterable[dict]) -> list[dict]:
    """Phases of one name together: the largest peak, all seconds."""
    rows: dict[str, dict] = {}
    for phase in phases:
        row = rows.setdefault(phase["phase"], {"phase": phase["phase"], "peak": 0, "seconds": []})
        row["peak"] = max(row["peak"], phase["peak"])
        row["after"] = phase["after"]
        row["seconds"] += phase["seconds"]
    return list(rows.values())


def add_arguments(parser: argparse.ArgumentParser) -> None:
    pass


def is_default(args: argparse.Namespace) -> bool:
    return True


def print_found(found: dict, rows: list[dict]) -> None:
    print(f"{'phase':28}{'peak':>8}{'after':>8}  seconds (median)")
    for row in rows:
        seconds = f"{statistics.median(row['seconds']):9.4g}" if row["seconds"] else ""
        print(f"{row['phase']:28}{row['peak'] / MB:8.1f}{row['after'] / MB:8.1f}{seconds}")
    print("the peak's parts: " + ", ".join(f"{name} {found['parts'][name] / MB:.1f}" for name in PARTS))
    print(f"loss {found['losses'][0]:.4g} at first, {found['losses'][-1]:.4g} in the end", flush=True)


def run(args: argparse.Namespace, report: Report) -> None:
    case = cases.QUICK_IMPOSSIBLE_CASE if args.quick else cases.IMPOSSIBLE_CASE
    iterations = sum(iterations for *_, iterations in cases.IMPOSSIBLE_PHASES)
    report.set("conditions", {"case": case._asdict(), "phases": cases.IMPOSSIBLE_PHASES, "dense": case.dense})
    report.set("method", "peak resident memory of one process above what it held right after `import torch`")
    print(f"\n{case}; Adam; {iterations} iterations; its dense training state: {case.dense / 1e9:.1f} GB")
    print("MB (1e6 bytes) above what the process held right after `import torch`")
    request = {"case": case, "threads": args.threads, "seed": args.seed}
    memory, losses = {}, {}
    for environment, variables in ENVIRONMENTS.items():
        print(f"\n{environment}")
        found = after_torch("benchmarks.impossible", request, variables)
        if "error" in found:
            report.add([{"environment": environment, **found}])
            print(found["error"])
            continue
        rows = merged(found["phases"])
        print_found(found, rows)
        report.add([{"environment": environment, **row} for row in rows])
        memory[environment] = {name: found[name] for name in ("held", "peak", "parts")}
        losses[environment] = found["losses"]
    report.set("memory", memory)
    report.set("losses", {name: [float(f"{x:.4g}") for x in found] for name, found in losses.items()})
    print()
    for environment in ENVIRONMENTS:
        peak = memory[environment]["peak"] / MB if environment in memory and not args.quick else None
        bound = cases.IMPOSSIBLE_TARGET
        met = None if peak is None else peak <= bound
        report.target(f"peak memory, MB ({environment})", f"<= {bound:g}", peak, met)
    fallen = [found[-1] / found[0] for found in losses.values()]
    worst = max(fallen, default=None)
    report.target("loss in the end, of that at first", "< 1", worst, None if worst is None else worst < 1)
