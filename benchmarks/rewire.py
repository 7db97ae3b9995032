"""``rewire``: what one update of the topology takes, in time and memory, and what it adds to training.

Each rule trains each layer in two processes, for time and for memory. Linux only (glibc). An update's memory is what it
takes above the layer at rest (values, gradient, Adam, index, record and batch are there), gradients followed for it
included: by resident memory, with malloc told to give back what is freed, and by the tensors that torch makes, without
what ops use inside.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import psutil
import torch
from torch import Tensor, nn

import esl_sparse as esl

from . import cases
from .allocations import Allocations
from .cases import RewireCase
from .process import answer, reset_peak, status
from .report import Report
from .timing import Quartiles, no_garbage_collection

HELP = "time and peak memory of one update by each rule, from 1 M to 1 G potential weights"

# prune and grow; None: Deep R, which rewires after every step
RULES: dict[str, tuple[str, str] | None] = {
    "random": ("set", "random"),
    "random_unfired": ("set", "random_unfired"),
    "gradient": ("set", "gradient"),
    "momentum": ("set", "momentum"),
    "momentum_neuron": ("set", "momentum_neuron"),
    "magnitude": ("magnitude", "random"),
    "DeepR": None,
}
ALPHA = 0.5  # constant: each update is as large as the first of a training
PLAIN_STEPS = 3  # before each window
UPDATES = 3
SMALL_STATE = 16e6  # bytes; below, resident memory is too coarse a measure

# Tensors of 1 MiB and more go back to the system when they are freed. By itself glibc raises that limit to the largest
# block freed so far (up to 32 MiB) and keeps what is smaller in holes of its heap: faster, but resident.
GIVE_BACK = {"MALLOC_MMAP_THRESHOLD_": "1048576"}


# ---- one rule on one layer, in its own process


def _settled() -> int:
    """Resident bytes once nothing is kept for later use; the peak starts from here."""
    gc.collect()
    esl.arena.release()
    ctypes.CDLL(None).malloc_trim(0)
    reset_peak()
    return status("VmRSS")


def _seconds(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


class Training:
    """One layer under Adam and one rule, in cycles that end with an update."""

    def __init__(self, case: RewireCase, rule: str) -> None:
        n = case.neurons
        self.model = nn.Sequential(esl.nn.SparseLinear(n, n, density=case.density, block_size=case.block))
        self.optimizer = torch.optim.Adam(self.model.parameters())
        self.x = torch.bernoulli(torch.full((case.T, case.N, n), case.rate)).requires_grad_()
        self.cotangent = torch.randn(case.T, case.N, n)
        self.window = 0
        self.plain = PLAIN_STEPS
        options = RULES[rule]
        if options is None:
            self.plain = 1
            self.evolver: esl.Rewirer | esl.DeepR = esl.DeepR(self.model, self.optimizer)
            return
        prune, grow = options
        self.window = getattr(esl.GROW_RULES[grow], "window", 0)
        self.evolver = esl.Rewirer(
            self.model,
            self.optimizer,
            prune=prune,
            grow=grow,
            alpha=ALPHA,
            schedule="constant",
            interval=self.plain + self.window,
            t_end=10**9,
        )

    def step(self) -> None:
        """One training step, but for the evolver's."""
        self.optimizer.zero_grad()
        self.x.grad = None
        self.model(self.x).backward(self.cotangent)
        self.optimizer.step()

    def update(self) -> None:
        assert self.evolver.step() is not None

    def no_update(self) -> None:
        assert self.evolver.step() is None

    def steps(self) -> Iterator[bool]:
        """Whether each training step of a cycle is watched; the evolver's step before the next, except the last."""
        for i in range(self.plain + self.window):
            if i:
                self.no_update()
            yield i >= self.plain


@dataclass
class Times:
    """Seconds, over cycles: plain steps, the first of each window, its others, updates."""

    plain: list[float] = field(default_factory=list)
    scan: list[float] = field(default_factory=list)
    tracked: list[float] = field(default_factory=list)
    update: list[float] = field(default_factory=list)
    dense_backward: list[float] = field(default_factory=list)


def timed_cycle(training: Training, times: Times) -> None:
    with no_garbage_collection():
        first = True
        for watched in training.steps():
            into = times.plain if not watched else times.scan if first else times.tracked
            first = first and not watched
            into.append(_seconds(training.step))
        times.update.append(_seconds(training.update))


def memory_cycle(training: Training) -> dict[str, int]:
    """Peaks above the layer at rest.

    ``update_*``: of the update, what is still held of its window included. ``steps_*``: of the watched steps, beyond
    what a plain step takes (0 where there is no window).
    """
    steps = training.steps()
    next(steps)
    rest = _settled()
    with Allocations() as plain:
        training.step()
    plain_rss = status("VmHWM") - rest
    at_rest = plain.live  # the gradients made anew: those that they replace were not counted
    for _ in range(training.plain - 1):
        next(steps)
        training.step()
    rest = _settled()
    with Allocations() as seen:
        for _ in steps:
            training.step()
        steps_rss = status("VmHWM") - rest
        steps_torch = seen.peak
        _settled()
        seen.peak = seen.live
        training.update()
    return {
        "update_rss": max(status("VmHWM") - rest, 0),
        "update_torch": seen.peak - (at_rest if training.window else 0),
        "steps_rss": max(steps_rss - plain_rss, 0) if training.window else 0,
        "steps_torch": max(steps_torch - plain.peak, 0),
    }


