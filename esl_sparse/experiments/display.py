"""What people see of a run in the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.console import Console, Group
from rich.panel import Panel
from rich.progress import BarColumn, Progress, ProgressColumn, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from .config import TrainConfig
from .demo import VariantResult
from .records import EpochRecord, StepRecord, TrainResult
from .train import Observer, Trainer

_SMOOTHING = 0.05


def progress_bar(console: Console, *columns: ProgressColumn | str) -> Progress:
    return Progress(
        TextColumn("{task.description}"), BarColumn(None), *columns, TimeRemainingColumn(), console=console
    )


class TrainDisplay(Observer):
    """A progress bar with running means, and one line for each epoch above it."""

    def __init__(self, console: Console) -> None:
        self._bar = progress_bar(
            console,
            "loss {task.fields[loss]:.3f}",
            "acc {task.fields[accuracy]:.1%}",
            "rate {task.fields[rate]:.3f}",
            "density {task.fields[density]:.3f}",
        )

    def started(self, trainer: Trainer) -> None:
        self._trainer = trainer
        self._loss = self._accuracy = self._rate = 0.0
        self._seen = 0.0  # weight of the running means so far, towards 1
        active, total = trainer.weights
        self._task = self._bar.add_task(
            self._epoch(),
            total=trainer.total_steps,
            completed=trainer.iteration,
            loss=0.0,
            accuracy=0.0,
            rate=0.0,
            density=active / total,
        )
        self._bar.start()

    def step(self, record: StepRecord) -> None:
        self._seen += _SMOOTHING * (1 - self._seen)
        self._loss += _SMOOTHING * (record.loss - self._loss)
        self._accuracy += _SMOOTHING * (record.accuracy - self._accuracy)
        self._rate += _SMOOTHING * (record.firing_rate - self._rate)
        self._bar.update(
            self._task,
            description=self._epoch(),
            completed=record.iteration,
            loss=self._loss / self._seen,
            accuracy=self._accuracy / self._seen,
            rate=self._rate / self._seen,
        )

    def epoch_done(self, record: EpochRecord) -> None:
        rate = sum(record.firing_rate.values()) / len(record.firing_rate)
        self._bar.print(
            f"epoch {record.epoch:3d}  loss {record.train_loss:.4f}  acc {record.train_accuracy:.2%}  "
            f"val {record.val_accuracy:.2%}  rate {rate:.3f}  updates {record.updates}  "
            f"{record.samples_per_second:,.0f}/s",
            highlight=False,
        )

    def stopped(self) -> None:
        self._bar.stop()

    def finished(self, result: TrainResult) -> None:
        self._bar.stop()

    def _epoch(self) -> str:
        epochs = self._trainer.config.epochs
        return f"epoch {min(self._trainer.progress.epoch + 1, epochs)}/{epochs}"


class RunProgress:
    """Of many runs: one bar for all of them, one for the run at hand, and a line for each that ends."""

    def __init__(self, bar: Progress, title: str) -> None:
        self.bar = bar
        self._all = bar.add_task(title, total=None, note="")
        self._run = bar.add_task("", total=None, note="", visible=False)

    def run(self, title: str, run: int, runs: int) -> list[Observer]:
        """Observers of the run that begins, the `run`-th of `runs`."""
        self.bar.update(self._all, completed=run, total=runs, note=f"{run}/{runs}")
        self.bar.reset(self._run, description=title, visible=True, note="")
        return [_RunProgress(self.bar, self._run, title)]

    def done(self) -> None:
        task = self.bar.tasks[self._all]
        self.bar.update(self._all, completed=task.total, note=f"{task.total:.0f}/{task.total:.0f}")
        self.bar.update(self._run, visible=False)


class _RunProgress(Observer):
    def __init__(self, bar: Progress, task: TaskID, title: str) -> None:
        self._bar, self._task, self._title = bar, task, title

    def started(self, trainer: Trainer) -> None:
        self._bar.update(self._task, total=trainer.total_steps, completed=trainer.iteration)

    def step(self, record: StepRecord) -> None:
        self._bar.update(self._task, completed=record.iteration)

    def epoch_done(self, record: EpochRecord) -> None:
        self._bar.update(self._task, note=f"val {record.val_accuracy:.2%}")

    def finished(self, result: TrainResult) -> None:
        line = f"{self._title}: test {result.test_accuracy:.2%}, {result.seconds:.0f} s"
        self._bar.print(line, highlight=False)


def result_card(config: TrainConfig, result: TrainResult) -> Panel:
    table = Table.grid(padding=(0, 2))
    state = result.weight_state
    table.add_row(
        "test accuracy",
        f"[bold]{result.test_accuracy:.2%}[/]   epoch {result.best_epoch} of {result.epochs}, "
        f"validation {result.val_accuracy:.2%}",
    )
    table.add_row(
        "weights",
        f"{result.active_weights:,} of {result.total_weights:,} active "
        f"({result.active_weights / result.total_weights:.1%})",
    )
    table.add_row(
        "weight state",
        f"{size(state.total)}, dense {size(state.dense)} ({state.total / state.dense:.1%})",
    )
    table.add_row("", f"values {size(state.values)}, index {size(state.index)},")
    table.add_row("", f"gradient {size(state.gradient)}, optimiser {size(state.optimizer)}")
    table.add_row("speed", f"{result.samples_per_second:,.0f} samples/s, {result.seconds:.0f} s of training")
    table.add_row("updates", f"{result.updates}")
    return Panel(table, title=config.title, title_align="left", expand=False)


def comparison(rows: Sequence[tuple[TrainConfig, TrainResult]]) -> Table:
    table = _table("test", "weights", "state", "of dense", "samples/s")
    for config, result in rows:
        state = result.weight_state
        table.add_row(
            config.slug,
            f"{result.test_accuracy:.2%}",
            f"{result.active_weights:,}",
            size(state.total),
            f"{state.total / state.dense:.1%}",
            f"{result.samples_per_second:,.0f}",
        )
    return table


def demo_card(config: TrainConfig, results: Mapping[str, VariantResult]) -> Panel:
    """One line a variant; `config` is the sparse one's."""
    table = _table("test accuracy", "seconds", "samples/s", "peak memory", "weight state", "updates")
    for name, variant in results.items():
        result = variant.result
        table.add_row(
            name,
            f"{result.test_accuracy:.2%}",
            f"{result.seconds:.0f}",
            f"{result.samples_per_second:,.0f}",
            size(variant.peak_memory),
            size(result.weight_state.total),
            f"{result.updates}" if result.updates else "",
        )
    note = (
        "seconds: training without validation. peak memory: resident, above libraries and data, in a process "
        "of its own. weight state: values, index or mask, gradient, optimiser state."
    )
    hidden = "-".join(map(str, config.hidden))
    title = (
        f"{config.data}, hidden {hidden}, T {config.T}, {config.epochs} epochs, density {config.density:g}"
    )
    return Panel(Group(table, "", Text(note, "dim")), title=title, title_align="left", expand=False)


def _table(*columns: str) -> Table:
    table = Table(box=None, padding=(0, 1))
    table.add_column("", no_wrap=True)
    for column in columns:
        table.add_column(column, justify="right")
    return table


def size(count: float) -> str:
    """Bytes with three digits: 4.22 kB, 283 kB, 2.54 MB."""
    units = ["GB", "MB", "kB", "B"]
    while count >= 999.5 and len(units) > 1:
        count /= 1000
        units.pop()
    return f"{count:.3g} {units[-1]}"
