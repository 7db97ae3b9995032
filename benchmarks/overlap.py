"""``overlap``: does growth by momentum choose what it would choose if it saw everything?

A network of the accuracy protocol trains with the rule ``momentum``. Beside it, and without touching it, the dense
gradient of its sparse layer is made in every step. At each update the places grown are compared with those of largest
(a) moving average over the same window, of *every* absent place; (b) Adam's |m| / (sqrt(v) + 1e-8) with dense m and v
over the whole run, what a dense optimiser would choose; (c) gradient of the update's own step (the rule ``gradient``).
"""

from __future__ import annotations

import argparse
import statistics
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

import esl_sparse as esl
from esl_sparse.data import load
from esl_sparse.experiments.build import build
from esl_sparse.experiments.config import TrainConfig
from esl_sparse.rewire import GradientRule
from esl_sparse.rewire.blocks import AbsentBlocks

from .report import Report

HELP = "which share of the blocks grown by momentum a dense momentum would have grown too"
OTHERS = ("windowed", "adam", "gradient")
BLOCKS = ((1, 1), (4, 4))
DENSITIES = (0.1, 0.01)
FACTORS = (4.0, 8.0)


class DenseMomentum:
    """What a dense optimiser would know of a layer: gradient, its windowed average, and Adam's moments."""

    def __init__(self, layer: Any, rule: GradientRule, betas: tuple[float, float] = (0.9, 0.999)) -> None:
        size = (layer.out_features, layer.in_features)
        self.layout = layer.topology.layout
        self.rule, self.betas = rule, betas
        self.gradient, self.m, self.v = (torch.zeros(size) for _ in range(3))
        self.window: list[Tensor] = []
        layer.register_forward_hook(self._seen)

    def _seen(self, layer: Any, args: tuple, output: Tensor) -> None:
        if output.requires_grad:
            x = args[0].detach().flatten(0, -2)

            def gradient(grad: Tensor) -> None:
                self.gradient = grad.flatten(0, -2).t() @ x

            output.register_hook(gradient)

    def step(self) -> None:
        self.m.lerp_(self.gradient, 1 - self.betas[0])
        self.v.lerp_(self.gradient.square(), 1 - self.betas[1])
        self.window = [*self.window, self.gradient][-self.rule.window :]

    def scores(self) -> dict[str, Tensor]:
        """By block, of each of the others."""
        average = torch.zeros_like(self.m)
        for gradient in self.window:
            average.lerp_(gradient, 1 - self.rule.beta)
        dense = {
            "windowed": average,
            "adam": self.m / (self.v.sqrt() + 1e-8),
            "gradient": self.gradient,
        }
        return {name: self._block_means(tensor.abs()) for name, tensor in dense.items()}

    def _block_means(self, dense: Tensor) -> Tensor:
        lay = self.layout
        padding = (0, lay.col_blocks * lay.bn - lay.cols, 0, lay.row_blocks * lay.bm - lay.rows)
        padded = torch.nn.functional.pad(dense, padding)
        sums = padded.view(lay.row_blocks, lay.bm, lay.col_blocks, lay.bn).sum((1, 3)).flatten()
        return sums / lay.block_extent(torch.arange(lay.blocks))


def train(config: TrainConfig, dataset: Any, factor: float, batches: int) -> list[dict]:
    """One row for each update: overlaps, and how many candidates there were for each block grown."""
    momentum = esl.GROW_RULES["momentum"]
    assert isinstance(momentum, GradientRule)
    rule = replace(momentum, candidates=factor)
    model, _, loss, optimizer, scheduler, _ = build(replace(config, structure="static"), dataset, batches)
    layer, *_ = esl.rewire.sparse_layers(model).values()
    dense = DenseMomentum(layer, rule)
    rows: list[dict] = []

    def compared(absent: AbsentBlocks, count: int) -> Tensor:
        chosen = rule.rule(absent, count)
        known = absent.candidates
        assert known is not None
        places = torch.ones(absent.layout.blocks, dtype=torch.bool)
        places[absent.active] = False
        row = {"grown": count, "candidates": known.ids.numel() / count}
        for other, score in dense.scores().items():
            theirs = score.masked_fill(~places, -1).topk(count).indices
            row[other] = torch.isin(chosen, theirs).float().mean().item()
        rows.append(row)
        return chosen

    rewirer = esl.Rewirer(
        model,
        optimizer,
        prune=config.prune,
        grow=replace(rule, rule=compared),
        alpha=config.alpha,
        interval=config.interval,
        t_end=round(config.t_end * batches),
        generator=torch.Generator().manual_seed(config.seed),
    )
    train, _ = dataset.split_validation(seed=config.seed)
    generator = torch.Generator().manual_seed(config.seed)
    done = 0
    while done < batches:
        for index in torch.randperm(len(train), generator=generator).split(config.batch_size):
            if done == batches:
                break
            images, labels = train[index]
            optimizer.zero_grad()
            loss(model(images), labels).backward()
            optimizer.step()
            scheduler.step()
            dense.step()
            rewirer.step()
            done += 1
    return rows


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--batches", type=int, default=3000, help="training steps of each network")
    parser.add_argument("--data", default="mnist")


def is_default(args: argparse.Namespace) -> bool:
    return args.data == "mnist"


def run(args: argparse.Namespace, report: Report) -> None:
    data, batches = ("digits", 60) if args.quick else (args.data, args.batches)
    dataset = load(data)
    base = TrainConfig(data=data, seed=args.seed, interval=15 if args.quick else TrainConfig.interval)
    report.set("conditions", {"recipe": base.to_dict(), "batches": batches})
    report.set("method", "share of the blocks grown that the other rule would have grown, mean over updates")
    print(f"\n{data}, {base.model} {base.hidden}, {batches} steps, update every {base.interval}")
    print("blocks  density  candidates asked  had   overlap: windowed    Adam  gradient")
    for block in BLOCKS:
        for density in DENSITIES:
            for factor in FACTORS:
                config = replace(base, density=density, block_size=block)
                updates = train(config, dataset, factor, batches)
                row = {
                    "block": list(block),
                    "density": density,
                    "candidates": factor,
                    "updates": len(updates),
                }
                row["candidates_had"] = round(statistics.fmean(u["candidates"] for u in updates), 2)
                for other in OTHERS:
                    row[other] = round(statistics.fmean(u[other] for u in updates), 3)
                    row[f"{other}_range"] = [round(f(u[other] for u in updates), 3) for f in (min, max)]
                report.add([row])
                print(
                    f"{block[0]}x{block[1]:<4} {density:8g}  {factor:16g} {row['candidates_had']:5g}"
                    f" {row['windowed']:19.1%} {row['adam']:7.1%} {row['gradient']:9.1%}",
                    flush=True,
                )
    for density in DENSITIES:
        found = [
            r["windowed"] for r in report.rows if r["density"] == density and r["candidates"] == max(FACTORS)
        ]
        what = f"share that the average over all places would have grown, density {density:g}, least of the blocks"
        report.target(what, "reported, no goal", min(found), None)
