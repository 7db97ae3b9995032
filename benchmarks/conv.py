"""``conv``: the layers of VGGSNN and ResNet-19, the kernels from bits to panels and the layer from floats to floats."""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

import esl_sparse as esl
from esl_sparse.ops.conv2d import to_rows
from esl_sparse.ops.conv2d.op import Call, conv2d_backward_op, conv2d_op
from esl_sparse.ops.pack.op import from_panels_op, to_panels_op

from . import cases, linear, timing
from .cases import ConvCase
from .providers import DenseConv, MaskedConv, sparse_conv
from .report import Report

HELP = "VGGSNN's and ResNet-19's convolutions by density: kernels and layer, against nn.Conv2d and dense+mask"
ROUNDS = 5
KERNEL_MODES = ("forward", "grad-input", "grad-values")
MODES = (*KERNEL_MODES, "layer")
DENSE, DENSE_LAST, MASKED, OURS = "dense", "dense channels_last", "dense+mask", "ours"

Run = Callable[[], Tensor | None]


class Data(NamedTuple):
    """An input and a cotangent of the output, as torch and as our kernels take them."""

    x: Tensor
    spikes: esl.PackedSpikes
    grad: Tensor
    grad_panels: Tensor


def data(case: ConvCase, rate: float) -> Data:
    T, B = cases.CONV_STEPS, case.lanes // cases.CONV_STEPS
    side = case.size * (2 if case.pooled else 1)
    x = torch.bernoulli(torch.full((case.lanes, case.inputs, side, side), rate))
    x = F.avg_pool2d(x, 2) if case.pooled else x
    out = (case.size - 1) // case.stride + 1
    grad = torch.randn(case.lanes, case.outputs, out, out)
    spikes = esl.functional.pack(x.unflatten(0, (T, B)))
    return Data(x, spikes, grad, to_panels_op(grad.unflatten(0, (T, B))))


# ---- kernels


