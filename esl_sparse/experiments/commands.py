"""The commands of `esl-sparse`."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from typing import Any

import click
import torch
from click.core import ParameterSource
from rich.console import Console
from rich.panel import Panel
from rich.progress import Progress, TaskID
from rich.text import Text

from .. import backends
from .._version import __version__
from ..checkpoint import CheckpointError, load_checkpoint
from ..data import DATASETS, DataNotFoundError, Dataset, load
from .config import TrainConfig
from .demo import VariantResult, configurations, run_variant
from .display import RunProgress, TrainDisplay, comparison, demo_card, progress_bar, result_card
from .html_report import read_runs, write_report
from .options import AT_LEAST_1, EXISTING, FOLDER, config_options, flag, machine_options, preset_option
from .plots import plot_run
from .processes import LostProcessError, Processes, join_processes
from .protocol import CONVOLUTIONAL, SUITES, run_protocol, write_tables
from .reproduce import EXPERIMENTS, Scale
from .reproduce import reproduce as run_experiment
from .reproduce.page import write_page
from .run_folder import RunFolder
from .signals import stop_requests
from .train import CHECKPOINT, Interrupted, RunError, Trainer, config_of

console = Console()
INTERRUPTED = 130


@click.group(invoke_without_command=True, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="esl_sparse")
@click.pass_context
def cli(ctx: click.Context) -> None:
    """Train spiking neural networks sparse from scratch."""
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())


@cli.command()
@preset_option
@config_options()
@machine_options
@click.option("--run-dir", type=FOLDER, help="Folder of the run.  [default: a new one in runs/]")
@click.option("--resume", type=EXISTING, help="Run folder, or its checkpoint, to continue exactly.")
@click.option(
    "--checkpoint-every", type=AT_LEAST_1, default=1, show_default=True, help="Epochs between checkpoints."
)
@click.option(
    "--device",
    type=click.Choice(("cpu", "cuda")),
    default="cpu",
    show_default=True,
    help="Where to train; under torchrun, one CUDA device for each process.",
)
@click.pass_context
def train(
    ctx: click.Context,
    threads: int | None,
    data_dir: Path | None,
    run_dir: Path | None,
    resume: Path | None,
    checkpoint_every: int,
    device: str,
    **options: Any,
) -> None:
    """Train a spiking network; everything about the run goes into one folder.

    On several processes: torchrun --nproc-per-node N -m esl_sparse train ... Each takes its share of every batch.
    """
    set_threads(threads)
    with stop_requests() as should_stop, _joined(device) as processes:
        if resume:
            _refuse_changes(ctx, {*options, "run_dir", "preset"})
            trainer = _resumed(resume, data_dir, checkpoint_every, processes)
        else:
            trainer = _new(options, data_dir, run_dir, checkpoint_every, processes)
        try:
            result = trainer.fit(should_stop)
        except Interrupted:
            if processes.first:
                click.echo(
                    f"Interrupted after iteration {trainer.iteration:,} of {trainer.total_steps:,}; continue:\n"
                    f"  esl-sparse train --resume {trainer.folder}"
                )
            ctx.exit(INTERRUPTED)
        if processes.first:
            console.print(result_card(trainer.config, result))
            click.echo(f"Run folder: {trainer.folder}")


@contextmanager
def _joined(device: str) -> Iterator[Processes]:
    try:
        with join_processes(device) as processes:
            yield processes
    except LostProcessError as error:
        raise RunError(
            f"{error}; its last checkpoint stands: --resume continues, also with fewer processes."
        ) from error
    except ValueError as error:
        if str(error).startswith("device:"):
            raise click.UsageError(str(error)) from None
        raise


@cli.command()
@click.option("--epochs", type=AT_LEAST_1, default=15, show_default=True, help="Epochs of each network.")
@click.option("--data", type=click.Choice(tuple(DATASETS)), default="mnist", show_default=True)
@machine_options
def demo(epochs: int, data: str, threads: int | None, data_dir: Path | None) -> None:
    """Train one spiking network dense, masked and block-sparse, and compare them (three minutes)."""
    set_threads(threads)
    configs = configurations(load_or_digits(TrainConfig(data=data), data_dir), epochs)
    results: dict[str, VariantResult] = {}
    with progress_bar(console) as bar:
        tasks = {name: bar.add_task(name, total=None) for name in configs}
        for name, config in configs.items():
            results[name] = run_variant(config, data_dir, partial(_advance, bar, tasks[name]))
    console.print(demo_card(config, results))


@cli.command()
@preset_option
@config_options(leave_out=("structure", "density", "block_size", "hidden", "lr", "seed"))
@click.option(
    "--suite",
    type=click.Choice(tuple(SUITES)),
    default="density",
    show_default=True,
    help="The rows: densities and blocks; every prune and growth rule against the static topology; or, of a "
    "convolutional network, sparse against dense (conv) and by density (dvs-conv).",
)
@machine_options
@click.option(
    "--lr",
    "lrs",
    type=float,
    multiple=True,
    default=(TrainConfig.lr,),
    show_default=True,
    help="Learning rate; of several, each row takes the one that validates best with its first seed.",
)
@click.option("--seeds", type=AT_LEAST_1, default=5, show_default=True, help="Runs of each row.")
@click.option(
    "--row", "names", multiple=True, metavar="PATTERN", help="Rows to run, as in 'set+*'.  [default: all]"
)
@click.option(
    "--runs",
    type=FOLDER,
    help="Folder of the runs; finished ones are kept.  [default: runs/protocol-DATA, or -DATA-MODEL]",
)
@click.option(
    "--out",
    type=FOLDER,
    default=Path("benchmarks/results"),
    show_default=True,
    help="Folder for the tables.",
)
@click.option(
    "--name",
    help="Name of the tables, NAME.json and NAME.md.  [default: that of the data and the suite or the model]",
)
@click.pass_context
def protocol(
    ctx: click.Context,
    lrs: tuple[float, ...],
    seeds: int,
    suite: str,
    names: tuple[str, ...],
    runs: Path | None,
    out: Path,
    name: str | None,
    threads: int | None,
    data_dir: Path | None,
    **options: Any,
) -> None:
    """Measure accuracy by the protocol: all rows, several seeds, differences to dense in pairs."""
    set_threads(threads)
    base = _config(options)
    if (suite in CONVOLUTIONAL) != (base.model != "mlp"):
        fitting = "--preset fashion-convnet or --model convnet" if suite in CONVOLUTIONAL else "--model mlp"
        raise click.UsageError(f"suite: {suite} has no rows for {base.model}; see {fitting}.")
    dataset = load(base.data, data_dir, **base.data_options)
    rows = _matching(SUITES[suite], names)
    subject = base.data if base.model == "mlp" else f"{base.data}-{base.model}"
    folder = runs or Path("runs") / f"protocol-{subject}"
    with stop_requests() as should_stop:
        try:
            results = run_protocol(base, dataset, rows, range(seeds), lrs, folder, should_stop, click.echo)
        except Interrupted:
            click.echo("Interrupted; the same command continues.")
            ctx.exit(INTERRUPTED)
    stem = f"{subject}-{suite}" if suite in ("rules", "rules-1x1") else subject
    for path in write_tables(out, name or stem, base, seeds, lrs, results):
        click.echo(path)


@cli.command()
@click.argument("what", type=click.Choice((*EXPERIMENTS, "all")))
@click.option("--quick", is_flag=True, help="A smoke run of minutes, on 8x8 digits: accuracies mean nothing.")
@click.option(
    "--stand-in",
    is_flag=True,
    help="table2, fig3, fig4: small networks on Fashion-MNIST and its events, in place of CIFAR and DVS-CIFAR10.",
)
@click.option(
    "--seeds", type=AT_LEAST_1, help="Runs of each row.  [default: 5 for table1; table2, fig2: 3; else 2]"
)
@click.option(
    "--runs",
    type=FOLDER,
    default=Path("runs/reproduce"),
    show_default=True,
    help="Folder of the runs; finished ones are not repeated.",
)
@click.option(
    "--out", type=FOLDER, default=Path("reproduction"), show_default=True, help="Folder for pages and plots."
)
@machine_options
@click.pass_context
def reproduce(
    ctx: click.Context,
    what: str,
    quick: bool,
    stand_in: bool,
    seeds: int | None,
    runs: Path,
    out: Path,
    threads: int | None,
    data_dir: Path | None,
) -> None:
    """Train what a table or figure of the paper shows, and write a page with the paper's figures beside ours."""
    set_threads(threads)
    if quick and stand_in:
        raise click.UsageError("--quick and --stand-in are two scales: choose one.")
    chosen = list(EXPERIMENTS.values()) if what == "all" else [EXPERIMENTS[what]]
    with stop_requests() as should_stop:
        for experiment in chosen:
            wanted = Scale.QUICK if quick else Scale.STAND_IN if stand_in else Scale.PAPER
            if wanted not in experiment.scales and what != "all":
                raise click.UsageError(f"--{wanted.value}: {what} has no such scale, its data is MNIST.")
            scale = wanted if wanted in experiment.scales else Scale.PAPER
            count = seeds or (2 if quick else experiment.seeds)
            try:
                with progress_bar(console, "{task.fields[note]}") as bar:
                    show = RunProgress(bar, experiment.stem(scale))
                    outcomes = run_experiment(experiment, scale, count, runs, data_dir, should_stop, show.run)
                    show.done()
            except Interrupted:
                click.echo("Interrupted; the same command continues.")
                ctx.exit(INTERRUPTED)
            except DataNotFoundError as error:
                if scale is Scale.PAPER and Scale.STAND_IN in experiment.scales:
                    raise DataNotFoundError(
                        f"{error}\nOr train small networks on other data: --stand-in."
                    ) from None
                raise
            for path in write_page(experiment, scale, outcomes, out):
                click.echo(path)