def dense_backward(case: RewireCase, x: Tensor, cotangent: Tensor) -> Callable[[], float] | None:
    """Measures seconds of one backward of the dense layer (input, weight and bias); None: it would not fit."""
    if 2.5 * 4 * case.neurons**2 > psutil.virtual_memory().available:  # weight and gradient
        return None
    dense = nn.utils.skip_init(nn.Linear, case.neurons, case.neurons)
    for param in dense.parameters():
        nn.init.constant_(param, 0.01)
    x = x.detach().requires_grad_()

    def measure() -> float:
        for leaf in (x, *dense.parameters()):
            leaf.grad = None
        y = dense(x)
        return _seconds(lambda: y.backward(cotangent))

    return measure


def _warm(case: RewireCase, rule: str) -> Training:
    """After one cycle; the libraries have loaded their code and scratch."""
    timed_cycle(Training(RewireCase(64, case.block, 0.5, 2, 2), rule), Times())
    training = Training(case, rule)
    timed_cycle(training, Times())
    return training


def measure_memory(case: RewireCase, rule: str) -> dict:
    training = _warm(case, rule)
    peaks = memory_cycle(training)
    sparse = esl.memory_report(training.model, training.optimizer, training.evolver).sparse
    (record,) = training.evolver.ever_active.values()
    (layer,) = training.model
    return {
        "state": sparse.total - sparse.ever_active,
        "record": sparse.ever_active,
        "record_is_bitmap": record.is_bitmap,
        "blocks": layer.topology.nnzb,
        **peaks,
    }


def measure_time(case: RewireCase, rule: str, updates: int) -> dict:
    training, times = _warm(case, rule), Times()
    dense = None
    if rule == "gradient":
        dense = dense_backward(case, training.x, training.cotangent)
        if dense:
            dense()
    for _ in range(updates):
        timed_cycle(training, times)
        if dense:
            times.dense_backward.append(dense())
    plain, update = statistics.median(times.plain), Quartiles.of(times.update)
    scan = statistics.median(times.scan) - plain if times.scan else 0.0
    tracked = statistics.median(times.tracked) - plain if times.tracked else 0.0
    watching = scan + len(times.tracked) / updates * tracked
    every = 1 if RULES[rule] is None else cases.REWIRE_INTERVAL
    row: dict[str, Any] = {
        "plain_ms": Quartiles.of(times.plain).rounded(1e3),
        "scan_ms": _short(scan * 1e3),
        "tracked_ms": _short(tracked * 1e3),
        "update_ms": update.rounded(1e3),
        "overhead": _short((watching + update.median) / (every * plain)),
    }
    if times.dense_backward:
        row["dense_backward_ms"] = Quartiles.of(times.dense_backward).rounded(1e3)
        ratios = [(scan + u) / d for u, d in zip(times.update, times.dense_backward, strict=True)]
        row["of_dense_backward"] = Quartiles.of(ratios).rounded()
    return row


def _short(value: float) -> float:
    return float(f"{value:.4g}")


def _child(request: str) -> None:
    options = json.loads(request)
    torch.set_num_threads(options["threads"])
    torch.manual_seed(options["seed"])
    case, rule, updates = RewireCase(*options["case"]), options["rule"], options["updates"]
    print(json.dumps(measure_time(case, rule, updates) if updates else measure_memory(case, rule)))


# ---- the table


def measured(case: RewireCase, rule: str, args: argparse.Namespace) -> dict:
    """A row: times and memory, each from a process of its own."""
    row = {**case._asdict(), "rule": rule}
    for updates, variables in ((args.updates, {}), (0, GIVE_BACK)):
        request = {"case": case, "rule": rule, "updates": updates, "threads": args.threads, "seed": args.seed}
        row |= answer([sys.executable, "-m", "benchmarks.rewire", json.dumps(request)], variables)
        if "error" in row:
            break
    return row


def extra(row: dict) -> float:
    """An update's memory, times the weight state: the larger measure, or torch's where the state is small."""
    by_torch, by_rss = (row[name] / row["state"] for name in ("update_torch", "update_rss"))
    return by_torch if row["state"] < SMALL_STATE else max(by_torch, by_rss)


def misses(row: dict) -> list[str]:
    """The targets that a row is over."""
    bound = cases.REWIRE_OVERHEAD_TARGETS.get(row["rule"])
    return [
        *(["memory"] if extra(row) > cases.REWIRE_MEMORY_TARGET else []),
        *(["dense backward"] if row.get("of_dense_backward", [0, 0])[1] > cases.REWIRE_DENSE_TARGET else []),
        *(["training"] if bound is not None and row["overhead"] > bound else []),
    ]