def dense_kernels(case: ConvCase, weight: Tensor, x: Tensor, grad: Tensor) -> dict[str, Run]:
    stride, padding = [case.stride] * 2, [case.kernel // 2] * 2

    def backward(*mask: bool) -> tuple[Tensor | None, ...]:
        rest = (None, stride, padding, [1, 1], False, [0, 0], 1, mask)
        return torch.ops.aten.convolution_backward(grad, x, weight, *rest)

    return {
        "forward": lambda: F.conv2d(x, weight, None, stride, padding),
        "grad-input": lambda: backward(True, False, False)[0],
        "grad-values": lambda: backward(False, True, False)[1],
    }


def our_kernels(layer: esl.nn.SparseConv2d, data: Data) -> dict[str, Run]:
    words, topology, values = data.spikes.words, layer.topology, layer.values.detach()
    lay, index, grad = topology.layout, topology.index_tensors(), data.grad_panels
    geometry = layer.geometry(*words.shape[2:4])
    spikes = data.spikes
    call = Call(geometry, lay.rows, lay.cols, spikes.T, spikes.B, spikes.planes, spikes.scale)
    return {
        "forward": lambda: conv2d_op(words, values, None, *index, *call, False)[0],
        "grad-input": lambda: conv2d_backward_op(grad, words, values, *index, *call, 1)[0],
        "grad-values": lambda: conv2d_backward_op(grad, words, values, *index, *call, 2)[1],
    }


def check_kernels(case: ConvCase, layer: esl.nn.SparseConv2d, data: Data, runs: Mapping[str, Run]) -> None:
    weight = layer.to_dense().weight.detach()
    expected = {mode: run() for mode, run in dense_kernels(case, weight, data.x, data.grad).items()}
    expected["grad-values"] = layer.topology.gather_dense(to_rows(expected["grad-values"]))
    for mode, run in runs.items():
        got = run()
        if mode != "grad-values":
            got = from_panels_op(got, data.spikes.T, data.spikes.B)
        linear.same(str(case), mode, got.view_as(expected[mode]), expected[mode])


# ---- one case


class Ours(NamedTuple):
    """What our runs differ in."""

    rate: float
    density: float

    def __str__(self) -> str:
        return f"{self.rate:g}/{self.density:g}"


def kernel_runs(case: ConvCase, block: int, variants: Iterable[Ours]) -> dict[str, dict[str, Run]]:
    """By mode and name: dense in both memory formats, and each of our variants by ``str()``."""
    runs: dict[str, dict[str, Run]] = {mode: {} for mode in KERNEL_MODES}
    by_rate = {rate: data(case, rate) for rate in dict.fromkeys(v.rate for v in variants)}
    found = next(iter(by_rate.values()))
    weight = torch.randn(case.outputs, case.inputs, case.kernel, case.kernel)
    for name, memory_format in ((DENSE, torch.contiguous_format), (DENSE_LAST, torch.channels_last)):
        tensors = [t.contiguous(memory_format=memory_format) for t in (weight, found.x, found.grad)]
        for mode, run in dense_kernels(case, *tensors).items():
            runs[mode][name] = run
    for variant in variants:
        layer = sparse_conv(case, variant.density, block)
        ours = our_kernels(layer, by_rate[variant.rate])
        check_kernels(case, layer, by_rate[variant.rate], ours)
        for mode, run in ours.items():
            runs[mode][str(variant)] = run
    return runs


def layer_runs(case: ConvCase, block: int, variants: Iterable[Ours]) -> dict[str, Run]:
    """As :func:`kernel_runs`, and dense+mask; forward and backward of a layer, float in and float out."""
    by_rate = {rate: data(case, rate) for rate in dict.fromkeys(v.rate for v in variants)}
    found = next(iter(by_rate.values()))
    last = DenseConv(case).to(memory_format=torch.channels_last)
    x, grad = (t.contiguous(memory_format=torch.channels_last) for t in (found.x, found.grad))
    runs = {
        DENSE: linear.forward_backward(DenseConv(case), found.x.requires_grad_(), found.grad),
        DENSE_LAST: linear.forward_backward(last, x.requires_grad_(), grad),
        MASKED: linear.forward_backward(MaskedConv(case, 0.1), found.x, found.grad),
    }
    for variant in variants:
        x, _, grad, _ = by_rate[variant.rate]
        layer = sparse_conv(case, variant.density, block)
        linear.check(str(case), layer, x, grad, lanes=8)
        runs[str(variant)] = linear.forward_backward(layer, x.requires_grad_(), grad)
    return runs


def measure(
    case: ConvCase, block: int, variants: list[Ours], mode: str, runs: Mapping[str, Run], rounds: int
):
    """Rows of one mode: the dense ones, then ours."""
    with torch.set_grad_enabled(mode == "layer"):
        timings = timing.measure(runs, DENSE, rounds)
    _, timings = timing.beside_fastest(timings, (DENSE, DENSE_LAST))
    what: dict[str, dict] = {str(v): {"provider": OURS, "block": block, **v._asdict()} for v in variants}
    for name, result in timings.items():
        row = {"case": case.label, "lanes": case.lanes, "mode": mode, **what.get(name, {"provider": name})}
        yield row | result.as_row() | {"speedup": result.speedup.rounded()}


def print_rows(rows: list[dict], mode: str) -> None:
    """One line for each rate; dense, which does not know the rate, in the first."""
    dense = {row["provider"]: linear.cell(row) for row in rows if row["provider"] != OURS}
    for rate in dict.fromkeys(row["rate"] for row in rows if row["provider"] == OURS):
        cells = [dense.pop(name, "") for name in (DENSE, DENSE_LAST, MASKED)]
        cells += [linear.cell(row) for row in rows if row.get("rate") == rate]
        print(f"{mode:12}{rate:5g} " + "".join(f"{cell:>20}" for cell in cells), flush=True)


# ---- all cases


def beside_default(rows: Iterable[dict]) -> Iterator[tuple[dict, float]]:
    """Each of our rows, and how many times faster it is than nn.Conv2d in its default memory format (of medians)."""
    dense: dict[tuple, float] = {}
    for row in rows:
        key = row["case"], row["lanes"], row["mode"]
        if row["provider"] == DENSE:
            dense[key] = row["ms"][1]  # the rows that follow were measured beside it
        elif row["provider"] == OURS:
            yield row, dense[key] / row["ms"][1]


class Median(NamedTuple):
    """Times faster over all cases and rates, and in how many of them dense wins."""

    fastest: float  # beside the faster memory format of dense
    default: float  # beside nn.Conv2d as it is
    lost: int


def median_speedup(rows: Iterable[dict], mode: str, block: int, density: float) -> Median | None:
    wanted = {"mode": mode, "block": block, "density": density}
    found = [
        (row["speedup"][1], default)
        for row, default in beside_default(rows)
        if all(row[k] == v for k, v in wanted.items())
    ]
    if not found:
        return None
    fastest, default = zip(*found, strict=True)
    return Median(statistics.median(fastest), statistics.median(default), sum(s < 1 for s in fastest))


def print_summary(report: Report, quick: bool) -> None:
    ours = [row for row in report.rows if row["provider"] == OURS]
    densities = sorted({row["density"] for row in ours}, reverse=True)
    medians = []
    print(
        "\nmedians over cases and rates, times faster than dense in its faster memory format (in how many cases"
    )
    print("dense wins) / than nn.Conv2d in its default format")
    print(f"{'':20}" + "".join(f"{density:>24g}" for density in densities))
    for block in dict.fromkeys(row["block"] for row in ours):
        for mode in MODES:
            found = {density: median_speedup(report.rows, mode, block, density) for density in densities}
            medians += [
                {"block": block, "mode": mode, "density": d, "speedup": round(m.fastest, 3)}
                | {"default": round(m.default, 3), "lost": m.lost}
                for d, m in found.items()
                if m is not None
            ]
            cells = [f"{m.fastest:.3g}x ({m.lost}) / {m.default:.3g}x" if m else "" for m in found.values()]
            if any(cells):
                print(f"{block}x{block} blocks {mode:11}" + "".join(f"{cell:>24}" for cell in cells))
    report.set("medians", medians)
    report.set("targets", [])
    density = cases.CONV_TARGET_DENSITY
    for mode, bound in cases.CONV_TARGETS:
        found = None if quick else median_speedup(report.rows, mode, cases.CONV_BLOCK, density)
        what = f"{mode} of 4x4 blocks at density {density:g}, median times"
        for base, speedup in (
            ("nn.Conv2d", found and found.default),
            ("the faster memory format", found and found.fastest),
        ):
            report.target(f"{what} {base}", f">= {bound:g}", speedup, speedup and speedup >= bound)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--network", choices=["VGGSNN", "ResNet-19"])
    parser.add_argument("--case", nargs="+", metavar="IN-OUT", help="channels, such as 256-256")
    parser.add_argument("--lanes", nargs="+", type=int)
    parser.add_argument("--rate", nargs="+", type=float, help="firing rates")
    parser.add_argument("--density", nargs="+", type=float)
    parser.add_argument("--block", nargs="+", type=int, help="sides of the blocks")
    parser.add_argument("--mode", nargs="+", choices=MODES, default=list(MODES))


FILTERS = ("network", "case", "lanes", "rate", "density", "block")


def is_default(args: argparse.Namespace) -> bool:
    return list(args.mode) == list(MODES) and not any(getattr(args, name) for name in FILTERS)


def selected(args: argparse.Namespace) -> list[tuple[ConvCase, int]]:
    """Cases and blocks: all with the default block, some with the others."""
    if args.quick:
        return [*((case, 4) for case in cases.QUICK_CONV_CASES), (cases.QUICK_CONV_CASES[0], 1)]
    table = [(case, cases.CONV_BLOCK) for case in cases.CONV_CASES]
    table += [
        (case, block)
        for block in cases.CONV_OTHER_BLOCKS
        for case in cases.CONV_CASES
        if case[1:7] in cases.CONV_OTHER_SHAPES and case.lanes == 128
    ]
    wanted = {"network": [args.network] if args.network else None, "shape": args.case, "lanes": args.lanes}
    chosen = [
        (case, block)
        for case, block in table
        if all(not values or getattr(case, name) in values for name, values in wanted.items())
        and (not args.block or block in args.block)
    ]
    if not chosen:
        raise SystemExit("no case passes the filters; the table stands in benchmarks/cases.py")
    return chosen


def run(args: argparse.Namespace, report: Report) -> None:
    densities = args.density or (cases.QUICK_DENSITIES if args.quick else cases.CONV_DENSITIES)
    variants = [Ours(r, d) for r in args.rate or reversed(cases.CONV_RATES) for d in densities]
    report.set("conditions", {"rounds": args.rounds, "rule": timing.RULE, "steps": cases.CONV_STEPS})
    report.set(
        "method", f"{timing.method(args.rounds)}; times the faster memory format of dense, round by round"
    )
    columns = (DENSE, "channels_last", MASKED, *(f"{density:g}" for density in densities))
    for case, block in selected(args):
        print(f"\n{case}, blocks {block}x{block}: median ms, times faster than the faster dense, by density")
        print(f"{'':12} rate " + "".join(f"{name:>20}" for name in columns))
        kernels = kernel_runs(case, block, variants) if set(args.mode) & set(KERNEL_MODES) else {}
        for mode in args.mode:
            if mode == "layer":
                kernels.clear()  # and the tensors that they hold
            runs = kernels[mode] if mode in kernels else layer_runs(case, block, variants)
            rows = list(measure(case, block, variants, mode, runs, args.rounds))
            print_rows(rows, mode)
            report.add(rows)
    print_summary(report, args.quick)