def _matching(rows: dict[str, dict[str, Any]], patterns: tuple[str, ...]) -> dict[str, dict[str, Any]]:
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in rows):
            raise click.BadParameter(f"no row is called {pattern!r}; there are: {', '.join(rows)}")
    return {
        name: row for name, row in rows.items() if not patterns or any(fnmatchcase(name, x) for x in patterns)
    }


@cli.command()
@click.argument("folders", metavar="RUN...", nargs=-1, required=True, type=EXISTING)
@click.option(
    "--html",
    type=click.Path(dir_okay=False, path_type=Path),
    help="The page to write.  [default: report.html, of one run in its folder, of several here]",
)
def report(folders: tuple[Path, ...], html: Path | None) -> None:
    """Compare runs, finished or not: here, on one HTML page, and in their plots, drawn anew."""
    runs = read_runs(folders)
    for folder in folders:
        plot_run(folder)
    finished = [(run.config, run.result) for run in runs if run.result]
    if len(finished) == 1:
        console.print(result_card(*finished[0]))
    elif finished:
        console.print(comparison(finished))
    for run in runs:
        if not run.result:
            click.echo(f"{run.name} is unfinished, {len(run.epochs)} of {run.config.epochs} epochs.")
    page = html or (folders[0] if len(folders) == 1 else Path()) / "report.html"
    write_report(page, runs)
    click.echo(f"Page: {page}")


