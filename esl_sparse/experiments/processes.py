"""The processes of one run. torchrun starts them; each trains on its share of every batch."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

_LOST = ("gloo", "nccl", "socket", "connection", "peer")  # in the messages of collectives that fail


class LostProcessError(Exception):
    """Another process of the run is gone; the message is one sentence for people."""


@dataclass(frozen=True)
class Processes:
    """This process among those of the run. Every method is called by all of them, in the same order."""

    rank: int = 0
    size: int = 1
    device: torch.device | str = "cpu"

    @property
    def first(self) -> bool:
        """Whether this process is the one that writes files and talks to people."""
        return self.rank == 0

    def wrap(self, model: nn.Module) -> nn.Module:
        """What averages gradients over the processes; from now on all have rank 0's weights."""
        return DistributedDataParallel(model) if self.size > 1 else model

    def share(self, index: Tensor) -> tuple[Tensor, float]:
        """This process's part of a batch's samples, and the weight of its mean loss in the average over processes.

        A batch with fewer samples than there are processes gives some of them one that weighs nothing.
        """
        own = index[self.rank :: self.size]
        weight = len(own) * self.size / len(index)
        return (own, weight) if len(own) else (index[:1], 0.0)

    def sums(self, numbers: Sequence[float]) -> list[float]:
        """Sums over the processes."""
        if self.size == 1:
            return list(numbers)
        total = torch.tensor(numbers, dtype=torch.float64, device=self.device)
        dist.all_reduce(total)
        return total.tolist()

    def of_first(self, number: int) -> int:
        """Rank 0's number."""
        return round(self.sums([number if self.first else 0])[0])

    def share_statistics(self, model: nn.Module) -> None:
        """Give all processes rank 0's running statistics: training leaves each with its own."""
        if self.size > 1:
            for buffer in model.buffers():
                if buffer.is_floating_point():
                    dist.broadcast(buffer, 0)

    def wait(self) -> None:
        """Until all are here."""
        if self.size > 1:
            dist.barrier()

    @contextmanager
    def first_alone(self) -> Iterator[None]:
        """Rank 0 goes first, for what would otherwise be downloaded or written several times."""
        if not self.first:
            self.wait()
        yield
        if self.first:
            self.wait()


ALONE = Processes()


@contextmanager
def join_processes(device: str = "cpu") -> Iterator[Processes]:
    """The processes that torchrun has started, or this one alone.

    Raises:
        LostProcessError: another one is gone.
        ValueError: a CUDA device where torch sees none.
    """
    kind = torch.device(device)
    if kind.type == "cuda" and not torch.cuda.is_available():
        raise ValueError("device: torch sees no CUDA device")
    size = int(os.environ.get("WORLD_SIZE", 1))
    if size == 1:
        yield Processes(device=kind)
        return
    if kind.type == "cuda":
        kind = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(kind)
    dist.init_process_group("nccl" if kind.type == "cuda" else "gloo")
    try:
        processes = Processes(dist.get_rank(), size, kind)
        yield processes
        processes.wait()  # who leaves first closes connections that others still use
    except RuntimeError as error:
        if any(word in str(error).lower() for word in _LOST):
            reason = str(error).strip().splitlines()[0]
            raise LostProcessError(
                f"rank {dist.get_rank()} of {size} has lost another process ({reason})"
            ) from error
        raise
    finally:
        dist.destroy_process_group()
