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
from .config import TrainConfig
from .log import write_json
from .records import TrainResult
from .run_folder import RunFolder, read_result
from .train import CHECKPOINT, RunError, Trainer

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
    active_weights: int
    weight_state_of_dense: float
    samples_per_second: float


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
        result = _result(config, dataset, place, should_stop)
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
    return [summarise(name, chosen[name], results[name], results.get(REFERENCE)) for name in rows]


def _result(
    config: TrainConfig, dataset: Dataset, folder: Path, should_stop: Callable[[], bool]
) -> TrainResult:
    if (folder / "result.json").exists():
        found, result = read_result(folder)
        if found != config:
            raise RunError(f"{folder} holds a run with other settings: choose another folder with --runs.")
        return result
    trainer = Trainer(config, dataset, folder, [RunFolder(folder, config)])
    if (folder / CHECKPOINT).exists():
        trainer.resume(load_checkpoint(folder / CHECKPOINT))
    return trainer.fit(should_stop)


def summarise(
    name: str, lr: float, results: Sequence[TrainResult], reference: Sequence[TrainResult] | None
) -> RowResult:
    test = [result.test_accuracy for result in results]
    difference = None
    if reference is not None and reference is not results and len(results) > 1:
        difference = interval(
            [ours - theirs.test_accuracy for ours, theirs in zip(test, reference, strict=True)]
        )
    state = results[0].weight_state
    return RowResult(
        name=name,
        lr=lr,
        test_accuracy=test,
        val_accuracy=[result.val_accuracy for result in results],
        mean=statistics.fmean(test),
        sd=statistics.stdev(test) if len(test) > 1 else None,
        difference=difference,
        active_weights=results[0].active_weights,
        weight_state_of_dense=state.total / state.dense,
        samples_per_second=statistics.median(result.samples_per_second for result in results),
    )


def interval(differences: Sequence[float], confidence: float = 0.95) -> Interval:
    from scipy.special import stdtrit  # here, because it is slow to import and rarely needed

    mean = statistics.fmean(differences)
    n = len(differences)
    quantile = float(stdtrit(n - 1, (1 + confidence) / 2))
    half = quantile * statistics.stdev(differences) / math.sqrt(n)
    return Interval(mean, mean - half, mean + half)


def write_tables(
    folder: Path, base: TrainConfig, seeds: int, lrs: Sequence[float], results: Sequence[RowResult]
) -> tuple[Path, Path]:
    """Write `<data>.json` and, for people, `<data>.md`."""
    folder.mkdir(parents=True, exist_ok=True)
    as_json, as_markdown = (folder / f"{base.data}.{suffix}" for suffix in ("json", "md"))
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
    lines = [
        f"# {base.data}: test accuracy of the multi-spike network",
        "",
        f"784-{'-'.join(map(str, base.hidden))}-10 unless the row says otherwise, T = {base.T}, "
        f"{base.epochs} epochs, batch {base.batch_size}, {base.optimizer}, seeds: {seeds}. "
        "Hidden layer sparse, readout dense. The epoch is picked on a 10 % validation split and tested once. "
        "Difference: paired by seed to dense, with its 95 % t-interval.",
        "",
        "| row | lr | test accuracy (%) | sd | difference to dense (points) | weights | state of dense |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in results:
        sd, d = row.sd, row.difference
        spread = "" if sd is None else f"{100 * sd:.2f}"
        difference = f"{100 * d.mean:+.2f} [{100 * d.low:+.2f}, {100 * d.high:+.2f}]" if d else ""
        lines.append(
            f"| {row.name} | {row.lr:g} | {100 * row.mean:.2f} | {spread} | {difference} "
            f"| {row.active_weights:,} | {row.weight_state_of_dense:.1%} |"
        )
    return "\n".join(lines) + "\n"
