"""What a run tells its observers: plain values, ready for JSON."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, TypeVar, get_type_hints

_T = TypeVar("_T")


@dataclass(frozen=True)
class StepRecord:
    """One iteration: the batch's loss, top-1 accuracy and mean firing rate."""

    iteration: int
    loss: float
    accuracy: float
    firing_rate: float
    lr: float


@dataclass(frozen=True)
class RewireRecord:
    """What one update did to one layer. `r_s`: weights that were ever active, as a fraction of all."""

    iteration: int
    layer: str
    pruned: int
    grown: int
    density: float
    r_s: float


@dataclass(frozen=True)
class EpochRecord:
    """One epoch: training means, validation, and the state of every layer after it."""

    epoch: int
    iteration: int
    lr: float
    train_loss: float
    train_accuracy: float
    val_loss: float
    val_accuracy: float
    seconds: float
    samples_per_second: float
    updates: int
    density: dict[str, float]
    r_s: dict[str, float]
    firing_rate: dict[str, float]


@dataclass(frozen=True)
class WeightState:
    """Bytes kept for the weights in training, counted from the tensors. `dense`: what `nn.Linear` keeps."""

    values: int
    index: int
    gradient: int
    optimizer: int
    dense: int

    @property
    def total(self) -> int:
        return self.values + self.index + self.gradient + self.optimizer


@dataclass(frozen=True)
class TrainResult:
    """A finished run. Accuracy is that of the epoch with the best validation accuracy, tested once."""

    test_accuracy: float
    test_loss: float
    val_accuracy: float
    best_epoch: int
    epochs: int
    active_weights: int
    total_weights: int
    weight_state: WeightState
    seconds: float
    samples_per_second: float
    updates: int


@dataclass
class EpochSums:
    """Running sums inside an epoch."""

    loss: float = 0.0
    correct: int = 0
    samples: int = 0
    seconds: float = 0.0
    firing_rate: dict[str, float] = field(default_factory=dict)

    def add(self, loss: float, correct: int, samples: int, seconds: float, rates: dict[str, float]) -> None:
        self.loss += loss * samples
        self.correct += correct
        self.samples += samples
        self.seconds += seconds
        for name, rate in rates.items():
            self.firing_rate[name] = self.firing_rate.get(name, 0.0) + rate * samples


@dataclass
class Progress:
    """Where a run stands; part of its checkpoint, so that an interrupt in mid-epoch loses nothing."""

    epoch: int = 0  # finished epochs
    step_in_epoch: int = 0
    updates: int = 0
    seconds: float = 0.0  # of finished epochs, validation left out
    sums: EpochSums = field(default_factory=EpochSums)
    r_s: dict[str, float] = field(default_factory=dict)
    best_accuracy: float = -1.0
    best_epoch: int = 0
    weight_state: WeightState | None = None

    @classmethod
    def from_dict(cls, values: Any) -> Progress:
        """Undo `asdict` after checking all of it; raises `TypeError` or `ValueError`."""
        if not isinstance(values, dict):
            raise TypeError(f"expected a progress, got {type(values).__name__}")
        state = values.get("weight_state")
        return _checked(
            cls,
            {
                **values,
                "sums": _checked(EpochSums, values.get("sums")),
                "weight_state": None if state is None else _checked(WeightState, state),
            },
        )


def _checked(kind: type[_T], values: Any) -> _T:
    """A dataclass of numbers, or numbers by layer, with a value of the right type for each field."""
    hints = get_type_hints(kind)
    if not isinstance(values, dict) or values.keys() != hints.keys():
        raise ValueError(f"expected the fields {', '.join(hints)}, got {values!r:.200}")
    for name, hint in hints.items():
        value = values[name]
        if hint == dict[str, float]:
            fits = isinstance(value, dict) and all(
                isinstance(k, str) and _is_number(v) for k, v in value.items()
            )
        elif hint in (int, float):
            fits = type(value) is int if hint is int else _is_number(value)
        else:
            continue  # another of these, checked already
        if not fits:
            raise TypeError(f"{name}: expected {hint}, got {value!r:.200}")
    return kind(**values)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
