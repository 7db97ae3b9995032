"""Random changes of training images, a whole batch at a time and for each sample its own."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Generator, Tensor

from .errors import DataError

_PADDING = 4
_ROLL = 5

Augmentation = Callable[[Tensor, Generator], Tensor]


def augment(name: str) -> Augmentation:
    """A function of a batch, `[B, C, H, W]` or `[B, T, 2, H, W]`, and a generator, which gives the changed batch.

    All that is random comes from the generator: from the same state come the same changes. What happens to a
    sample happens to all its channels and frames.

    - "none": nothing.
    - "cifar": a crop of the image's own size out of the image with 4 pixels of zeros around, then a horizontal flip
      of every second sample on average. Zero is the mean colour where the images are normalised, not black.
    - "dvs": such a flip, then a roll by up to 5 pixels in both directions (TET): what leaves on one side comes back
      on the other.
    """
    if name not in AUGMENTATIONS:
        raise DataError(f"Unknown augmentation {name!r}: expected one of {', '.join(AUGMENTATIONS)}.")
    return AUGMENTATIONS[name]


def _cifar(images: Tensor, generator: Generator) -> Tensor:
    height, width = images.shape[-2:]
    padded = torch.nn.functional.pad(images, [_PADDING] * 4)
    down, right = (_draw(images, 2 * _PADDING + 1, generator) for _ in range(2))
    rows, columns = down + torch.arange(height), right + torch.arange(width)
    return _pick(padded, rows, _flipped(columns, generator))


def _dvs(images: Tensor, generator: Generator) -> Tensor:
    height, width = images.shape[-2:]
    columns = _flipped(torch.arange(width).repeat(len(images), 1), generator)
    down, right = (_draw(images, 2 * _ROLL + 1, generator) - _ROLL for _ in range(2))
    rolled = (torch.arange(width) - right) % width
    return _pick(images, (torch.arange(height) - down) % height, columns.gather(1, rolled))


def _none(images: Tensor, generator: Generator) -> Tensor:
    return images


def _draw(images: Tensor, end: int, generator: Generator) -> Tensor:
    """A number below `end` for each sample, `[B, 1]`."""
    return torch.randint(end, (len(images), 1), generator=generator)


def _flipped(columns: Tensor, generator: Generator) -> Tensor:
    """Columns `[B, W]`, those of some samples in reverse order."""
    return torch.where(_draw(columns, 2, generator) == 1, columns.flip(1), columns)


def _pick(images: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """`out[b, ..., i, j] = images[b, ..., rows[b, i], columns[b, j]]`."""
    pixel = (rows[:, :, None] * images.shape[-1] + columns[:, None, :]).flatten(1)
    planes = images.flatten(-2).flatten(1, -2)  # [B, planes, H * W]
    picked = planes.gather(2, pixel[:, None].expand(-1, planes.shape[1], -1))
    return picked.view(*images.shape[:-2], rows.shape[1], columns.shape[1])


AUGMENTATIONS: dict[str, Augmentation] = {"none": _none, "cifar": _cifar, "dvs": _dvs}
