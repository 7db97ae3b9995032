"""``saved``: what the forward of VGGSNN keeps for backward, in bits by ours and in floats by its modules one by one."""

from __future__ import annotations

import argparse

from . import cases, networks, training
from .allocations import saved_for_backward
from .memory import MB
from .report import Report

HELP = "bytes that VGGSNN saves for backward: fused blocks against the unfused chain"
BASELINE = "torch"
PROVIDERS = (BASELINE, "SpikingJelly", "our neurons", "ERK 0.5", "ERK 0.1")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    pass


def is_default(args: argparse.Namespace) -> bool:
    return True


def run(args: argparse.Namespace, report: Report) -> None:
    chosen = cases.QUICK_VGGSNN_CASES if args.quick else cases.VGGSNN_CASES
    report.set("conditions", {"hooks": "torch.autograd.graph.saved_tensors_hooks"})
    report.set(
        "method", "bytes of the storages that one forward saves, each once, without parameters and input"
    )
    for case in chosen:
        print(f"\n{case}: MB (1e6 bytes) saved for backward, without parameters and input")
        found = training.build(case, PROVIDERS, args.seed)
        x, _ = networks.batch(case)
        size = {}
        for name, step in found.steps.items():
            known = [*step.model.parameters(), *step.model.buffers(), x]
            size[name] = sum(storage.nbytes() for storage in saved_for_backward(step.model, x, known))
            share = size[name] / size[BASELINE]
            report.add([{**case._asdict(), "provider": name, "bytes": size[name], "share": round(share, 5)}])
            print(
                f"  {name:16}{size[name] / MB:10.2f}  {share:.4f} of {BASELINE}: 1/{1 / share:.0f}",
                flush=True,
            )
        for name, why in found.missing.items():
            report.add([{**case._asdict(), "provider": name, "missing": why}])
            print(f"  {name:16} left out: {why}")
        for name in networks.OURS:
            if name in size:
                share = None if args.quick else size[name] / size[BASELINE]
                met = None if share is None else share <= cases.SAVED_TARGET
                what = f"saved by {name} over saved by {BASELINE}, {case}"
                report.target(what, f"<= {cases.SAVED_TARGET:g}", share, met)
