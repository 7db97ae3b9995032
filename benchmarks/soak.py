"""``soak``: does a long training run grow? Memory, threads, files, weights, over thousands of iterations."""

from __future__ import annotations

import argparse
import gc
import os
import threading
import time

import torch
from torch import nn

import esl_sparse as esl

from . import process
from .memory import MB
from .report import Report

HELP = "a small convolutional network, trained and rewired for long: what grows?"
UPDATES = 40
SAMPLES = 20  # of the process, over the run
WARM = 0.25  # of the iterations: until here caches and the allocator fill
RSS_TARGET = 1.02  # times what is resident after that
ARENA_TARGET = 1.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--iterations", type=int, default=2000)


def is_default(args: argparse.Namespace) -> bool:
    return args.iterations == 2000


def network() -> nn.Module:
    """Two convolutions and a linear map, in blocks of several sizes."""
    sparse = {"density": 0.2}
    norm, conv = nn.BatchNorm2d, esl.nn.SparseConv2d
    return nn.Sequential(
        esl.nn.SpikingBlock(conv(2, 16, 3, padding=1, **sparse), norm(16), esl.nn.LIF(), esl.nn.AvgPool2d(2)),
        esl.nn.SpikingBlock(
            conv(16, 32, 3, padding=1, block_size=2, **sparse), norm(32), esl.nn.LIF(), esl.nn.AdaptiveAvgPool2d(1)
        ),
        nn.Flatten(2),
        esl.nn.SparseLinear(32, 10, block_size=1, density=0.5),
    )  # fmt: skip


def state(model: nn.Module) -> dict[str, int]:
    """What the process and the model hold now."""
    gc.collect()
    return {
        "rss": process.status("VmRSS"),
        "arena": esl.arena.bytes,
        "lent": esl.arena.lent,
        "blocks": sum(layer.topology.nnzb for layer in esl.rewire.sparse_layers(model).values()),
        "os_threads": len(os.listdir("/proc/self/task")),
        "python_threads": threading.active_count(),
        "files": len(os.listdir("/proc/self/fd")),
    }


def run(args: argparse.Namespace, report: Report) -> None:
    iterations, updates = (60, 6) if args.quick else (args.iterations, UPDATES)
    T, batch, size = 4, 16, 16
    report.set(
        "conditions", {"iterations": iterations, "updates": updates, "T": T, "batch": batch, "size": size}
    )
    report.set(
        "method",
        f"the state of one process at {SAMPLES} points of a training run with Adam and growth by momentum, random "
        f"frames at rate .2; what grows is counted from {WARM:.0%} of the iterations on",
    )
    model, loss = network(), esl.nn.TETLoss()
    optimizer = torch.optim.Adam(model.parameters())
    rewirer = esl.Rewirer(model, optimizer, interval=iterations // updates, t_end=iterations)
    generator = torch.Generator().manual_seed(args.seed)
    done, rows, start = 0, [], time.perf_counter()
    every = max(1, iterations // SAMPLES)
    for i in range(1, iterations + 1):
        frames = (torch.rand(T, batch, 2, size, size, generator=generator) < 0.2).float()
        target = torch.randint(10, (batch,), generator=generator)
        optimizer.zero_grad()
        loss(model(frames), target).backward()
        optimizer.step()
        done += rewirer.step() is not None
        if i % every == 0:
            rows.append({"iteration": i, "updates": done, **state(model)})
            row = rows[-1]
            print(
                f"  {i:6} iterations, {done:3} updates: {row['rss'] / MB:8.1f} MB resident, arena "
                f"{row['arena'] / MB:6.2f} MB, {row['blocks']} blocks, {row['os_threads']} threads, "
                f"{row['files']} files",
                flush=True,
            )
    report.add(rows)
    report.set("seconds", round(time.perf_counter() - start, 1))
    warm = next(row for row in rows if row["iteration"] >= WARM * iterations)
    grown = max(row["rss"] for row in rows[len(rows) // 2 :]) / warm["rss"]
    judged = not args.quick  # the allocator is still filling in a short run
    report.target(
        "resident, times that after warm-up",
        f"<= {RSS_TARGET:g}",
        grown,
        grown <= RSS_TARGET if judged else None,
    )
    growth = rows[-1]["arena"] / max(1, warm["arena"])
    report.target("arena, times that after warm-up", f"<= {ARENA_TARGET:g}", growth, growth <= ARENA_TARGET)
    for key, what in (
        ("lent", "buffers lent"),
        ("blocks", "blocks"),
        ("os_threads", "threads"),
        ("files", "open files"),
    ):
        more = (
            max(row[key] for row in rows) - warm[key]
            if key != "blocks"
            else len({row[key] for row in rows}) - 1
        )
        report.target(f"{what}: growth", "0", more, more <= 0)
    report.target("updates", f"{updates}", done, done == updates)
