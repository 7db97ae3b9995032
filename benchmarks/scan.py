"""``scan``: what an update is made of: `block_score`, `select`, the stream of the best, `transpose_index`, `sample`."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from itertools import product

import torch
from torch import Tensor

import esl_sparse as esl
from esl_sparse._backends import use
from esl_sparse.ops.block_score import BlockScorer, LayerCall
from esl_sparse.ops.select import TopK, largest
from esl_sparse.sampling import distinct
from esl_sparse.topology import BlockLayout, index_from_block_ids, random_absent_ids, transpose_index

from . import cases, timing
from .report import Report

HELP = "scoring, selecting and indexing blocks against torch.mm, torch.topk and torch.sort"


def score(calls: list[LayerCall], layout: BlockLayout) -> None:
    for _ in BlockScorer(calls, layout).strips():
        pass


def best_of(scores: Tensor, strip: int, count: int) -> None:
    top = TopK(count, 0)
    for first in range(0, scores.numel(), strip):
        top.push(scores[first : first + strip], first)
    top.result()


def transpose(backend: str, crow: Tensor, col: Tensor, size: int) -> None:
    with use(backend):
        transpose_index(crow, col, size)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """None of its own."""


def is_default(args: argparse.Namespace) -> bool:
    return True


def run(args: argparse.Namespace, report: Report) -> None:
    size, lanes, scores, blocks = cases.QUICK_SCAN_SIZE if args.quick else cases.SCAN_SIZE
    report.set("conditions", {"features": size, "lanes": lanes, "scores": scores, "blocks": blocks})
    report.set("method", timing.method(args.rounds))

    def measure(what: str, runs: dict[str, Callable[[], object]], **case: object) -> float:
        """Times of a reference, which comes first, and ours; how much faster we are."""
        timings = timing.measure(runs, next(iter(runs)), args.rounds)
        rows = [{"op": what} | case | {"provider": name} | t.as_row() for name, t in timings.items()]
        report.add(rows)
        speedup = list(timings.values())[-1].speedup.median
        shown = ", ".join(f"{key} {value}" for key, value in case.items())
        print(
            f"{what:16} {shown:34} "
            + "  ".join(f"{row['provider']} {row['ms'][1]:8.3g} ms" for row in rows)
            + f"  {speedup:5.2f}x{'  LOSES' if speedup < 1 else ''}",
            flush=True,
        )
        return speedup

    print(f"\n{size}-{size}, {lanes} lanes; the gradient of all places by torch.mm, without block means")
    speedups = {}
    for rate, block in product(cases.SCAN_RATES, (4, 1)):
        x = torch.bernoulli(torch.full((1, lanes, size), rate))
        grad = torch.randn(lanes, size)
        calls = [LayerCall(esl.functional.pack(x), grad)]
        layout = BlockLayout(size, size, block, block)
        speedups[rate, block] = measure(
            "block_score",
            {
                "torch.mm": lambda x=x[0], g=grad: torch.mm(g.t(), x),  # type: ignore[misc]
                "block_score": lambda c=calls, y=layout: score(c, y),  # type: ignore[misc]
            },
            rate=rate,
            block=f"{block}x{block}",
        )
    for n, share in product(scores, (100, 4)):
        score_of, ids, count = torch.randn(n), torch.arange(n), n // share
        measure(
            "select",
            {
                "torch.topk": lambda s=score_of, k=count: s.topk(k, sorted=False),  # type: ignore[misc]
                "select": lambda s=score_of, i=ids, k=count: largest(s, i, k, 0),  # type: ignore[misc]
            },
            n=n,
            count=count,
        )
        measure(
            "select, stream",
            {
                "torch.topk": lambda s=score_of, k=count: s.topk(k, sorted=False),  # type: ignore[misc]
                "TopK": lambda s=score_of, k=count: best_of(s, 1 << 18, k),  # type: ignore[misc]
            },
            n=n,
            count=count,
        )
    for n in blocks:
        layout = BlockLayout(1 << 14, 1 << 14, 1, 1)
        ids = random_absent_ids(torch.empty(0, dtype=torch.int64), layout.blocks, n)
        crow, col = index_from_block_ids(ids, layout)
        measure(
            "transpose_index",
            {
                "torch.sort": lambda a=crow, b=col: transpose("reference", a, b, 1 << 14),  # type: ignore[misc]
                "transpose_index": lambda a=crow, b=col: transpose("native", a, b, 1 << 14),  # type: ignore[misc]
            },
            blocks=n,
        )
        measure(
            "sample",
            {
                "randint, unique": lambda t=layout.blocks, k=n: torch.randint(t, (k,)).unique(),  # type: ignore[misc]
                "sample": lambda t=layout.blocks, k=n: distinct(t, k, torch.device("cpu")),  # type: ignore[misc]
            },
            count=n,
        )
    measured = speedups[0.1, 4]
    report.target("block_score, 4x4, rate .1, times torch.mm", ">= 1", measured, measured >= 1)
