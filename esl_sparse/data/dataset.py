"""A labelled data set in memory: bytes stay bytes, batches become floats when they are asked for."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor


@dataclass(frozen=True)
class Pixels:
    """Bytes `[B, C, H, W]` to floats: `peak` becomes 1.0, then `mean` and `std` normalise each channel."""

    peak: int = 255
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()

    def __call__(self, images: Tensor) -> Tensor:
        floats = images.float().div_(self.peak)
        if self.mean:
            mean, std = (torch.tensor(channels).view(-1, 1, 1) for channels in (self.mean, self.std))
            floats.sub_(mean).div_(std)
        return floats


class Split:
    """Labelled samples, or a part of them that shares their memory.

    Args:
        stored: uint8 `[N, ...]`, what is kept of the samples. labels: int64 `[N]`.
        decode: from the stored bytes of a batch to its floats, `[B, C, H, W]` for images and
            `[B, T, 2, H, W]` for event frames; a sample's floats depend on its own bytes alone.
        index: which samples belong to this split; all of them by default.
    """

    def __init__(
        self,
        stored: Tensor,
        labels: Tensor,
        decode: Callable[[Tensor], Tensor],
        index: Tensor | None = None,
    ) -> None:
        self._stored = stored
        self._labels = labels
        self._decode = decode
        self._index = torch.arange(len(labels)) if index is None else index

    def __len__(self) -> int:
        return len(self._index)

    def __getitem__(self, which: Tensor | slice) -> tuple[Tensor, Tensor]:
        """Float samples `[B, *shape]` and their labels `[B]`."""
        index = self._index[which]
        return self._decode(self._stored[index]), self._labels[index]

    @cached_property
    def shape(self) -> tuple[int, ...]:
        """Of one sample: `(C, H, W)`, or `(T, 2, H, W)` for event frames."""
        return tuple(self._decode(self._stored[:1]).shape[1:])

    @property
    def features(self) -> int:
        return math.prod(self.shape)

    def batches(self, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        for start in range(0, len(self), size):
            yield self[start : start + size]

    def subset(self, which: Tensor) -> Split:
        return Split(self._stored, self._labels, self._decode, self._index[which])


@dataclass(frozen=True)
class Dataset:
    """Training and test samples in memory, and where they were found (`source`)."""

    name: str
    source: str
    train: Split
    test: Split
    classes: int

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one sample: `(C, H, W)`, or `(T, 2, H, W)` for event frames."""
        return self.train.shape

    @property
    def features(self) -> int:
        return self.train.features

    @property
    def event(self) -> bool:
        """Whether samples are frames of events, with a time axis of their own."""
        return len(self.shape) == 4

    def split_validation(self, fraction: float = 0.1, seed: int = 0) -> tuple[Split, Split]:
        """Part the training samples into training and validation, the same way for the same seed."""
        held_out = round(fraction * len(self.train))
        order = torch.randperm(len(self.train), generator=torch.Generator().manual_seed(seed))
        return self.train.subset(order[held_out:]), self.train.subset(order[:held_out])
