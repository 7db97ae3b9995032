"""Everything that decides a training run, as plain values that go into `config.json` and into checkpoints."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from ..data import DATASETS
from ..rewire import REDISTRIBUTIONS

STRUCTURES = ("dense", "mask", "static", "evolve", "deep_r")
MODELS = ("mlp",)
OPTIMIZERS = ("adam", "adamw", "sgd")
SCHEDULES = ("cosine", "constant")
READOUTS = ("current", "integrate")
LOSSES = ("tet", "mean")

_CHOICES = {
    "data": tuple(DATASETS),
    "model": MODELS,
    "structure": STRUCTURES,
    "optimizer": OPTIMIZERS,
    "schedule": SCHEDULES,
    "readout": READOUTS,
    "loss": LOSSES,
    "redistribute": ("none", *REDISTRIBUTIONS),
}


@dataclass(frozen=True)
class TrainConfig:
    """One run. `structure` says what the hidden layers are:

    dense: `nn.Linear`. mask: dense weights under a 0/1 mask that evolves. static: block-sparse, fixed.
    evolve: block-sparse, pruned and regrown every `interval` iterations in the first `t_end` of the run.
    deep_r: block-sparse, every weight of fixed sign, replaced where it reaches zero, in the first `t_end`.
    """

    data: str = "mnist"
    model: str = "mlp"
    hidden: tuple[int, ...] = (800,)
    structure: str = "evolve"
    density: float = 0.1
    block_size: tuple[int, int] | str = (4, 4)
    T: int = 4
    tau: float = 0.5
    readout: str = "current"
    loss: str = "tet"
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
        _check(self, "lr", self.lr > 0, "more than 0")
        _check(self, "hidden", bool(self.hidden) and min(self.hidden) >= 1, "positive layer sizes")

    @property
    def evolves(self) -> bool:
        return self.structure in ("mask", "evolve", "deep_r")

    @property
    def has_blocks(self) -> bool:
        return self.structure in ("static", "evolve", "deep_r")

    @property
    def title(self) -> str:
        """The conditions in a few words."""
        words = [self.data, f"{self.model} {'-'.join(map(str, self.hidden))}", self.structure]
        if self.structure != "dense":
            words.append(f"density {self.density:g}")
        if self.has_blocks:
            words.append(f"blocks {self.block}")
        return ", ".join([*words, f"T {self.T}", f"seed {self.seed}"])

    @property
    def slug(self) -> str:
        """A folder name."""
        sparse = [] if self.structure == "dense" else [f"{self.density:g}"]
        blocks = [self.block] if self.has_blocks else []
        return "-".join([self.data, self.structure, *sparse, *blocks, f"seed{self.seed}"])

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
