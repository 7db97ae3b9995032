"""Everything that decides a training run, as plain values that go into `config.json` and into checkpoints."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from ..data import DATASETS, options_of
from ..data.augment import AUGMENTATIONS
from ..data.dvs_cifar10 import SPLITS
from ..rewire import REDISTRIBUTIONS
from ..rewire.distribution import DISTRIBUTIONS

STRUCTURES = ("dense", "mask", "static", "evolve", "deep_r")
MODELS = ("mlp", "single-spike", "convnet", "vggsnn", "resnet19")
OPTIMIZERS = ("adam", "adamw", "sgd")
SCHEDULES = ("cosine", "exponential", "constant")
READOUTS = ("current", "integrate")
LOSSES = ("tet", "mean")

_CHOICES = {
    "data": tuple(DATASETS),
    "augment": tuple(AUGMENTATIONS),
    "model": MODELS,
    "structure": STRUCTURES,
    "distribution": ("auto", *DISTRIBUTIONS),
    "optimizer": OPTIMIZERS,
    "schedule": SCHEDULES,
    "readout": READOUTS,
    "loss": LOSSES,
    "redistribute": ("none", *REDISTRIBUTIONS),
}


@dataclass(frozen=True)
class TrainConfig:
    """One run. `structure` says what the sparse layers are:

    dense: torch's own. mask: dense weights under a 0/1 mask that evolves. static: block-sparse, fixed.
    evolve: block-sparse, pruned and regrown every `interval` iterations in the first `t_end` of the run.
    deep_r: block-sparse, every weight of fixed sign, replaced where it reaches zero, in the first `t_end`.

    Of the mlp and of single-spike these are the hidden layers, `hidden` wide, and the readout is dense. Of the other
    models these are all layers to which `distribution` gives less than all weights; "auto" is uniform for the former
    and erk for the latter. `channels` are those of the convnet. `size` and `split` are options of data sets that have
    them, None their own.

    Of single-spike, whose neurons fire once, T, tau, readout and loss say nothing; `weight_sum_cost`, `l2` and
    `grad_limit` are Mostafa's K, lambda and limit of the gradient's norm of a neuron, `weight_sum` what a hidden
    neuron's weights add up to at the start, `z_scale` the scale of z in the loss. "exponential" falls to a hundredth
    of `lr`.
    """

    data: str = "mnist"
    size: int | None = None
    split: str | None = None
    augment: str = "none"
    model: str = "mlp"
    hidden: tuple[int, ...] = (800,)
    channels: tuple[int, ...] = (32, 64, 128, 256)
    structure: str = "evolve"
    density: float = 0.1
    distribution: str = "auto"
    block_size: tuple[int, int] | str = (4, 4)
    T: int = 4
    tau: float = 0.5
    readout: str = "current"
    loss: str = "tet"
    weight_sum: float = 4.0
    z_scale: float = 1.0
    weight_sum_cost: float = 100.0
    l2: float = 1e-3
    grad_limit: float = 10.0
    epochs: int = 20
    batch_size: int = 128
    lr: float = 5e-3
    optimizer: str = "adam"
    schedule: str = "cosine"
    prune: str = "set"
    grow: str = "momentum"
    alpha: float = 0.5
    interval: int = 100
    t_start: float = 0.0
    t_end: float = 0.75
    redistribute: str = "none"
    seed: int = 0

    def __post_init__(self) -> None:
        for name, choices in _CHOICES.items():
            value = getattr(self, name)
            if value not in choices:
                raise ValueError(f"{name}: expected one of {', '.join(choices)}, got {value!r}")
        for name in ("T", "epochs", "batch_size", "interval"):
            _check(self, name, getattr(self, name) >= 1, "at least 1")
        for name in ("density", "tau"):
            _check(self, name, 0 < getattr(self, name) <= 1, "more than 0 and at most 1")
        for name in ("alpha", "t_start", "t_end"):
            _check(self, name, 0 <= getattr(self, name) <= 1, "0 to 1")
        for name in ("lr", "grad_limit", "z_scale"):
            _check(self, name, getattr(self, name) > 0, "more than 0")
        _check(self, "weight_sum", self.weight_sum > 1, "more than 1")
        for name in ("weight_sum_cost", "l2"):
            _check(self, name, getattr(self, name) >= 0, "at least 0")
        single = self.model == "single-spike"
        _check(
            self, "structure", not (single and self.structure == "mask"), "no mask for single-spike networks"
        )
        for name in ("hidden", "channels"):
            sizes = getattr(self, name)
            _check(self, name, bool(sizes) and min(sizes) >= 1, "positive layer sizes")
        _check(self, "size", self.size is None or self.size >= 1, "at least 1")
        _check(self, "split", self.split in (None, *SPLITS), f"one of {', '.join(SPLITS)}")
        for name in ("size", "split"):
            if getattr(self, name) is not None and name not in options_of(self.data):
                raise ValueError(f"{name}: {self.data} has one only, got {getattr(self, name)!r}")

    @property
    def data_options(self) -> dict[str, Any]:
        """What `load` is to be told besides the name."""
        given = {"T": self.T, "size": self.size, "split": self.split}
        return {k: v for k, v in given.items() if v is not None and k in options_of(self.data)}

    @property
    def sharing(self) -> str:
        """How layers share the density: `distribution`, or what "auto" stands for."""
        if self.distribution != "auto":
            return self.distribution
        return "uniform" if self.fully_connected else "erk"

    @property
    def fully_connected(self) -> bool:
        return self.model in ("mlp", "single-spike")

    @property
    def evolves(self) -> bool:
        return self.structure in ("mask", "evolve", "deep_r")

    @property
    def effective(self) -> TrainConfig:
        """With defaults in place of what a fixed topology never looks at: runs that agree in this are the same."""
        if self.evolves:
            return self
        rewiring = ("prune", "grow", "alpha", "interval", "t_start", "t_end", "redistribute")
        return replace(self, **{name: getattr(TrainConfig, name) for name in rewiring})

    @property
    def has_blocks(self) -> bool:
        return self.structure in ("static", "evolve", "deep_r")

    @property
    def title(self) -> str:
        """The conditions in a few words."""
        words = [self.data, self.network, self.structure]
        if self.structure != "dense":
            shared = "" if self.fully_connected and self.sharing == "uniform" else f" ({self.sharing})"
            words.append(f"density {self.density:g}{shared}")
        if self.has_blocks:
            words.append(f"blocks {self.block}")
        if self.model != "single-spike":
            words.append(f"T {self.T}")
        return ", ".join([*words, f"seed {self.seed}"])

    @property
    def network(self) -> str:
        """The model and, where they can be chosen, its sizes."""
        sizes = self.hidden if self.fully_connected else self.channels if self.model == "convnet" else ()
        return " ".join([self.model, *(["-".join(map(str, sizes))] if sizes else [])])

    @property
    def slug(self) -> str:
        """A folder name."""
        model = [] if self.model == "mlp" else [self.model]
        sparse = [] if self.structure == "dense" else [f"{self.density:g}"]
        blocks = [self.block] if self.has_blocks else []
        return "-".join([self.data, *model, self.structure, *sparse, *blocks, f"seed{self.seed}"])

    @property
    def block(self) -> str:
        return self.block_size if isinstance(self.block_size, str) else "x".join(map(str, self.block_size))

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> TrainConfig:
        """Undo `to_dict`, also after JSON has turned tuples into lists."""
        known = {field.name for field in fields(cls)}
        if unknown := sorted(set(values) - known):
            raise ValueError(f"config: unknown settings {', '.join(unknown)}")
        restored: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
        return cls(**restored)


def _check(config: TrainConfig, name: str, holds: bool, expected: str) -> None:
    if not holds:
        raise ValueError(f"{name}: expected {expected}, got {getattr(config, name)!r}")
