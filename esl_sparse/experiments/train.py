"""The training loop: epochs with validation, checkpoints at any iteration, one test at the end."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..checkpoint import CheckpointError, load_checkpoint, restore, save_checkpoint
from ..data import Dataset, Split
from ..data.augment import augment
from ..rewire import RewireReport
from .build import build
from .config import TrainConfig
from .layers import FiringRates, active_weights, densities, total_weights, weight_layers, weight_state
from .processes import ALONE, Processes
from .records import EpochRecord, EpochSums, Progress, RewireRecord, StepRecord, TrainResult

CHECKPOINT = "checkpoint.pt"
BEST = "best.pt"


class Interrupted(Exception):
    """Training was asked to stop and left a checkpoint to resume from."""


class RunError(Exception):
    """A run cannot be made as asked; the message is one sentence for people."""


class Observer:
    """Told about a run while it happens; override what is of interest."""

    def started(self, trainer: Trainer) -> None: ...

    def step(self, record: StepRecord) -> None: ...

    def rewired(self, records: Sequence[RewireRecord]) -> None: ...

    def epoch_done(self, record: EpochRecord) -> None: ...

    def stopped(self) -> None: ...

    def finished(self, result: TrainResult) -> None: ...


class Trainer:
    """One run in one folder, where it keeps its checkpoint and its best model.

    Everything random comes from the seed: the same configuration gives the same weights, and a run resumed
    from a checkpoint continues with the same batches to the same bits. (On a GPU with narrow dtypes or TF32 that takes
    ``torch.use_deterministic_algorithms``: else a clock chooses tiles, and tiles the order of sums.)

    Of several `processes` each trains on its share of the same batches; the first one writes the files.
    """

    def __init__(
        self,
        config: TrainConfig,
        dataset: Dataset,
        folder: Path,
        observers: Sequence[Observer] = (),
        checkpoint_every: int = 1,
        processes: Processes = ALONE,
    ) -> None:
        self.config = config
        self.dataset = dataset
        self.folder = folder
        self.observers = observers
        self.checkpoint_every = checkpoint_every
        self.processes = processes
        self.train, self.val = dataset.split_validation(seed=config.seed)
        self.steps_per_epoch = -(-len(self.train) // config.batch_size)
        self.total_steps = config.epochs * self.steps_per_epoch
        parts = build(config, dataset, self.total_steps, processes)
        self.model, self._network, self.loss, self.optimizer, self.scheduler, self.rewirer = parts
        self.rates = FiringRates(self.model)
        self.progress = Progress(r_s=densities(self.model))
        self._augment = augment(config.augment)
        self._augment_generator = torch.Generator().manual_seed(config.seed)

    @property
    def iteration(self) -> int:
        return self.progress.epoch * self.steps_per_epoch + self.progress.step_in_epoch

    @property
    def _augments(self) -> bool:
        return self.config.augment != "none"

    @property
    def lr(self) -> float:
        return float(self.scheduler.get_last_lr()[0])

    @property
    def weights(self) -> tuple[int, int]:
        """Active and potential weights of the model."""
        layers = [layer for _, layer in weight_layers(self.model)]
        return sum(map(active_weights, layers)), sum(map(total_weights, layers))

    def fit(self, should_stop: Callable[[], bool] = lambda: False) -> TrainResult:
        """Train from where the run stands to its end, then test the best epoch's model.

        `should_stop` is asked after every iteration; once it says yes, a checkpoint is written and
        `Interrupted` is raised.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        for observer in self.observers:
            observer.started(self)
        try:
            while self.progress.epoch < self.config.epochs:
                self._train_epoch(should_stop)
                self._finish_epoch()
            result = self._test()
        except BaseException:
            for observer in self.observers:
                observer.stopped()
            raise
        for observer in self.observers:
            observer.finished(result)
        return result

    def _train_epoch(self, should_stop: Callable[[], bool]) -> None:
        self.model.train()
        order = self._order(self.progress.epoch)
        for index in order.split(self.config.batch_size)[self.progress.step_in_epoch :]:
            if self._step(index, should_stop):
                self.save()
                raise Interrupted

    def _order(self, epoch: int) -> Tensor:
        """The epoch's order of samples, a function of seed and epoch alone."""
        generator = torch.Generator().manual_seed(self.config.seed * 1_000_003 + epoch)
        return torch.randperm(len(self.train), generator=generator)

    def _step(self, index: Tensor, should_stop: Callable[[], bool]) -> bool:
        """One iteration; whether it is to be the last one, which all processes learn."""
        start = time.perf_counter()
        index, weight = self.processes.share(index)
        images, labels = self.train[index]
        if self.processes.size > 1:  # nothing to save that would be one process's alone
            self._augment_generator.manual_seed(hash((self.config.seed, self.iteration, self.processes.rank)))
        images, labels = self._placed(self._augment(images, self._augment_generator), labels)
        lr = self.lr
        self.optimizer.zero_grad()
        outputs = self._network(images)
        loss = self.loss(outputs, labels)
        (loss if weight == 1 else weight * loss).backward()
        self.optimizer.step()
        self.scheduler.step()
        report = self.rewirer.step() if self.rewirer else None
        self.progress.step_in_epoch += 1

        correct = int((outputs.detach().mean(0).argmax(1) == labels).sum())
        n = len(labels) if weight else 0
        parts = (
            n,
            loss.item() * n,
            correct * n / len(labels),
            *(r * n for r in self.rates.last.values()),
        )
        samples, total_loss, total_correct, *fired = self.processes.sums(parts)
        rates = {name: rate / samples for name, rate in zip(self.rates.last, fired, strict=True)}
        mean_loss, correct, samples = total_loss / samples, round(total_correct), round(samples)
        self.progress.sums.add(mean_loss, correct, samples, time.perf_counter() - start, rates)
        record = StepRecord(
            self.iteration, mean_loss, correct / samples, sum(rates.values()) / len(rates), lr
        )
        for observer in self.observers:
            observer.step(record)
        if report is not None:
            self._rewired(report)
        (stop,) = self.processes.sums([should_stop()])  # asked last: who is asked may save
        return stop > 0

    def _placed(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        return images.to(self.processes.device), labels.to(self.processes.device)

    def _rewired(self, report: RewireReport) -> None:
        self.progress.updates += 1
        records = [
            RewireRecord(self.iteration, layer.name, layer.pruned, layer.grown, layer.density, layer.r_s)
            for layer in report.layers
        ]
        self.progress.r_s.update({record.layer: record.r_s for record in records})
        for observer in self.observers:
            observer.rewired(records)

    def _finish_epoch(self) -> None:
        self.processes.share_statistics(self.model)
        val_loss, val_accuracy = self.evaluate(self.val)
        progress, sums = self.progress, self.progress.sums
        progress.epoch, progress.step_in_epoch, progress.sums = progress.epoch + 1, 0, EpochSums()
        progress.seconds += sums.seconds
        progress.weight_state = weight_state(self.model, self.optimizer)
        record = EpochRecord(
            epoch=progress.epoch,
            iteration=self.iteration,
            lr=self.lr,
            train_loss=sums.loss / sums.samples,
            train_accuracy=sums.correct / sums.samples,
            val_loss=val_loss,
            val_accuracy=val_accuracy,
            seconds=sums.seconds,
            samples_per_second=sums.samples / sums.seconds,
            updates=progress.updates,
            density=densities(self.model),
            r_s=dict(progress.r_s),
            firing_rate={name: total / sums.samples for name, total in sums.firing_rate.items()},
        )
        if val_accuracy > progress.best_accuracy:
            progress.best_accuracy, progress.best_epoch = val_accuracy, progress.epoch
            best = {"config": self.config.to_dict(), "model": self.model.state_dict()}
            self._write(BEST, best)
        for observer in self.observers:
            observer.epoch_done(record)
        if progress.epoch % self.checkpoint_every == 0 or progress.epoch == self.config.epochs:
            self.save()

    @torch.no_grad()
    def evaluate(self, split: Split) -> tuple[float, float]:
        """Mean loss and top-1 accuracy."""
        self.model.eval()
        loss, correct = 0.0, 0
        own = split.subset(torch.arange(self.processes.rank, len(split), self.processes.size))
        for samples in own.batches(2 * self.config.batch_size):  # nothing is kept for backward
            images, labels = self._placed(*samples)
            outputs = self.model(images)
            loss += self.loss(outputs, labels).item() * len(labels)
            correct += int((outputs.mean(0).argmax(1) == labels).sum())
        loss, all_correct = self.processes.sums([loss, correct])
        return loss / len(split), round(all_correct) / len(split)

    def _test(self) -> TrainResult:
        progress = self.progress
        assert progress.weight_state is not None  # at least one epoch was trained
        restore({"model": self.model}, load_checkpoint(self.folder / BEST))
        loss, accuracy = self.evaluate(self.dataset.test)
        active, total = self.weights
        return TrainResult(
            test_accuracy=accuracy,
            test_loss=loss,
            val_accuracy=progress.best_accuracy,
            best_epoch=progress.best_epoch,
            epochs=progress.epoch,
            active_weights=active,
            total_weights=total,
            weight_state=progress.weight_state,
            seconds=progress.seconds,
            samples_per_second=progress.epoch * len(self.train) / progress.seconds,
            updates=progress.updates,
        )

    def save(self) -> None:
        """Write everything that the rest of the run depends on."""
        state = {
            "config": self.config.to_dict(),
            "progress": asdict(self.progress),
            "rng": torch.get_rng_state(),
            **({"augment_rng": self._augment_generator.get_state()} if self._augments else {}),
            **{name: part.state_dict() for name, part in self._parts().items()},
        }
        self._write(CHECKPOINT, state)

    def _write(self, name: str, state: Mapping[str, Any]) -> None:
        if self.processes.first:
            save_checkpoint(self.folder / name, state)
        self.processes.wait()

    def resume(self, state: Mapping[str, Any]) -> None:
        """Continue where `save` left off; `state` is what `load_checkpoint` read.

        Raises:
            CheckpointError: it is not of this run, or something in it does not fit; the trainer is as before.
        """
        found = config_of(state)
        if changed := [k for k, v in found.to_dict().items() if v != getattr(self.config, k)]:
            name = changed[0]
            raise CheckpointError(
                f"The checkpoint is of another run: its {name} is {getattr(found, name)!r}, not "
                f"{getattr(self.config, name)!r}."
            )
        try:
            progress = Progress.from_dict(state.get("progress"))
            self._check_progress(progress)
            torch.Generator().set_state(state.get("rng"))  # type: ignore[arg-type]
            augment_generator = torch.Generator()
            if self._augments:
                augment_generator.set_state(state.get("augment_rng"))  # type: ignore[arg-type]
        except (RuntimeError, TypeError, ValueError) as error:
            raise CheckpointError(f"The run's progress or random state does not fit: {error}.") from error
        restore(self._parts(), state)
        self.progress, self._augment_generator = progress, augment_generator
        torch.set_rng_state(state["rng"])

    def _check_progress(self, progress: Progress) -> None:
        for name, most in (
            ("epoch", self.config.epochs),
            ("step_in_epoch", self.steps_per_epoch if progress.epoch < self.config.epochs else 0),
            ("best_epoch", progress.epoch),
            ("updates", self.total_steps),
        ):
            if not 0 <= (number := getattr(progress, name)) <= most:
                raise ValueError(f"expected {name} from 0 to {most}, got {number}")
        if (progress.weight_state is None) != (progress.epoch == 0):
            raise ValueError(f"weight_state: {progress.weight_state!r} after epoch {progress.epoch}")

    def _parts(self) -> dict[str, Any]:
        parts = {"model": self.model, "optimizer": self.optimizer, "scheduler": self.scheduler}
        return parts | ({"rewirer": self.rewirer} if self.rewirer else {})


def config_of(state: Mapping[str, Any]) -> TrainConfig:
    """The configuration in a checkpoint."""
    try:
        return TrainConfig.from_dict(state["config"])
    except KeyError:
        raise CheckpointError("The checkpoint has no config.") from None
    except (AttributeError, TypeError, ValueError) as error:
        raise CheckpointError(f"The checkpoint's config does not fit: {error}.") from error
