"""The accuracy protocol: every row with every seed, picked by validation, tested once, paired with dense."""

from __future__ import annotations

import math
import platform
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from .._version import __version__
from ..checkpoint import load_checkpoint
from ..data import Dataset
from ..rewire import GROW_RULES, PRUNE_RULES
from .config import TrainConfig
from .log import write_json
from .records import TrainResult
from .run_folder import RunFolder, read_result
from .train import CHECKPOINT, Observer, RunError, Trainer

REFERENCE = "dense"

# Small dense networks of equal weight count: 89 ~ density .1, 130 ~ the paper's .16, 247 ~ .3.
ROWS: dict[str, dict[str, Any]] = {
    REFERENCE: {"structure": "dense"},
    **{f"dense 784-{n}-10": {"structure": "dense", "hidden": (n,)} for n in (89, 130, 247)},
    **{
        f"{structure} {density} {block[0]}x{block[1]}": {
            "structure": structure,
            "density": density,
            "block_size": block,
        }
        for density in (0.3, 0.1)
        for block in ((1, 1), (4, 4))
        for structure in ("static", "evolve")
    },
}


def _rule_rows(block: tuple[int, int]) -> dict[str, dict[str, Any]]:
    rows: dict[str, dict[str, Any]] = {REFERENCE: {"structure": "dense"}}
    for density in (0.1, 0.01):
        sparse: dict[str, Any] = {"density": density, "block_size": block}
        end = f"{density} {block[0]}x{block[1]}"
        rows[f"static {end}"] = {"structure": "static", **sparse}
        rows[f"deep_r {end}"] = {"structure": "deep_r", **sparse}
        for prune in PRUNE_RULES:
            for grow in (*GROW_RULES, "momentum_exact"):
                rule = {"structure": "evolve", "prune": prune, "grow": grow}
                rows[f"{prune}+{grow} {end}"] = {**rule, **sparse}
    return rows


def _static(density: float, block: tuple[int, int]) -> dict[str, Any]:
    return {"structure": "static", "density": density, "block_size": block}


def _evolve(density: float, block: tuple[int, int]) -> dict[str, Any]:
    """By the pair of rules that the paper finds the most stable."""
    rules = {"prune": "set", "grow": "momentum"}
    return {"structure": "evolve", "density": density, "block_size": block, **rules}


def _narrow(*channels: int) -> dict[str, Any]:
    """Dense, of about as many weights as the preset's channels have at density .1."""
    return {"structure": "dense", "density": 1.0, "channels": channels}


_CONV: dict[str, dict[str, Any]] = {
    REFERENCE: {"structure": "dense", "density": 1.0},
    "static 0.1 4x4": _static(0.1, (4, 4)),
    "evolve 0.1 4x4": _evolve(0.1, (4, 4)),
}

# What `--suite` offers: of the perceptron, accuracy by density and block, or every rule against the static topology;
# of convolutional networks, sparse against dense, and the densities of the paper's Fig. 4.
CONVOLUTIONAL = {
    "conv": {
        **_CONV,
        "evolve 0.1 1x1": _evolve(0.1, (1, 1)),
        "dense 5-20-40-80": _narrow(5, 20, 40, 80),
    },
    "dvs-conv": {
        **_CONV,
        "dense 5-10-20-40": _narrow(5, 10, 20, 40),
        "static 0.01 4x4": _static(0.01, (4, 4)),
        "evolve 0.01 4x4": _evolve(0.01, (4, 4)),
    },
}
SUITES = {"density": ROWS, "rules": _rule_rows((4, 4)), "rules-1x1": _rule_rows((1, 1)), **CONVOLUTIONAL}


def static_twin(name: str, rows: Mapping[str, Mapping[str, Any]]) -> str | None:
    """The row of the same density and blocks whose topology never changes."""
    row = rows[name]
    if row["structure"] not in ("evolve", "deep_r"):
        return None
    wanted = _static(row["density"], row["block_size"])
    return next((other for other, values in rows.items() if values == wanted), None)


