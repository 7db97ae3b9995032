"""``resnet19``: a whole training step of ResNet-19 on images, beside plain torch's."""

from __future__ import annotations

import argparse

from . import cases, training
from .report import Report

HELP = (
    "training step and peak memory of ResNet-19 at two densities, and what the multiply-adds left would give"
)
PROVIDERS = ("torch", "ERK 0.5", "ERK 0.1")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    pass


def is_default(args: argparse.Namespace) -> bool:
    return True


def run(args: argparse.Namespace, report: Report) -> None:
    chosen = cases.QUICK_RESNET19_CASES if args.quick else cases.RESNET19_CASES
    training.run_cases(args, report, chosen, PROVIDERS, ("torch",))
    for row in report.rows:
        if (left := row.get("multiply_adds")) is not None:
            found = None if args.quick else row["times torch"][1]
            what = f"{row['provider']}, times torch, of what the multiply-adds left set"
            report.target(what, f">= {1 / left:.3g}", found, found and found >= 1 / left)
