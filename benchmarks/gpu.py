"""``gpu``: layers, a VGGSNN step, lif and a rewire on a GPU, beside cuBLAS, cuDNN and SpikingJelly.

Times are those of CUDA events, after a write that empties the L2 cache; ratios as everywhere in interleaved rounds.
"""

from __future__ import annotations

import argparse
import functools
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import esl_sparse as esl
from esl_sparse.ops.conv2d import conv2d_panels
from esl_sparse.ops.linear.op import linear_packed
from esl_sparse.ops.pack.op import to_panels_op

from . import cases, linear, networks, timing
from .cases import ConvCase, LinearCase, NetworkCase
from .providers import LIF, sparse_conv
from .report import Report

HELP = "on a GPU: linear and conv2d by block and density, a step of VGGSNN, lif, one rewire"
ROUNDS = 20
PARTS = ("linear", "step", "lif", "rewire", "conv")  # the longest last
DENSE = "dense"
FORWARD, BOTH = linear.MODES
L2_BYTES = 256 << 20  # larger than any cache

Run = Callable[[], object]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--part", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--device", default="cuda", help="cpu only shows whether it runs")


def is_default(args: argparse.Namespace) -> bool:
    return list(args.part) == list(PARTS) and args.device == "cuda"


def clock(device: str) -> Callable[[Run], float]:
    """Seconds that a call takes on the device, from cold caches."""
    if device == "cpu":
        return timing.once
    flushed = torch.empty(L2_BYTES, dtype=torch.uint8, device=device)

    def seconds(run: Run) -> float:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        flushed.zero_()
        start.record()
        run()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1e3

    return seconds


def _modes(layer: Callable[[Tensor | esl.PackedSpikes], Tensor], x: Any, leaves: list[Tensor], grad: Tensor):
    """Forward alone, and forward and backward to the input (or its carrier) and the weight."""

    def forward() -> Tensor:
        with torch.no_grad():
            return layer(x)

    return {FORWARD: forward, BOTH: lambda: torch.autograd.grad(layer(x), leaves, grad)}


def _rows(conditions: dict, modes: dict[str, dict[str, Run]], args: argparse.Namespace) -> Iterator[dict]:
    """By provider and mode; a provider that fails says why."""
    for mode in (FORWARD, BOTH):
        runs = {}
        for name, by_mode in modes.items():
            try:
                by_mode[mode]()
                runs[name] = by_mode[mode]
            except Exception as error:  # whatever it is, the others are measured
                if name == DENSE:
                    raise
                yield {
                    **conditions,
                    "mode": mode,
                    "provider": name,
                    "error": f"{type(error).__name__}: {error}",
                }
        for name, found in timing.measure(runs, DENSE, args.rounds, clock=clock(args.device)).items():
            row = {**conditions, "mode": mode, "provider": name, **found.as_row()}
            yield row | {"speedup": found.speedup.rounded()}


# ---- layers: bits in and panels out, in bfloat16