@dataclass(frozen=True)
class Interval:
    """A mean of paired differences and its 95 % confidence interval by Student's t."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class RowResult:
    name: str
    lr: float
    test_accuracy: list[float]  # by seed
    val_accuracy: list[float]
    mean: float
    sd: float | None
    difference: Interval | None  # to dense, in accuracy, paired by seed
    difference_to_static: Interval | None  # to the static row of the same density and blocks, likewise
    active_weights: int
    weight_state_of_dense: float
    samples_per_second: float
    seconds: float  # of training a run, validation left out; the median


def run_protocol(
    base: TrainConfig,
    dataset: Dataset,
    rows: Mapping[str, Mapping[str, Any]],
    seeds: Sequence[int],
    lrs: Sequence[float],
    folder: Path,
    should_stop: Callable[[], bool] = lambda: False,
    announce: Callable[[str], None] = lambda line: None,
) -> list[RowResult]:
    """Run what is not finished yet in `folder`.

    Of several `lrs` each row takes the one that validates best with the first seed.
    """

    def run(name: str, lr: float, seed: int) -> TrainResult:
        config = replace(base, **rows[name], lr=lr, seed=seed)
        place = folder / name.replace(" ", "-") / f"lr{lr:g}-seed{seed}"
        done = (place / "result.json").exists()
        result = finished_run(config, dataset, place, should_stop)
        if not done:
            announce(
                f"{name}, lr {lr:g}, seed {seed}: test {result.test_accuracy:.2%}, {result.seconds:.0f} s"
            )
        return result

    results: dict[str, list[TrainResult]] = {}
    chosen: dict[str, float] = {}
    for name in rows:
        trials = {lr: run(name, lr, seeds[0]) for lr in lrs}
        chosen[name] = max(trials, key=lambda lr: trials[lr].val_accuracy)
        results[name] = [trials[chosen[name]], *(run(name, chosen[name], seed) for seed in seeds[1:])]
    return [
        summarise(
            name,
            chosen[name],
            results[name],
            results.get(REFERENCE),
            results.get(static_twin(name, rows) or ""),
        )
        for name in rows
    ]


def finished_run(
    config: TrainConfig,
    dataset: Dataset,
    folder: Path,
    should_stop: Callable[[], bool] = lambda: False,
    observers: Sequence[Observer] = (),
) -> TrainResult:
    """The run in `folder`: read if it is finished, continued if it was interrupted, else made."""
    if (folder / "result.json").exists():
        found, result = read_result(folder)
        if found.effective != config.effective:
            raise RunError(f"{folder} holds a run with other settings: choose another folder with --runs.")
        return result
    trainer = Trainer(config, dataset, folder, [RunFolder(folder, config), *observers])
    if (folder / CHECKPOINT).exists():
        trainer.resume(load_checkpoint(folder / CHECKPOINT))
    return trainer.fit(should_stop)


def summarise(
    name: str,
    lr: float,
    results: Sequence[TrainResult],
    reference: Sequence[TrainResult] | None,
    static: Sequence[TrainResult] | None,
) -> RowResult:
    test = [result.test_accuracy for result in results]
    state = results[0].weight_state
    return RowResult(
        name=name,
        lr=lr,
        test_accuracy=test,
        val_accuracy=[result.val_accuracy for result in results],
        mean=statistics.fmean(test),
        sd=statistics.stdev(test) if len(test) > 1 else None,
        difference=paired(results, reference),
        difference_to_static=paired(results, static),
        active_weights=results[0].active_weights,
        weight_state_of_dense=state.total / state.dense,
        samples_per_second=statistics.median(result.samples_per_second for result in results),
        seconds=statistics.median(result.seconds for result in results),
    )


def paired(results: Sequence[TrainResult], others: Sequence[TrainResult] | None) -> Interval | None:
    """The difference in test accuracy, over the seeds that both have; of two seeds at least."""
    if others is None or others is results or min(len(results), len(others)) < 2:
        return None
    pairs = zip(results, others, strict=False)
    return interval([ours.test_accuracy - theirs.test_accuracy for ours, theirs in pairs])


def interval(differences: Sequence[float], confidence: float = 0.95) -> Interval:
    from scipy.special import stdtrit  # here, because it is slow to import and rarely needed

    mean = statistics.fmean(differences)
    n = len(differences)
    quantile = float(stdtrit(n - 1, (1 + confidence) / 2))
    half = quantile * statistics.stdev(differences) / math.sqrt(n)
    return Interval(mean, mean - half, mean + half)


def write_tables(
    folder: Path, stem: str, base: TrainConfig, seeds: int, lrs: Sequence[float], results: Sequence[RowResult]
) -> tuple[Path, Path]:
    """Write `<stem>.json` and, for people, `<stem>.md`."""
    folder.mkdir(parents=True, exist_ok=True)
    as_json, as_markdown = (folder / f"{stem}.{suffix}" for suffix in ("json", "md"))
    values = {
        "recipe": base.to_dict(),
        "seeds": seeds,
        "lrs": list(lrs),
        "machine": {
            "cpu": platform.processor() or platform.machine(),
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            "esl_sparse": __version__,
        },
        "rows": [asdict(result) for result in results],
    }
    write_json(as_json, values)
    as_markdown.write_text(_markdown(base, seeds, results))
    return as_json, as_markdown


def _markdown(base: TrainConfig, seeds: int, results: Sequence[RowResult]) -> str:
    static = any(row.difference_to_static for row in results)
    if base.model == "mlp":
        title = "the multi-spike network"
        network = f"784-{'-'.join(map(str, base.hidden))}-10 unless the row says otherwise"
        sparse = "Hidden layer sparse, readout dense."
    else:
        title, network = base.model, base.network
        sparse = f"Densities of layers: {base.sharing}; updates every {base.interval} iterations."
        if base.augment != "none":
            sparse += f" Augmentation: {base.augment}."
    lines = [
        f"# {base.data}: test accuracy of {title}",
        "",
        f"{network}, T = {base.T}, "
        f"{base.epochs} epochs, batch {base.batch_size}, {base.optimizer}, seeds: {seeds}. "
        f"{sparse} The epoch is picked on a 10 % validation split and tested once. "
        "Differences: paired by seed, in points, with their 95 % t-interval. Training: seconds of a run, validation "
        f"left out, {torch.get_num_threads()} threads.",
        "",
        f"| row | lr | test accuracy (%) | sd | difference to dense |{' difference to static |' * static} weights "
        "| state of dense | training (s) |",
        f"|---|---|---|---|---|{'---|' * static}---|---|---|",
    ]
    for row in results:
        spread = "" if row.sd is None else f"{100 * row.sd:.2f}"
        differences = [row.difference, row.difference_to_static][: 1 + static]
        lines.append(
            f"| {row.name} | {row.lr:g} | {100 * row.mean:.2f} | {spread} "
            f"| {' | '.join(map(points, differences))} "
            f"| {row.active_weights:,} | {row.weight_state_of_dense:.1%} | {row.seconds:.0f} |"
        )
    return "\n".join(lines) + "\n"


def points(d: Interval | None) -> str:
    """In points, with the interval."""
    return f"{100 * d.mean:+.2f} [{100 * d.low:+.2f}, {100 * d.high:+.2f}]" if d else ""
