"""An image data set in memory: bytes stay bytes, batches become floats when they are asked for."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor


class Split:
    """Labelled images, or a part of them that shares their memory.

    Args:
        images: uint8 `[N, H, W]`. labels: int64 `[N]`. peak: the pixel value that becomes 1.0.
        index: which images belong to this split; all of them by default.
    """

    def __init__(self, images: Tensor, labels: Tensor, peak: int, index: Tensor | None = None) -> None:
        self._images = images
        self._labels = labels
        self._peak = peak
        self._index = torch.arange(len(labels)) if index is None else index

    def __len__(self) -> int:
        return len(self._index)

    def __getitem__(self, which: Tensor | slice) -> tuple[Tensor, Tensor]:
        """Float images `[B, H * W]` in 0..1 and their labels `[B]`."""
        index = self._index[which]
        return self._images[index].flatten(1).float().div_(self._peak), self._labels[index]

    @property
    def features(self) -> int:
        return self._images[0].numel()

    def batches(self, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        for start in range(0, len(self), size):
            yield self[start : start + size]

    def subset(self, which: Tensor) -> Split:
        return Split(self._images, self._labels, self._peak, self._index[which])


@dataclass(frozen=True)
class Dataset:
    name: str
    source: str  # where it was found
    train: Split
    test: Split
    classes: int

    @property
    def features(self) -> int:
        return self.train.features

    def split_validation(self, fraction: float = 0.1, seed: int = 0) -> tuple[Split, Split]:
        """Part the training images into training and validation, the same way for the same seed."""
        held_out = round(fraction * len(self.train))
        order = torch.randperm(len(self.train), generator=torch.Generator().manual_seed(seed))
        return self.train.subset(order[held_out:]), self.train.subset(order[:held_out])
