"""``memory``: what training a 16,384-neuron layer, or VGGSNN, costs in memory, and how that falls with density.

Each variant trains in its own process, so that a peak is its own. Peaks are resident memory above what the
process held after imports and one tiny training step (which loads the libraries' own scratch). Linux only. With
``--device cuda`` they are those of torch's allocator, which one process can tell apart.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

import esl_sparse as esl

from . import cases, networks
from .allocations import saved_for_backward
from .cases import MemoryCase, NetworkCase
from .process import answer, reset_peak, status
from .providers import LINEAR
from .report import Report

HELP = "peak training memory and samples/s of a large layer, or of VGGSNN, over density"
WARM_STEPS = 1

# The parts of a peak, in the order of the table. ``index``: of the blocks, or the mask. ``batch``: input, its
# gradient and the target. ``saved``: what forward keeps for backward beside parameters, index and batch.
# ``arena``: reused scratch. ``other``: the rest: results in flight, temporaries, what malloc still holds.
PARTS = ("weights", "gradients", "optimiser", "index", "batch", "saved", "arena", "other")
MB = 1e6


# ---- one variant, in its own process


def _bytes(tensors: Iterable[Tensor | None]) -> int:
    """Storage bytes, each storage once."""
    storages = [t.untyped_storage() for t in tensors if t is not None]
    return sum({s.data_ptr(): s.nbytes() for s in storages}.values())


def _layer(case: MemoryCase, provider: str, density: float) -> nn.Module:
    # The neurons are ours in every variant: variants differ in their weights only.
    return nn.Sequential(LINEAR[provider](case.neurons, case.neurons, density), esl.nn.LIF())


def _layer_batch(case: MemoryCase) -> tuple[Tensor, Tensor]:
    x = torch.bernoulli(torch.full((case.T, case.N, case.neurons), case.rate))
    return x.requires_grad_(), torch.rand(case.N, case.neurons)  # a gradient, as inside a deeper network


def _mean_square(y: Tensor, target: Tensor) -> Tensor:
    return (y.mean(0) - target).square().mean()


def _convolutional(case: NetworkCase, provider: str, density: float) -> nn.Module:
    model = networks.dense(case)
    if provider == "dense":
        return networks.plain(model)
    esl.sparsify(model, density, int(provider.partition("x")[0]), distribution="erk")
    return model


class Workload(NamedTuple):
    """What is trained, of a size that a case says; ``tiny`` loads the libraries' scratch first."""

    case: Any
    quick: Any
    tiny: Any
    densities: tuple[float, ...]
    providers: tuple[str, ...]
    network: Callable[[Any, str, float], nn.Module]
    batch: Callable[[Any], tuple[Tensor, Tensor]]
    loss: Callable[[Tensor, Tensor], Tensor]


MODELS = {
    "linear": Workload(
        cases.MEMORY_CASE,
        cases.QUICK_MEMORY_CASE,
        MemoryCase(64, 2, 2, cases.MEMORY_CASE.rate),
        cases.MEMORY_DENSITIES,
        ("dense", "dense+mask", "4x4", "1x1"),
        _layer,
        _layer_batch,
        _mean_square,
    ),
    "vggsnn": Workload(
        cases.VGGSNN_CASES[0],
        cases.QUICK_VGGSNN_CASES[0],
        cases.QUICK_VGGSNN_CASES[0],
        cases.VGGSNN_MEMORY_DENSITIES,
        ("dense", "4x4"),
        _convolutional,
        networks.batch,
        esl.nn.TETLoss(),
    ),
}


class Meter:
    """Bytes that this process has resident, or that torch has allocated on a GPU."""

    def __init__(self, device: str) -> None:
        self._gpu = device != "cpu"

    def now(self) -> int:
        return torch.cuda.memory_allocated() if self._gpu else status("VmRSS")

    def peak(self) -> int:
        return torch.cuda.max_memory_allocated() if self._gpu else status("VmHWM")

    def reset(self) -> None:
        torch.cuda.reset_peak_memory_stats() if self._gpu else reset_peak()

    def seconds(self, step: Callable[[], None]) -> float:
        start = time.perf_counter()
        step()
        if self._gpu:
            torch.cuda.synchronize()
        return time.perf_counter() - start


def train(
    workload: Workload, case: Any, provider: str, density: float, steps: int, device: str = "cpu"
) -> dict:
    """Train in this process; returns bytes and speed."""
    with torch.device(device):
        return _train(workload, case, provider, density, steps, Meter(device))


