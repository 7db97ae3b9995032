"""An image data set in memory: bytes stay bytes, batches become floats when they are asked for."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Split:
    images: Tensor  # uint8 [N, H, W]
    labels: Tensor  # int64 [N]
    peak: int  # the pixel value that becomes 1.0

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: Tensor | slice) -> tuple[Tensor, Tensor]:
        """Float images `[B, H * W]` in 0..1 and their labels `[B]`."""
        return self.images[index].flatten(1).float().div_(self.peak), self.labels[index]

    def batches(self, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        for start in range(0, len(self), size):
            yield self[start : start + size]

    def subset(self, index: Tensor) -> Split:
        return Split(self.images[index], self.labels[index], self.peak)


@dataclass(frozen=True)
class Dataset:
    name: str
    source: str  # where it was found
    train: Split
    test: Split
    classes: int

    @property
    def features(self) -> int:
        return self.train.images[0].numel()

    def split_validation(self, fraction: float = 0.1, seed: int = 0) -> tuple[Split, Split]:
        """Part the training images into training and validation, the same way for the same seed."""
        held_out = round(fraction * len(self.train))
        order = torch.randperm(len(self.train), generator=torch.Generator().manual_seed(seed))
        return self.train.subset(order[held_out:]), self.train.subset(order[:held_out])