@cli.command()
def info() -> None:
    """Say what is compiled in, what is usable here and what would be chosen."""
    click.echo(str(backends()))


def _advance(bar: Progress, task: TaskID, done: int, total: int) -> None:
    bar.update(task, completed=done, total=total)


def set_threads(threads: int | None) -> None:
    if threads is not None:
        torch.set_num_threads(threads)


def load_or_digits(config: TrainConfig, data_dir: Path | None) -> Dataset:
    """The data set; where it cannot be had at all, the digits inside scikit-learn, with a loud notice.

    The digits stand in for still images that a perceptron sees. A convolutional network is made for its data.
    """
    try:
        return load(config.data, data_dir, **config.data_options)
    except DataNotFoundError as error:
        if data_dir is not None or config.model != "mlp" or config.data_options:
            raise
        notice = Text(f"{error}\n\nTraining on digits (8x8, inside scikit-learn) instead.")
        console.print(Panel(notice, title=f"{config.data} IS NOT AVAILABLE", style="bold red"))
        return load("digits")


def _config(options: dict[str, Any]) -> TrainConfig:
    try:
        return TrainConfig(**options)
    except ValueError as error:
        raise click.UsageError(str(error)) from None


def _new(
    options: dict[str, Any],
    data_dir: Path | None,
    run_dir: Path | None,
    checkpoint_every: int,
    processes: Processes,
) -> Trainer:
    config = _config(options)
    with processes.first_alone():
        dataset = load_or_digits(config, data_dir)
    config = replace(config, data=dataset.name)
    start = time.strftime("%Y%m%d-%H%M%S", time.localtime(processes.of_first(int(time.time()))))
    folder = run_dir or Path("runs") / f"{start}-{config.slug}"
    if processes.first and (folder / "config.json").exists():
        raise RunError(f"{folder} already holds a run: choose another folder, or --resume {folder}.")
    return _trainer(config, dataset, folder, checkpoint_every, processes)