def _train(workload: Workload, case: Any, provider: str, density: float, steps: int, meter: Meter) -> dict:

    def step() -> None:
        optimizer.zero_grad()
        x.grad = None
        workload.loss(model(x), target).backward()
        optimizer.step()

    model = workload.network(workload.tiny, provider, 1.0)
    optimizer = torch.optim.Adam(model.parameters())
    x, target = workload.batch(workload.tiny)
    step()
    esl.arena.release()
    del model, optimizer, x, target

    baseline = meter.now()
    meter.reset()
    model = workload.network(case, provider, density)
    optimizer = torch.optim.Adam(model.parameters())
    building = meter.peak() - baseline
    x, target = workload.batch(case)
    meter.reset()
    seconds = [meter.seconds(step) for _ in range(WARM_STEPS + steps)]
    peak = meter.peak() - baseline

    parameters, buffers = list(model.parameters()), list(model.buffers())
    slots = [v for state in optimizer.state.values() for v in state.values() if isinstance(v, Tensor)]
    arena = esl.arena.bytes
    saved = saved_for_backward(model, x, [*parameters, *buffers, x, target])
    parts = {
        "weights": _bytes(parameters),
        "gradients": _bytes(p.grad for p in parameters),
        "optimiser": _bytes(slots),
        "index": _bytes(buffers),
        "batch": _bytes([x, x.grad, target]),
        "saved": sum(storage.nbytes() for storage in saved),
        # Tensors made of the arena's buffers cannot be resized; what is saved of them is counted once.
        "arena": arena - sum(storage.nbytes() for storage in saved if not storage.resizable()),
    }
    parts["other"] = peak - sum(parts.values())
    return {
        "peak": peak,
        "building": building,
        **parts,
        "step_seconds": [float(f"{s:.4g}") for s in seconds[WARM_STEPS:]],
        "samples_per_second": float(f"{case.N / statistics.median(seconds[WARM_STEPS:]):.4g}"),
    }


def _child(request: str) -> None:
    options = json.loads(request)
    torch.set_num_threads(options["threads"])
    torch.manual_seed(options["seed"])
    workload = MODELS[options["model"]]
    case = type(workload.case)(*options["case"])
    print(json.dumps(train(workload, case, options["provider"], options["density"], options["steps"])))


# ---- the sweep


def measure(provider: str, density: float, case: Any, args: argparse.Namespace) -> dict:
    """A row; where the process dies (no memory), one with ``error``."""
    if args.device != "cpu":
        try:
            found = train(MODELS[args.model], case, provider, density, args.steps, args.device)
        except torch.OutOfMemoryError as error:
            found = {"error": str(error)}
        return {"provider": provider, "density": density, **found}
    request = {"model": args.model, "provider": provider, "density": density, "case": case}
    request |= {"steps": args.steps, "threads": args.threads, "seed": args.seed}
    found = answer([sys.executable, "-m", "benchmarks.memory", json.dumps(request)])
    return {"provider": provider, "density": density, **found}


def state_ratio(row: dict, dense: dict) -> float:
    """Bytes of values, gradient, Adam and index, over the density's share of dense."""
    state = sum(row[part] for part in STATE)
    return state / sum(dense[part] for part in ("weights", "gradients", "optimiser")) / row["density"]


def fit(points: Iterable[tuple[float, float]]) -> tuple[float, float]:
    """Least-squares line through ``(density, bytes)``: slope, intercept."""
    return statistics.linear_regression(*zip(*points, strict=True))


def print_row(row: dict, dense: dict | None) -> None:
    head = f"{row['provider']:11}{row['density']:7g}"
    if "error" in row:
        print(f"{head}  {row['error']}", flush=True)
        return
    share = f"{row['peak'] / dense['peak']:6.3f}x" if dense else f"{'':7}"
    megabytes = "".join(f"{row[part] / MB:10.1f}" for part in ("building", *PARTS))
    speed = row["samples_per_second"]
    faster = f"{speed / dense['samples_per_second']:6.2f}x" if dense else ""
    print(f"{head}{row['peak'] / MB:9.1f} {share}{megabytes}{speed:10.4g} {faster}", flush=True)


STATE = ("weights", "gradients", "optimiser", "index")  # what goes with density


