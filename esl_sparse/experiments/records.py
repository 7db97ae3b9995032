"""What a run tells its observers: plain values, ready for JSON."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


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
    def from_dict(cls, values: dict[str, Any]) -> Progress:
        state = values["weight_state"]
        return cls(
            **{
                **values,
                "sums": EpochSums(**values["sums"]),
                "weight_state": WeightState(**state) if state else None,
            }
        )
