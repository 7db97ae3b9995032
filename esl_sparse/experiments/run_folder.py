"""The record of a run: config.json, metrics.csv, log.jsonl, TensorBoard events, result.json, plots."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter

from .config import TrainConfig
from .log import epoch_rows, read_log, write_csv, write_json
from .plots import plot_run
from .records import EpochRecord, RewireRecord, StepRecord, TrainResult, WeightState
from .train import Observer, Trainer

_LOG_EVERY = 50  # iterations


class RunFolder(Observer):
    """Writes one run into `path`. A resumed log goes on from the checkpoint: later lines are dropped."""

    def __init__(self, path: Path, config: TrainConfig) -> None:
        self.path = path
        self.config = config

    def started(self, trainer: Trainer) -> None:
        write_json(self.path / "config.json", self.config.to_dict())
        kept = [entry for entry in read_log(self.path) if entry["iteration"] <= trainer.iteration]
        self._log = (self.path / "log.jsonl").open("w", buffering=1)
        self._log.writelines(json.dumps(entry) + "\n" for entry in kept)
        self._events = SummaryWriter(str(self.path / "tensorboard"), purge_step=trainer.iteration + 1)

    def step(self, record: StepRecord) -> None:
        if record.iteration % _LOG_EVERY == 0:
            self._write("step", record)
            self._scalars(
                record.iteration, train_loss=record.loss, firing_rate=record.firing_rate, lr=record.lr
            )

    def rewired(self, records: Sequence[RewireRecord]) -> None:
        for record in records:
            self._write("rewire", record)
            self._scalars(record.iteration, **{f"r_s/{record.layer}": record.r_s})

    def epoch_done(self, record: EpochRecord) -> None:
        self._write("epoch", record)
        self._scalars(
            record.iteration,
            train_accuracy=record.train_accuracy,
            val_loss=record.val_loss,
            val_accuracy=record.val_accuracy,
            samples_per_second=record.samples_per_second,
            **{f"density/{layer}": density for layer, density in record.density.items()},
        )
        write_csv(self.path / "metrics.csv", epoch_rows(self.path))

    def stopped(self) -> None:
        self._log.close()
        self._events.close()
        plot_run(self.path)

    def finished(self, result: TrainResult) -> None:
        write_json(self.path / "result.json", {"config": self.config.to_dict(), **asdict(result)})
        self.stopped()

    def _write(self, event: str, record: Any) -> None:
        self._log.write(json.dumps({"event": event, **asdict(record)}) + "\n")

    def _scalars(self, iteration: int, **values: float) -> None:
        for name, value in values.items():
            self._events.add_scalar(name, value, iteration)


def read_result(folder: Path) -> tuple[TrainConfig, TrainResult]:
    """What `finished` wrote."""
    values = json.loads((folder / "result.json").read_text())
    config = TrainConfig.from_dict(values.pop("config"))
    return config, TrainResult(**{**values, "weight_state": WeightState(**values["weight_state"])})
