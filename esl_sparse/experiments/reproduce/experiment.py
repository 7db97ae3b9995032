"""An experiment: networks to train, and a page, a plot and a CSV file about them."""

from __future__ import annotations

import hashlib
import json
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure

from ...checkpoint import load_checkpoint, restore
from ...data import Dataset, load
from ...energy import EnergyReport, energy_report, measure_rates
from ..build import build_model
from ..config import TrainConfig
from ..protocol import Interval, finished_run, paired
from ..records import TrainResult
from ..train import BEST, Observer

MEASURED = 1000  # test samples that rates are measured on


class Scale(Enum):
    """What is trained. PAPER: its network on its data. STAND_IN: a small network on data that can be had anywhere.
    QUICK: a smoke run of minutes on 8x8 digits, whose accuracies mean nothing."""

    PAPER = "paper"
    STAND_IN = "stand-in"
    QUICK = "quick"


@dataclass(frozen=True)
class Row:
    """A network, trained with several seeds.

    Attributes:
        config: its seed says nothing.
        reference: label of the row it is compared with.
        paper: what the paper prints for it.
    """

    label: str
    config: TrainConfig
    reference: str | None = None
    paper: str = ""


@dataclass(frozen=True)
class Outcome:
    """A row's runs, by seed."""

    row: Row
    dataset: Dataset
    folders: list[Path]
    results: list[TrainResult]
    difference: Interval | None

    @property
    def accuracies(self) -> list[float]:
        return [result.test_accuracy for result in self.results]

    @property
    def mean(self) -> float:
        return statistics.fmean(self.accuracies)

    @property
    def sd(self) -> float | None:
        return statistics.stdev(self.accuracies) if len(self.results) > 1 else None

    @property
    def connections(self) -> int:
        return round(statistics.fmean(result.active_weights for result in self.results))

    @property
    def density(self) -> float:
        """Of the whole network."""
        return self.connections / self.results[0].total_weights

    @cached_property
    def energy(self) -> EnergyReport:
        """Of the first seed's model, the one that was tested, by the spikes that it makes."""
        model = build_model(self.row.config, self.dataset)
        restore({"model": model}, load_checkpoint(self.folders[0] / BEST))
        model.eval()
        with measure_rates(model) as rates, torch.no_grad():
            test = self.dataset.test
            for images, _ in test.subset(torch.arange(min(MEASURED, len(test)))).batches(100):
                model(images)
        return energy_report(model, rates)


Column = Callable[[Outcome], Any]


@dataclass(frozen=True)
class Experiment:
    """Attributes:
    name: of the command's argument and of the files.
    title: of the page.
    seeds: by default.
    scales: the ones it has.
    rows: of a scale.
    draw: the plot.
    columns: of the table and of the CSV file, beside accuracy; what a column gives is written as it is.
    note: what a reader of the page has to know.
    """

    name: str
    title: str
    seeds: int
    scales: tuple[Scale, ...]
    rows: Callable[[Scale], Sequence[Row]]
    draw: Callable[[Sequence[Outcome]], Figure]
    columns: Mapping[str, Column]
    note: Callable[[Scale], str]

    def stem(self, scale: Scale) -> str:
        """Of the files: a stand-in never goes by the paper's name."""
        return self.name if scale is Scale.PAPER else f"{self.name}-{scale.value}"


def reproduce(
    experiment: Experiment,
    scale: Scale,
    seeds: int,
    folder: Path,
    data_dir: Path | None = None,
    should_stop: Callable[[], bool] = lambda: False,
    progress: Callable[[str, int, int], Sequence[Observer]] = lambda title, run, runs: (),
) -> list[Outcome]:
    """Train what is not in `folder` yet, seed by seed, so that rows can be compared whenever it stops.

    `progress(title, run, runs)` gives observers of the run that begins.
    """
    rows = experiment.rows(scale)
    datasets = _datasets(rows, data_dir)
    folders: dict[str, list[Path]] = {row.label: [] for row in rows}
    results: dict[str, list[TrainResult]] = {row.label: [] for row in rows}
    for seed in range(seeds):
        for i, row in enumerate(rows):
            config = replace(row.config, seed=seed)
            place = folder / run_name(config)
            title = f"{row.label}, seed {seed}"
            observers = progress(title, seed * len(rows) + i, seeds * len(rows))
            dataset = datasets[_data_key(config)]
            results[row.label].append(finished_run(config, dataset, place, should_stop, observers))
            folders[row.label].append(place)
    return [
        Outcome(
            row,
            datasets[_data_key(row.config)],
            folders[row.label],
            results[row.label],
            paired(results[row.label], results.get(row.reference or "")),
        )
        for row in rows
    ]


def run_name(config: TrainConfig) -> str:
    """One folder for each configuration: experiments share the runs that they have in common."""
    values = json.dumps(config.to_dict(), sort_keys=True)
    return f"{config.slug}-{hashlib.sha256(values.encode()).hexdigest()[:8]}"


def _data_key(config: TrainConfig) -> tuple[Any, ...]:
    return config.data, *sorted(config.data_options.items())


def _datasets(rows: Sequence[Row], data_dir: Path | None) -> dict[tuple[Any, ...], Dataset]:
    """All of them before anything is trained: what is missing is said at once."""
    datasets = {}
    for row in rows:
        key = _data_key(row.config)
        if key not in datasets:
            datasets[key] = load(row.config.data, data_dir, **row.config.data_options)
    return datasets
