"""Command-line options that commands share."""

from __future__ import annotations

from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import click

from ..data import DATASETS
from ..data.augment import AUGMENTATIONS
from ..data.dvs_cifar10 import SPLITS
from ..rewire import GROW_RULES, PRUNE_RULES, REDISTRIBUTIONS
from ..rewire.distribution import DISTRIBUTIONS
from .build import EXTRA_GROW_RULES
from .config import LOSSES, MODELS, OPTIMIZERS, READOUTS, SCHEDULES, STRUCTURES, TrainConfig
from .presets import PRESETS

FOLDER = click.Path(file_okay=False, path_type=Path)
EXISTING = click.Path(exists=True, path_type=Path)
AT_LEAST_1 = click.IntRange(min=1)


class Sizes(click.ParamType):
    """Integers with a separator: 800-400, 4x4."""

    def __init__(self, separator: str, *, count: int | None = None, word: str | None = None) -> None:
        self.separator, self.count, self.word = separator, count, word
        self.name = separator.join(["N"] * (count or 2))

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not isinstance(value, str) or value == self.word:
            return value
        parts = value.split(self.separator)
        if not all(part.isdigit() for part in parts) or self.count not in (None, len(parts)):
            expected = f"{self.name} or {self.word}" if self.word else f"N or {self.name}"
            self.fail(f"expected {expected}, got {value!r}", param, ctx)
        return tuple(map(int, parts))


_CONFIG: dict[str, tuple[Any, str]] = {
    "data": (click.Choice(tuple(DATASETS)), "Data set."),
    "size": (int, "Width and height of event frames.  [default: the data set's]"),
    "split": (click.Choice(tuple(SPLITS)), "How dvs-cifar10 is split.  [default: tet]"),
    "augment": (click.Choice(tuple(AUGMENTATIONS)), "Random changes of training images."),
    "model": (click.Choice(MODELS), "Network."),
    "hidden": (Sizes("-"), "Neurons of hidden layers (mlp, single-spike), as in 800 or 800-400."),
    "channels": (Sizes("-"), "Channels of the convnet's stages."),
    "structure": (
        click.Choice(STRUCTURES),
        "What sparse layers are: dense, masked, static or evolving blocks, or Deep R.",
    ),
    "density": (float, "Fraction of the weights that exist: hidden layers' (mlp, single-spike), or all."),
    "distribution": (
        click.Choice(("auto", *DISTRIBUTIONS)),
        "How layers share the density; auto: uniform for mlp and single-spike, else erk.",
    ),
    "block_size": (Sizes("x", count=2, word="auto"), "Weight blocks, outputs x inputs, or auto."),
    "T": (int, "Time steps."),
    "tau": (float, "Decay factor of the membrane potential in one step."),
    "readout": (click.Choice(READOUTS), "Output: the current of each step, or its running sum."),
    "loss": (click.Choice(LOSSES), "Cross-entropy at every step (tet), or of the mean over time."),
    "weight_sum": (float, "single-spike: what a hidden neuron's weights add up to at the start, on average."),
    "z_scale": (float, "single-spike: factor of exp(spike time) in the loss."),
    "weight_sum_cost": (float, "single-spike: cost of weights that sum to less than 1."),
    "l2": (float, "single-spike: cost of squared weights."),
    "grad_limit": (float, "single-spike: largest norm of the gradient of a neuron's weights."),
    "epochs": (int, "Passes through the training data."),
    "batch_size": (int, "Images in a batch."),
    "lr": (float, "Learning rate."),
    "optimizer": (click.Choice(OPTIMIZERS), "Optimiser."),
    "schedule": (click.Choice(SCHEDULES), "Course of the learning rate."),
    "prune": (click.Choice(sorted(PRUNE_RULES)), "Which weights an update removes."),
    "grow": (click.Choice(sorted([*GROW_RULES, *EXTRA_GROW_RULES])), "Which weights an update adds."),
    "alpha": (float, "Fraction of the weights that the first update replaces."),
    "interval": (int, "Iterations between updates."),
    "t_start": (float, "Fraction of the training before which the structure stays."),
    "t_end": (float, "Fraction of the training after which the structure stays."),
    "redistribute": (
        click.Choice(("none", *REDISTRIBUTIONS)),
        "By what layers share out the weights that all of them lost.",
    ),
    "seed": (int, "Seed of everything random."),
}


def config_options(leave_out: Collection[str] = ()) -> Callable[[Callable], Callable]:
    """One option for each field of `TrainConfig`, with the field's default."""

    def add(command: Callable) -> Callable:
        for name, (type, help) in reversed(_CONFIG.items()):
            if name not in leave_out:
                default = getattr(TrainConfig, name)
                if isinstance(type, Sizes):
                    default = type.separator.join(map(str, default))
                command = click.option(
                    flag(name), name, type=type, default=default, show_default=True, help=help
                )(command)
        return command

    return add


def preset_option(command: Callable) -> Callable:
    """`--preset` gives other options their defaults; what is typed counts more."""

    def take(ctx: click.Context, param: click.Parameter, name: str | None) -> None:
        if name is not None:
            values = PRESETS[name]
            ctx.default_map = {**values, **({"lrs": [values["lr"]]} if "lr" in values else {})}

    return click.option(
        "--preset",
        type=click.Choice(tuple(PRESETS)),
        callback=take,
        is_eager=True,
        expose_value=False,
        help="Settings under a name; options beside it count more (docs/training.md).",
    )(command)


def machine_options(command: Callable) -> Callable:
    command = click.option("--data-dir", type=FOLDER, help="The only folder to look for the data set in.")(
        command
    )
    return click.option("--threads", type=AT_LEAST_1, help="CPU threads.  [default: torch's choice]")(command)


def flag(name: str) -> str:
    return "--" + name.replace("_", "-")
