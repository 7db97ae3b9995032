"""Event frames from still images, which move in front of an ideal event camera: made when a batch is asked for.

CIFAR10-DVS was recorded so (Li et al. 2017, "CIFAR10-DVS: An Event-Stream Dataset for Object Classification",
Frontiers in Neuroscience 11:309): "repeated closed-loop smooth movement" of the image on a screen, a loop of four
straight paths at 45 degrees. Here there is no noise.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from .dataset import Dataset, Split
from .events import check_frame_options
from .mnist import IdxFiles, read_idx_files

_SIDE = 28  # images are never shown smaller than this, unless the sensor is
# A pixel fires where brightness + dark current changes by half: log contrast .41. Chosen on Fashion-MNIST, where
# frames are then sparse (17 % of places at T=4, 28x28; 8 % at T=10, 48x48) and still show shape and texture.
_DARK = 24


@dataclass(frozen=True)
class MovingImages:
    """Images uint8 `[B, h, h]` to frames `[B, T, 2, size, size]` of zeros and ones, channel 0: darker, 1: brighter.

    The image moves by whole pixels (1, 1) along a square that stands on its corner, from its left corner by the
    top, the right and the bottom one back, in as many loops as give each frame two steps. At each step a pixel fires
    if its brightness b, 0 to 255, changes so that one of (b + 24) is more than 1.5 times the other; a frame is set
    where that happened in its share of the steps. All is computed in integers: the same image always gives the same
    frames.
    """

    T: int
    size: int

    @property
    def radius(self) -> int:
        """How far the image moves to each side: over the room around it but for a pixel, and by 2 at least."""
        return max(2, (self.size - shown_side(self.size)) // 2 - 1)

    def path(self) -> list[tuple[int, int]]:
        """Positions (right, down) of the image, the first one last again."""
        r = self.radius
        steps = [(1, -1)] * r + [(1, 1)] * r + [(-1, 1)] * r + [(-1, -1)] * r
        positions = [(-r, 0)]
        for right, down in steps * -(-2 * self.T // len(steps)):
            x, y = positions[-1]
            positions.append((x + right, y + down))
        return positions

    def __call__(self, images: Tensor) -> Tensor:
        r, size = self.radius, self.size
        left, side = (size - images.shape[-1]) // 2 + r, size + 2 * r
        right = side - left - images.shape[-1]
        brightness = F.pad(images, (left, right, left, right))
        # whatever is brighter than this fires when it takes the pixel's place, and when it leaves it
        limit = (torch.arange(256) * 3 // 2 + _DARK // 2).clamp(max=255).to(torch.uint8)[brightness.int()]

        def seen(what: Tensor, position: tuple[int, int]) -> Tensor:
            """What the sensor sees when the image has moved."""
            x, y = r - position[0], r - position[1]
            return what[:, y : y + size, x : x + size]

        frames = torch.zeros(len(images), self.T, 2, size, size, dtype=torch.bool)
        positions = self.path()
        steps = len(positions) - 1
        for t in range(self.T):
            for step in range(t * steps // self.T, (t + 1) * steps // self.T):
                before, after = positions[step], positions[step + 1]
                frames[:, t, 0] |= seen(brightness, before) > seen(limit, after)
                frames[:, t, 1] |= seen(brightness, after) > seen(limit, before)
        return frames.float()


def shown_side(size: int) -> int:
    """The image fills three quarters of a large sensor and all of a small one."""
    return max(min(_SIDE, size), 3 * size // 4)


def load_moving(files: IdxFiles, data_dir: Path | None = None, *, T: int = 4, size: int = 28) -> Dataset:
    """An idx data set as event frames; in memory are the images, in the size in which the sensor sees them."""
    check_frame_options(T, size)
    source, train, test = read_idx_files(files, data_dir)
    decode, side = MovingImages(T, size), shown_side(size)
    return Dataset(
        name=f"dvs-{files.name}",
        source=source,
        train=Split(_resized(train[0], side), train[1], decode),
        test=Split(_resized(test[0], side), test[1], decode),
        classes=files.classes,
    )


def _resized(images: Tensor, side: int) -> Tensor:
    """uint8 `[N, h, w]` to uint8 `[N, side, side]`, bilinear."""
    if images.shape[1:] == (side, side):
        return images
    parts = [
        F.interpolate(part.unsqueeze(1).float(), (side, side), mode="bilinear", antialias=True).round_()
        for part in images.split(4096)
    ]
    return torch.cat([part.squeeze(1).to(torch.uint8) for part in parts])