def print_parts(rows: list[dict]) -> None:
    """Which parts of ours change with the density."""
    state = [sum(row[part] for part in STATE) for row in rows]
    densities = [row["density"] for row in rows]
    low, high = min(densities), max(densities)
    by = " + ".join(STATE)
    print(f"  with density: {by}: {min(state) / MB:.1f} MB at {low:g}, {max(state) / MB:.1f} at {high:g}")
    for part, why in (("saved", "with bits, one a spike"), ("arena", "with the largest currents")):
        sizes = [row[part] / MB for row in rows]
        print(f"  {why}: {part}: {min(sizes):.1f} to {max(sizes):.1f} MB at any density")


def print_summary(report: Report, rows: list[dict], providers: Iterable[str]) -> None:
    dense = next((row for row in rows if row["provider"] == "dense"), None)
    fits = []
    for provider, bound in cases.STATE_TARGETS:
        if provider not in providers:
            continue
        ours = [row for row in rows if row["provider"] == provider]
        if len(ours) > 1:
            slope, intercept = fit((row["density"], row["peak"]) for row in ours)
            fits.append({"provider": provider, "slope": round(slope), "intercept": round(intercept)})
            print(f"\n{provider}: peak = {slope / MB:.0f} MB x density + {intercept / MB:.0f} MB")
            if dense:
                print(f"  dense: {dense['peak'] / MB:.0f} MB; slope {slope / dense['peak']:.3f} of it")
            print_parts(ours)
        worst = max((state_ratio(row, dense) for row in ours), default=None) if dense else None
        what = f"weight state of {provider} at density d, times d of dense"
        report.target(what, f"<= {bound:g}", worst, None if worst is None else worst <= bound)
    report.set("fits", fits)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", choices=list(MODELS), default="linear")
    parser.add_argument("--sweep", action="store_true", help="all densities, and 1x1 blocks too (linear)")
    parser.add_argument("--density", nargs="+", type=float, help="densities instead of 0.1")
    parser.add_argument("--provider", nargs="+", choices=list(LINEAR), help="instead of dense dense+mask 4x4")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--steps", type=int, default=5, help=f"timed steps, after {WARM_STEPS} more")


def is_default(args: argparse.Namespace) -> bool:
    return args.sweep and not args.density and not args.provider and args.device == "cpu"


def result_name(args: argparse.Namespace) -> str:
    return "memory" if args.model == "linear" else f"memory-{args.model}"


def variants(args: argparse.Namespace) -> list[tuple[str, float]]:
    workload = MODELS[args.model]
    densities = args.density or (workload.densities if args.sweep else (0.1,))
    # Larger blocks are what a GPU takes by itself.
    offered = workload.providers if args.device == "cpu" else (*workload.providers, "16x16")
    providers = args.provider or [name for name in offered if args.sweep or name != "1x1"]
    if unknown := set(providers) - set(offered):
        raise SystemExit(f"--provider: {args.model} has {', '.join(offered)}, not {unknown.pop()}")
    if args.quick:
        densities, providers = cases.QUICK_DENSITIES, args.provider or ["dense", "4x4"]
    chosen = []
    for provider in providers:
        if provider == "dense":
            chosen.append((provider, 1.0))
        elif provider == "dense+mask":
            chosen.append((provider, 0.1))  # neither its memory nor its time depends on the density
        else:
            chosen += [(provider, density) for density in densities]
    return chosen


def run(args: argparse.Namespace, report: Report) -> None:
    if args.device != "cpu" and not torch.cuda.is_available():
        sys.exit("benchmarks memory --device cuda: torch sees no GPU on this machine")
    workload = MODELS[args.model]
    case = workload.quick if args.quick else workload.case
    args.steps = 1 if args.quick else args.steps
    conditions = {"case": case._asdict(), "steps": args.steps, "optimiser": "torch.optim.Adam, defaults"}
    report.set("conditions", conditions)
    if args.device == "cpu":
        method = "peak resident memory above the process's own, a process for each point"
    else:
        method = "peak of what torch has allocated on the GPU, one point after the other in one process"
    report.set("method", method)
    print(f"\n{case}; Adam; MB (1e6 bytes); {method}")
    columns = "".join(f"{name:>10}" for name in ("building", *PARTS, "samples/s"))
    print(f"{'provider':11}density     peak /dense {columns}  /dense")
    dense = None
    for provider, density in variants(args):
        row = measure(provider, density, case, args)
        dense = row if provider == "dense" and "error" not in row else dense
        print_row(row, dense)
        report.add([row])
    print_summary(report, [row for row in report.rows if "error" not in row], workload.providers)


if __name__ == "__main__":
    _child(sys.argv[1])
