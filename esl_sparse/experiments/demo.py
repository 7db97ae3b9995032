"""One spiking network three ways on the same budget: dense, dense under a mask, block-sparse."""

from __future__ import annotations

import signal
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from ..data import Dataset, load
from .config import TrainConfig
from .peak_memory import PeakMemory
from .records import StepRecord, TrainResult
from .train import Observer, Trainer

VARIANTS: dict[str, dict[str, Any]] = {
    "dense": {"structure": "dense"},
    "dense + mask": {"structure": "mask", "density": 0.1},
    "esl_sparse": {"structure": "evolve", "density": 0.1, "block_size": (4, 4)},
}
_UPDATES = 30


@dataclass(frozen=True)
class VariantResult:
    result: TrainResult
    peak_memory: int  # bytes above imports, data set and warmed-up libraries


def configurations(dataset: Dataset, epochs: int) -> dict[str, TrainConfig]:
    """The variants on one budget; those that evolve do so equally often however long they train."""
    config = TrainConfig(data=dataset.name, epochs=epochs)
    updating = config.t_end * epochs * len(dataset.train) / config.batch_size
    config = replace(config, interval=max(1, int(updating / _UPDATES)))
    return {name: replace(config, **settings) for name, settings in VARIANTS.items()}


def run_variant(
    config: TrainConfig, data_dir: Path | None, on_step: Callable[[int, int], None]
) -> VariantResult:
    """Train in a process of its own, so that the peak of its memory is its own.

    `on_step` is called with iterations done and iterations in all.
    """
    context = get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(
        target=_train, args=(config, data_dir, torch.get_num_threads(), sender), daemon=True
    )
    process.start()
    sender.close()  # so that the child's death ends recv()
    try:
        while True:
            message = receiver.recv()
            if isinstance(message, VariantResult):
                return message
            on_step(*message)
    except EOFError:
        process.join()
        raise RuntimeError(f"{config.title}: the process ended with exit code {process.exitcode}") from None
    finally:
        process.terminate()


def _train(config: TrainConfig, data_dir: Path | None, threads: int, sender: Connection) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's business
    torch.set_num_threads(threads)
    dataset = load(config.data, data_dir)
    with tempfile.TemporaryDirectory() as folder:
        _warm_up(config, dataset, Path(folder))
        memory = PeakMemory()
        trainer = Trainer(config, dataset, Path(folder), [_Pipe(sender)])
        result = trainer.fit()
        sender.send(VariantResult(result, memory.bytes))


def _warm_up(config: TrainConfig, dataset: Dataset, folder: Path) -> None:
    """A tiny run through the same code: what libraries set up on first use is not training's memory."""
    few = torch.arange(256)
    tiny = replace(dataset, train=dataset.train.subset(few), test=dataset.test.subset(few))
    Trainer(replace(config, hidden=(16,), epochs=1, batch_size=16, interval=2), tiny, folder).fit()


class _Pipe(Observer):
    def __init__(self, sender: Any) -> None:
        self.sender = sender

    def started(self, trainer: Trainer) -> None:
        self.total = trainer.total_steps

    def step(self, record: StepRecord) -> None:
        if record.iteration % 10 == 0 or record.iteration == self.total:
            self.sender.send((record.iteration, self.total))
