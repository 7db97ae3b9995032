"""``showcase``: test accuracy over time of one SpikingJelly script: dense, masked, sparse, sparse and rewired.

The script is ``examples/spikingjelly_three_lines.py``. Each variant trains in its own process for the same time, with a
learning rate that falls to zero at its end; the clock stands still while accuracy is measured. Linux only.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize

import esl_sparse as esl
import esl_sparse.data
from esl_sparse.data import Dataset, Split
from esl_sparse.rewire import DISTRIBUTIONS

from .process import ROOT, after_torch, status
from .providers import spikingjelly
from .report import Report

HELP = "test accuracy over training time of a SpikingJelly script, dense, masked and with our three lines"
VARIANTS = ("dense", "mask", "static", "ours")
SECONDS = 150.0
DENSITY = 0.1
UPDATES = 8
POINTS = 8  # of a curve, each measured on this many test samples; the last on all
POINT_SAMPLES = 1000
MB = 1e6


# ---- one variant, in its own process


class _Mask(nn.Module):
    """Sparse training as it is usually done."""

    mask: Tensor

    def __init__(self, weight: Tensor, density: float) -> None:
        super().__init__()
        self.register_buffer("mask", (torch.rand_like(weight) < density).float())

    def forward(self, weight: Tensor) -> Tensor:
        return weight * self.mask


def _masked(net: nn.Module) -> None:
    """Random masks at the densities that :func:`esl_sparse.sparsify` would give the layers."""
    layers = [m for m in net.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    densities = DISTRIBUTIONS.resolve("erk")([tuple(m.weight.shape) for m in layers], DENSITY)
    for module, density in zip(layers, densities, strict=True):
        with torch.no_grad():
            module.weight.mul_(1 / math.sqrt(density))  # the fan-in is smaller
        parametrize.register_parametrization(module, "weight", _Mask(module.weight, density))


def _script() -> ModuleType:
    path = ROOT / "examples" / "spikingjelly_three_lines.py"
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _data(quick: bool) -> Dataset:
    if not quick:
        return esl.data.load("dvs-fashion-mnist")
    frames, labels = torch.randint(2, (96, 2, 2, 8, 8), dtype=torch.uint8), torch.randint(10, (96,))
    split = Split(frames, labels, Tensor.float)
    return Dataset("noise", "made here", split, split, 10)


@dataclass
class Training:
    """What the script's loop is made of; ``rewirer`` for ours only."""

    script: ModuleType
    net: nn.Module
    optimizer: torch.optim.Optimizer
    scheduler: Any = None
    rewirer: Any = None

    def step(self, frames: Tensor, labels: Tensor) -> None:
        loss = F.cross_entropy(self.script.outputs(self.net, frames), labels)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        if self.scheduler is not None:
            self.scheduler.step()
        if self.rewirer is not None:
            self.rewirer.step()


def _batches(split: Split, size: int) -> Iterator[Callable[[], tuple[Tensor, Tensor]]]:
    """Epoch after epoch, each batch made when it is called for."""
    while True:
        for index in torch.randperm(len(split)).split(size):
            yield lambda index=index: split[index]


def _start(script: ModuleType, variant: str, data: Dataset, channels: tuple[int, ...]) -> Training:
    torch.manual_seed(0)
    net = script.network(channels, data.shape[-1], data.classes)
    if variant == "mask":
        _masked(net)
    elif variant != "dense":
        esl.sparsify(net, DENSITY)
    return Training(script, net, torch.optim.Adam(net.parameters(), script.LR))


def train(variant: str, seconds: float, quick: bool) -> dict:
    """Train for about ``seconds``: as many steps as a few on another network of the kind take."""
    script, data = _script(), _data(quick)
    channels = (4, 4, 8, 8) if quick else script.CHANNELS
    batches = _batches(data.train, script.BATCH)

    trial, spent = _start(script, variant, data, channels), []
    for _ in range(5):
        start = time.perf_counter()
        trial.step(*next(batches)())
        spent.append(time.perf_counter() - start)
    each = statistics.median(spent[2:])
    steps = max(POINTS, int(seconds / each))
    del trial

    training = _start(script, variant, data, channels)
    training.scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(training.optimizer, steps)
    if variant == "ours":
        t_end = steps * 3 // 4
        training.rewirer = esl.Rewirer(
            training.net, training.optimizer, interval=max(1, t_end // UPDATES), t_end=t_end
        )
    some = data.test.subset(torch.arange(min(POINT_SAMPLES, len(data.test))))
    clock, curve = 0.0, []
    for i in range(1, steps + 1):
        start = time.perf_counter()
        training.step(*next(batches)())
        clock += time.perf_counter() - start
        if i * POINTS // steps > (i - 1) * POINTS // steps:
            found = script.accuracy(training.net, data.test if i == steps else some)
            curve.append([round(clock, 2), i, round(found, 4)])
    return {
        "steps": steps,
        "samples": steps * script.BATCH,
        "ms": float(f"{1e3 * clock / steps:.4g}"),
        "curve": curve,
    }


def child(held: int, request: str) -> None:
    options = json.loads(request)
    torch.set_num_threads(options["threads"])
    found = train(options["variant"], options["seconds"], options["quick"])
    print(json.dumps({**found, "peak": status("VmHWM") - held}))


# ---- the report


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--variant", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--seconds", type=float, default=SECONDS, help="of training, for each variant")


def is_default(args: argparse.Namespace) -> bool:
    return list(args.variant) == list(VARIANTS) and args.seconds == SECONDS


def run(args: argparse.Namespace, report: Report) -> None:
    seconds = 0.2 if args.quick else args.seconds
    report.set(
        "conditions",
        {"seconds": seconds, "density": DENSITY, "updates": UPDATES, "point_samples": POINT_SAMPLES},
    )
    report.set(
        "method",
        f"one run each, one after the other, of {seconds:g} s of training; peak resident memory above `import torch`",
    )
    try:
        spikingjelly()
    except ImportError as error:
        raise SystemExit(f"showcase: {error}") from None
    print(f"\nexamples/spikingjelly_three_lines.py for {seconds:g} s each; peak memory above `import torch`")
    print(
        f"{'':8}{'ms a step':>11}{'samples':>10}{'peak MB':>9}   accuracy over seconds; the last on all test samples"
    )
    # A process takes longer than a quick run should.
    for variant in ("mask", "ours") if args.quick else args.variant:
        request = {"variant": variant, "seconds": seconds, "threads": args.threads, "quick": args.quick}
        row = {"variant": variant, **after_torch("benchmarks.showcase", request)}
        report.add([row])
        if "error" in row:
            print(f"{variant:8} {row['error']}")
            continue
        curve = "  ".join(f"{100 * found:.1f} ({clock:.0f} s)" for clock, _, found in row["curve"])
        print(f"{variant:8}{row['ms']:11.4g}{row['samples']:10}{row['peak'] / MB:9.0f}   {curve}", flush=True)
    ended = {row["variant"]: row["curve"][-1][2] for row in report.rows if "curve" in row}
    gain = (
        100 * (ended["ours"] - ended["dense"])
        if {"ours", "dense"} <= ended.keys() and not args.quick
        else None
    )
    report.target(
        "accuracy of ours less that of dense after the same time, points", ">= 0", gain, gain and gain >= 0
    )
