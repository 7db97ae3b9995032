"""``vggsnn``: a whole training step of VGGSNN, beside SpikingJelly's and that of plain torch."""

from __future__ import annotations

import argparse

from . import cases, training
from .report import Report

HELP = "training step and peak memory of VGGSNN: ours, plain torch, SpikingJelly; our step by op"
PROVIDERS = ("SpikingJelly", "torch", "torch compiled", "our neurons", "ERK 0.1", "uniform 0.1")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--provider", nargs="+", choices=PROVIDERS)


def is_default(args: argparse.Namespace) -> bool:
    return not args.provider


def run(args: argparse.Namespace, report: Report) -> None:
    chosen = cases.QUICK_VGGSNN_CASES if args.quick else cases.VGGSNN_CASES
    # Compiling takes longer than a quick run should.
    default = [name for name in PROVIDERS if not (args.quick and name == "torch compiled")]
    training.run_cases(
        args, report, chosen, args.provider or default, ("SpikingJelly", "torch", "torch compiled")
    )
    print(f"targets, {cases.VGGSNN_CASES[0]}")
    target = cases.VGGSNN_CASES[0]._asdict()
    rows = [row for row in report.rows if all(row[key] == value for key, value in target.items())]
    for ours, other, bound in cases.VGGSNN_TARGETS:
        found = training.times(rows, ours, other)
        report.target(f"{ours}, times {other}", f">= {bound:g}", found, found and found >= bound)
    ours, other, bound = cases.VGGSNN_MEMORY_TARGET
    peaks = {row["provider"]: row["peak"] for row in rows if "peak" in row}
    share = peaks[ours] / peaks[other] if {ours, other} <= peaks.keys() else None
    report.target(f"{ours}, peak over that of {other}", f"<= {bound:.3g}", share, share and share <= bound)