COLUMNS = ("plain ms", "scan +", "tracked +", "update ms", "overhead", "rss/state", "torch", "steps rss")
COLUMNS = (*COLUMNS, "torch", "record", "of dense backward")


def print_row(row: dict) -> None:
    if "error" in row:
        print(f"{row['rule']:16}  {row['error']}", flush=True)
        return
    cells = [f"{row['plain_ms'][1]:.4g}"]
    cells += [f"{row[name]:.3g}" if row[name] else "" for name in ("scan_ms", "tracked_ms")]
    cells += [f"{row['update_ms'][1]:.4g}", f"{row['overhead']:.2%}"]
    shares = ("update_rss", "update_torch", "steps_rss", "steps_torch", "record")
    cells += [f"{row[name] / row['state']:.2f}x" for name in shares]
    cells += [f"{row['of_dense_backward'][1]:.2f}x" if "of_dense_backward" in row else ""]
    over = misses(row)
    line = f"{row['rule']:16}" + "".join(
        f"{cell:>{max(10, len(name) + 1)}}" for name, cell in zip(COLUMNS, cells, strict=True)
    )
    print(f"{line}  {'OVER: ' + ', '.join(over) if over else ''}".rstrip(), flush=True)


def record_limits(rows: list[dict]) -> dict[str, float]:
    """By block, the density below which a record of everything (a bitmap) takes more than an update may."""
    of_block = {row["block"]: row["state"] / row["blocks"] for row in rows}
    return {
        f"{block}x{block}": _short(1 / (8 * cases.REWIRE_MEMORY_TARGET * size))
        for block, size in of_block.items()
    }


def _worst(
    report: Report, rows: list[dict], what: str, bound: float, value: Callable[[dict], float], unit: float = 1
) -> None:
    worst = max(rows, key=value, default=None)
    if worst is None:
        report.target(what, f"<= {bound * unit:g}", None, None)
        return
    over = sum(value(row) > bound for row in rows)
    case = RewireCase(*(worst[name] for name in RewireCase._fields))
    where = f"{what} (largest of {len(rows)}: {worst['rule']}, {case}; {over} over)"
    report.target(where, f"<= {bound * unit:g}", value(worst) * unit, over == 0)


def print_summary(report: Report, rows: list[dict]) -> None:
    what = "extra memory of an update, times the weight state"
    _worst(report, rows, what, cases.REWIRE_MEMORY_TARGET, extra)
    limits = record_limits(rows)
    report.set("record_limits", limits)
    for block, density in limits.items():
        print(f"    a bitmap of all {block} blocks takes that much by itself below density {density:g}")
    dense = [row for row in rows if "of_dense_backward" in row]
    what = "scan and update by gradient, times one dense backward"
    _worst(report, dense, what, cases.REWIRE_DENSE_TARGET, lambda row: row["of_dense_backward"][1])
    for rule, bound in cases.REWIRE_OVERHEAD_TARGETS.items():
        ours = [row for row in rows if row["rule"] == rule]
        what = f"{rule}: % of training at interval {cases.REWIRE_INTERVAL}"
        _worst(report, ours, what, bound, lambda row: row["overhead"], 100)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--neurons", nargs="+", type=int, help="sizes instead of all")
    parser.add_argument("--block", nargs="+", type=int)
    parser.add_argument("--density", nargs="+", type=float)
    parser.add_argument("--rule", nargs="+", choices=list(RULES))
    parser.add_argument("--updates", type=int, default=UPDATES, help="timed updates, after one more")


def is_default(args: argparse.Namespace) -> bool:
    return not (args.neurons or args.block or args.density or args.rule)


def selected(args: argparse.Namespace) -> list[RewireCase]:
    if args.quick:
        return cases.QUICK_REWIRE_CASES
    wanted = {name: getattr(args, name) for name in ("neurons", "block", "density")}
    chosen = [
        case
        for case in cases.REWIRE_CASES
        if all(not values or getattr(case, name) in values for name, values in wanted.items())
    ]
    if not chosen:
        raise SystemExit("no case passes the filters; the table stands in benchmarks/cases.py")
    return chosen


def run(args: argparse.Namespace, report: Report) -> None:
    args.updates = 1 if args.quick else args.updates
    rules = args.rule or (cases.QUICK_REWIRE_RULES if args.quick else list(RULES))
    conditions = {"updates": args.updates, "alpha": ALPHA, "interval": cases.REWIRE_INTERVAL}
    conditions |= {"environment of the memory process": GIVE_BACK}
    report.set("conditions", {**conditions, "optimiser": "torch.optim.Adam, defaults"})
    report.set("method", f"medians of {args.updates} updates after one; a process for time, one for memory")
    for case in selected(args):
        print(f"\n{case}; {case.T * case.N} lanes, firing rate {case.rate:g}")
        print(f"{'rule':16}" + "".join(f"{name:>{max(10, len(name) + 1)}}" for name in COLUMNS))
        for rule in rules:
            row = measured(case, rule, args)
            print_row(row)
            report.add([row])
    print()
    print_summary(report, [row for row in report.rows if "error" not in row])


if __name__ == "__main__":
    _child(sys.argv[1])