def _resumed(path: Path, data_dir: Path | None, checkpoint_every: int, processes: Processes) -> Trainer:
    checkpoint = path / CHECKPOINT if path.is_dir() else path
    folder = checkpoint.parent
    if (folder / "result.json").exists():
        raise RunError(f"{folder} holds a finished run: see it with esl-sparse report {folder}.")
    if path.is_dir() and not checkpoint.exists() and (folder / "config.json").exists():
        return _started_again(folder, data_dir, checkpoint_every, processes)
    state = load_checkpoint(checkpoint)
    if "progress" not in state:
        raise RunError(f"{checkpoint} holds a model, but no run to continue.")
    try:
        config = config_of(state)
        dataset = load(config.data, data_dir, **config.data_options)
        trainer = _trainer(config, dataset, folder, checkpoint_every, processes)
        trainer.resume(state)
    except CheckpointError as error:
        raise CheckpointError(f"{checkpoint}: {error}") from error
    return trainer


def _started_again(
    folder: Path, data_dir: Path | None, checkpoint_every: int, processes: Processes
) -> Trainer:
    """A run that was killed before its first checkpoint."""
    try:
        config = TrainConfig.from_dict(json.loads((folder / "config.json").read_text()))
    except (TypeError, ValueError) as error:
        raise RunError(f"{folder / 'config.json'} cannot be read: {error}.") from None
    dataset = load(config.data, data_dir, **config.data_options)
    return _trainer(config, dataset, folder, checkpoint_every, processes)


def _trainer(
    config: TrainConfig, dataset: Dataset, folder: Path, checkpoint_every: int, processes: Processes
) -> Trainer:
    observers = [RunFolder(folder, config), TrainDisplay(console)] if processes.first else []
    try:
        return Trainer(config, dataset, folder, observers, checkpoint_every, processes)
    except (TypeError, ValueError) as error:
        raise click.UsageError(str(error)) from None


def _refuse_changes(ctx: click.Context, names: set[str]) -> None:
    """A resumed run continues exactly: options that would change it are refused, not ignored."""
    given = sorted(n for n in names if ctx.get_parameter_source(n) is ParameterSource.COMMANDLINE)
    if given:
        raise click.UsageError(
            f"--resume continues a run as it was configured: leave out {', '.join(map(flag, given))}."
        )