def linear_part(args: argparse.Namespace, report: Report) -> None:
    case, blocks, densities = (
        (LinearCase(64, 64, 128, 0.1), (16, 4), (0.5, 0.1)) if args.quick else cases.GPU_LINEAR
    )
    T = 4
    x = torch.bernoulli(torch.full((T, case.lanes // T, case.inputs), case.rate)).bfloat16()
    grad = torch.randn(case.lanes, case.outputs).bfloat16()
    rows = x.flatten(0, 1).requires_grad_()
    weight = nn.Parameter(torch.randn(case.outputs, case.inputs).bfloat16())
    grad_panels = to_panels_op(grad.view(T, -1, case.outputs, 1, 1))
    for density in densities:
        modes = {DENSE: _modes(functools.partial(F.linear, weight=weight), rows, [rows, weight], grad)}
        for block in blocks:
            options = {"density": density, "block_size": block, "dtype": torch.bfloat16}
            layer = esl.nn.SparseLinear(case.inputs, case.outputs, bias=False, **options)
            spikes = _packed(x[..., None, None])
            run = functools.partial(
                linear_packed, values=layer.values, bias=None, topology=layer.topology, panels=True
            )
            modes[f"{block}x{block}"] = _modes(run, spikes, [spikes.carrier, layer.values], grad_panels)
        conditions = {"part": "linear", **case._asdict(), "density": density}
        _add(report, str(case), list(_rows(conditions, modes, args)))


def conv_part(args: argparse.Namespace, report: Report) -> None:
    shapes, blocks, densities = (
        (cases.QUICK_CONV_CASES, (16, 4), (0.5, 0.1)) if args.quick else cases.GPU_CONV
    )
    for case in shapes:
        for density in densities:
            _conv(case, density, blocks, args, report)


def _conv(case: ConvCase, density: float, blocks, args: argparse.Namespace, report: Report) -> None:
    T, rate = cases.CONV_STEPS, cases.CONV_RATES[1]
    side = case.size * (2 if case.pooled else 1)
    x = torch.bernoulli(torch.full((case.lanes, case.inputs, side, side), rate))
    x = (F.avg_pool2d(x, 2) if case.pooled else x).bfloat16()
    out = (case.size - 1) // case.stride + 1
    grad = torch.randn(case.lanes, case.outputs, out, out).bfloat16()
    last = [t.contiguous(memory_format=torch.channels_last) for t in (x, grad)]
    maps = last[0].requires_grad_()
    dense = nn.Conv2d(case.inputs, case.outputs, case.kernel, case.stride, case.kernel // 2, bias=False)
    dense = dense.to(dtype=torch.bfloat16, memory_format=torch.channels_last)
    modes = {DENSE: _modes(dense, maps, [maps, dense.weight], last[1])}
    grad_panels = to_panels_op(grad.unflatten(0, (T, -1)))
    for block in blocks:
        layer = sparse_conv(case, density, block).bfloat16()
        spikes = _packed(x.unflatten(0, (T, -1)))
        geometry = layer.geometry(*spikes.words.shape[2:4])

        def run(spikes, layer=layer, geometry=geometry) -> Tensor:
            return conv2d_panels(spikes, layer.values, None, layer.topology, geometry)[0]

        modes[f"{block}x{block}"] = _modes(run, spikes, [spikes.carrier, layer.values], grad_panels)
    conditions = {"part": "conv", **case._asdict(), "density": density}
    _add(report, str(case), list(_rows(conditions, modes, args)))


def _packed(x: Tensor) -> esl.PackedSpikes:
    spikes = esl.functional.pack(x)
    carrier = x.new_zeros(1).expand(spikes.carrier.shape).requires_grad_()
    return esl.PackedSpikes(carrier, spikes.words, spikes.T, spikes.B, spikes.scale)


def _add(report: Report, title: str, rows: list[dict]) -> None:
    print(f"{title}, density {rows[0]['density']:g}")
    for mode in (FORWARD, BOTH):
        of_mode = [row for row in rows if row["mode"] == mode]
        shown = [f"{row['provider']} {row['error']}" for row in of_mode if "error" in row]
        measured = [row for row in of_mode if "error" not in row]
        shown += [f"{row['provider']} {linear.cell(row)}" for row in measured]
        print(f"  {mode:17} " + "   ".join(shown), flush=True)
    report.add(rows)


# ---- a whole step


def _step_providers(case: NetworkCase, quick: bool) -> dict[str, Callable[[], nn.Module]]:
    def jelly(backend: str) -> Callable[[], nn.Module]:
        def build() -> nn.Module:
            model = networks.jelly(networks.dense(case))
            for module in model.modules():
                if hasattr(module, "supported_backends"):
                    module.backend = backend
            return model

        return build

    made = {
        "torch": lambda: networks.plain(networks.dense(case)),
        "ERK 0.1": lambda: networks.sparse("erk", 0.1, networks.dense(case)),
        "SpikingJelly torch": jelly("torch"),
    }
    if quick:
        return made
    made["torch compiled"] = lambda: networks.compiled(networks.dense(case))
    return made | {f"SpikingJelly {name}": jelly(name) for name in ("cupy", "triton")}


def step_part(args: argparse.Namespace, report: Report) -> None:
    """Forward, TET loss, backward and Adam, in bfloat16 by autocast; each network alone on the device."""
    case = cases.QUICK_VGGSNN_CASES[0] if args.quick else cases.GPU_STEP
    x, target = networks.batch(case)
    for name, build in _step_providers(case, args.quick).items():
        row: dict[str, Any] = {"part": "step", **case._asdict(), "provider": name}
        try:
            row |= _step(build(), x, target, args)
        except ImportError as error:
            row["missing"] = str(error)
        except Exception as error:  # whatever it is, the others are measured
            row["error"] = f"{type(error).__name__}: {error}"
        torch._dynamo.reset()
        print(
            f"{case}: {name:20} {row.get('error') or '{ms[1]:.1f} ms, {peak:.0f} MB'.format(**row)}",
            flush=True,
        )
        report.add([row])


def _step(model: nn.Module, x: Tensor, target: Tensor, args: argparse.Namespace) -> dict:
    loss, optimizer = esl.nn.TETLoss(), torch.optim.Adam(model.parameters())
    cuda = args.device != "cpu"

    def step() -> None:
        optimizer.zero_grad()
        with torch.autocast(x.device.type, torch.bfloat16):
            found = loss(model(x), target)
        found.backward()
        optimizer.step()

    for _ in range(3):
        step()
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    seconds = [clock(args.device)(step) for _ in range(args.rounds)]
    peak = torch.cuda.max_memory_allocated() / 1e6 if cuda else 0.0
    return {**timing.Timing(seconds, seconds).as_row(), "peak": peak}


# ---- lif and a rewire


def lif_part(args: argparse.Namespace, report: Report) -> None:
    shape = cases.QUICK_LIF_SHAPE if args.quick else cases.GPU_LIF_SHAPE
    x = torch.randn(shape, requires_grad=True)
    grad, ours = torch.randn(shape), LIF["ours"]()
    copied = torch.empty_like(x)
    runs: dict[str, Run] = {
        DENSE: lambda: copied.copy_(x.detach()),
        "forward": lambda: ours(x.detach()),
        "forward+backward": lambda: torch.autograd.grad(ours(x), x, grad),
    }
    for name, found in timing.measure(runs, DENSE, args.rounds, clock=clock(args.device)).items():
        row = {"part": "lif", "shape": shape, "provider": "copy" if name == DENSE else name}
        report.add([row | found.as_row() | {"cost": found.cost.rounded()}])
        print(f"lif {shape}: {row['provider']:17} {found.cost.median:.2f} copies of the input")


def rewire_part(args: argparse.Namespace, report: Report) -> None:
    neurons, block, density = (64, 4, 0.1) if args.quick else cases.GPU_REWIRE
    model = esl.nn.SparseLinear(neurons, neurons, density=density, block_size=block)
    optimizer = torch.optim.Adam(model.parameters())
    rewirer = esl.Rewirer(model, optimizer, prune="magnitude", grow="random", interval=1, t_end=10**6)
    x = torch.bernoulli(torch.full((128, neurons), 0.1))
    seconds = []
    for _ in range(args.rounds + 2):
        optimizer.zero_grad()
        model(x).sum().backward()
        optimizer.step()
        if args.device != "cpu":
            torch.cuda.synchronize()
        begin = time.perf_counter()
        rewirer.step()
        if args.device != "cpu":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - begin)
    row = {"part": "rewire", "neurons": neurons, "block": block, "density": density}
    report.add([row | timing.Timing(seconds[2:], seconds[2:]).as_row()])
    print(f"rewire {neurons}^2, {block}x{block}, density {density:g}: {report.rows[-1]['ms'][1]:.3g} ms")


# ---- all


def targets(report: Report) -> None:
    for part, provider, mode, bound in cases.GPU_TARGETS:
        ratios = [
            row["speedup"][1]
            for row in report.rows
            if (row["part"], row.get("provider"), row.get("mode")) == (part, provider, mode)
            and row["density"] == cases.CONV_TARGET_DENSITY
            and "error" not in row
        ]
        found = timing.Quartiles.of(ratios).median if ratios else None
        what = (
            f"{part}, {provider} blocks, density {cases.CONV_TARGET_DENSITY:g}, {mode}, times dense (median)"
        )
        report.target(what, f">= {bound:g}", found, None if found is None else found >= bound)
    steps = {row["provider"]: row for row in report.rows if row["part"] == "step" and "ms" in row}
    ours = steps.pop("ERK 0.1", None)
    fastest = min((row["ms"][1] for row in steps.values()), default=None)
    ratio = fastest / ours["ms"][1] if ours and fastest else None
    report.target("VGGSNN step, ERK 0.1, times the fastest dense", ">= 2", ratio, ratio and ratio >= 2)
    peak = ours["peak"] if ours else None
    report.target("VGGSNN step, ERK 0.1, MB allocated", "<= 500", peak, peak and peak <= 500)
    costs = {row["provider"]: row["cost"][1] for row in report.rows if row["part"] == "lif"}
    for name, bytes_moved in (("forward", 8), ("forward+backward", 20)):
        cost = costs[name] * 8 / bytes_moved if name in costs else None
        report.target(f"lif {name}, times a copy of the same bytes", "<= 1.3", cost, cost and cost <= 1.3)
    took = next((row["ms"][1] for row in report.rows if row["part"] == "rewire"), None)
    report.target("one rewire, ms", "<= 1", took, took and took <= 1)


def break_evens(report: Report, *parts: str) -> None:
    """The density at which each block stops being faster than dense, by part; printed and stored with the earlier."""
    found = report.content.get("break_even", [])
    for part in parts:
        rows = [row for row in report.rows if row["part"] == part and "error" not in row]
        for name in dict.fromkeys(row["provider"] for row in rows if row["provider"] != DENSE):
            for mode in (FORWARD, BOTH):
                points: dict[float, list[float]] = {}
                for row in rows:
                    if (row["provider"], row["mode"]) == (name, mode):
                        points.setdefault(row["density"], []).append(row["speedup"][1])
                medians = [(d, timing.Quartiles.of(ratios).median) for d, ratios in points.items()]
                density, sign = linear.break_even(medians)
                found.append({"part": part, "provider": name, "mode": mode, "sign": sign, "density": density})
                print(f"break-even: {part}, {name}, {mode}: density {sign} {density:.3g}")
    report.set("break_even", found)


def run(args: argparse.Namespace, report: Report) -> None:
    if args.device != "cpu" and not torch.cuda.is_available():
        sys.exit("benchmarks gpu: torch sees no GPU on this machine")
    if args.device != "cpu":
        report.set("gpu", {"name": torch.cuda.get_device_name(), "cuda": torch.version.cuda})
    report.set("method", f"{timing.method(args.rounds)}, CUDA events, L2 flushed; layers in bfloat16")
    torch.backends.cudnn.benchmark = True
    parts = {
        "linear": linear_part,
        "conv": conv_part,
        "step": step_part,
        "lif": lif_part,
        "rewire": rewire_part,
    }
    with torch.device(args.device):
        for name in args.part:
            parts[name](args, report)
            if name in ("linear", "conv"):  # at once: who stops a long run has it
                break_evens(report, name)
    targets(report)
