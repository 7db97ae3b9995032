"""``python -m benchmarks.run NAME``: one of the benchmarks below, of which ``--help`` says what they measure.

A complete run is stored as ``benchmarks/results/NAME.json``, a filtered or ``--quick`` one only where
``--output`` says.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path

import torch

from . import (
    conv,
    gpu,
    impossible,
    kernels,
    lif,
    linear,
    machine,
    memory,
    overhead,
    overlap,
    resnet19,
    rewire,
    saved,
    scan,
    showcase,
    soak,
    temporal,
    timing,
    vggsnn,
)
from .report import RESULTS, Report

# Each has HELP, add_arguments(parser), is_default(args) and run(args, report); some ROUNDS and result_name(args).
BENCHMARKS = {
    "linear": linear,
    "conv": conv,
    "overhead": overhead,
    "kernels": kernels,
    "lif": lif,
    "vggsnn": vggsnn,
    "resnet19": resnet19,
    "memory": memory,
    "saved": saved,
    "rewire": rewire,
    "impossible": impossible,
    "overlap": overlap,
    "scan": scan,
    "showcase": showcase,
    "soak": soak,
    "temporal": temporal,
    "gpu": gpu,
}


def parse(arguments: list[str]) -> argparse.Namespace:
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--threads", type=int, default=torch.get_num_threads())
    common.add_argument(
        "--rounds", type=int, help=f"timed runs of each provider (default {timing.ROUNDS}, or fewer)"
    )
    common.add_argument("--seed", type=int, default=0)
    common.add_argument("--quick", action="store_true", help="tiny sizes: does it run at all?")
    common.add_argument("--output", type=Path, help="JSON file for the result")
    parser = argparse.ArgumentParser(prog="python -m benchmarks.run", description=__doc__)
    subparsers = parser.add_subparsers(dest="benchmark", required=True)
    for name, module in BENCHMARKS.items():
        help = module.HELP
        module.add_arguments(subparsers.add_parser(name, parents=[common], help=help, description=help))
    args = parser.parse_args(arguments)
    module = BENCHMARKS[args.benchmark]
    args.rounds = args.rounds or (2 if args.quick else getattr(module, "ROUNDS", timing.ROUNDS))
    args.name = module.result_name(args) if hasattr(module, "result_name") else args.benchmark
    if args.output is None and not args.quick and module.is_default(args):
        args.output = RESULTS / f"{args.name}.json"
    return args


def command_line(arguments: list[str]) -> str:
    """What to type to repeat the run; where its result went is no part of that."""
    kept = list(arguments)
    if "--output" in kept:
        at = kept.index("--output")
        del kept[at : at + 2]
    return shlex.join(["python", "-m", "benchmarks.run", *kept])


def main(arguments: list[str] | None = None) -> None:
    arguments = sys.argv[1:] if arguments is None else arguments
    args = parse(arguments)
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    report = Report(args.name, command_line(arguments), args.output)
    header = report.content["machine"]
    print(machine.conditions(header))
    if header["load_before"] > 0.5:
        print(f"WARNING: load average {header['load_before']:g}: other programs run, figures will be off")
    for op, backend in header["esl_sparse_backend"].items():
        if backend == "reference":
            print(f"WARNING: {op} runs on its dense reference: what follows says nothing about the kernels")
    BENCHMARKS[args.benchmark].run(args, report)
    if args.output is not None:
        print(f"stored in {args.output}")


if __name__ == "__main__":
    main()
