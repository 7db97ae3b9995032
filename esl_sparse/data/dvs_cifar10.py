"""CIFAR10-DVS (Li et al. 2017): 10,000 recordings of CIFAR-10 images that move in front of an event camera.

Decoding means to read gigabytes, so it is done once for each T and size: frames are kept as bits in the user's cache.
"""

from __future__ import annotations

import hashlib
import logging
import zipfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from .atomic import replacing
from .dataset import Dataset, Split
from .errors import DataError
from .events import PackedFrames, check_frame_options, events_to_frames, pack_frames, read_aedat, read_npz
from .search import cache_dir, fetch_missing, search_path

logger = logging.getLogger(__name__)

# Training share of each class. "tet": Deng et al. 2022 (TET) and its followers; "900-100": most other work.
SPLITS = {"tet": 0.7, "900-100": 0.9}

_READERS = {".aedat": read_aedat, ".npz": read_npz}
_DECODING = 1  # raised when the same recordings would give other frames


@dataclass(frozen=True)
class Recordings:
    """The published files: `per_class` in a folder for each class, `airplane/cifar10_airplane_0.aedat` first."""

    name: str
    home: str
    classes: tuple[str, ...]
    per_class: int

    def __len__(self) -> int:
        return len(self.classes) * self.per_class

    def names(self) -> Iterator[str]:
        """In order of class and number, without suffix."""
        for label in self.classes:
            yield from (f"{label}/cifar10_{label}_{number}" for number in range(self.per_class))


DVS_CIFAR10 = Recordings(
    name="dvs-cifar10",
    home="https://figshare.com/articles/dataset/CIFAR10-DVS_New/4724671 (unpack its ten zip files there)",
    classes=(
        "airplane",
        "automobile",
        "bird",
        "cat",
        "deer",
        "dog",
        "frog",
        "horse",
        "ship",
        "truck",
    ),
    per_class=1000,
)


def load_dvs_cifar10(
    files: Recordings,
    data_dir: Path | None = None,
    *,
    T: int = 10,
    size: int = 48,
    split: str = "tet",
    split_seed: int | None = None,
) -> Dataset:
    """Frames `[B, T, 2, size, size]` of zeros and ones, made by `events_to_frames`.

    `split` is "tet" (of each class 700 to train, 300 to test) or "900-100". Recordings are taken in the order of
    their numbers, as TET's authors do: 0 to 699 train, 700 to 999 test. With `split_seed` each class is shuffled
    first, the same way for the same seed.
    """
    check_frame_options(T, size)
    if split not in SPLITS:
        raise DataError(f"split: expected one of {', '.join(SPLITS)}, got {split!r}.")
    others = [
        f"{files.name}/extract",
        f"{files.name}/events_np",
        "CIFAR10DVS/extract",
        "CIFAR10DVS/events_np",
    ]
    folders = search_path(files.name, others, data_dir)
    folder = next((f for f in folders if any((f / label).is_dir() for label in files.classes)), None)
    if folder is None:
        what = f"{next(files.names())}.aedat (or .npz) and {len(files) - 1:,} more"
        folder = fetch_missing(files.name, what, files.home, folders, data_dir)
    packed = _decoded(files, folder, T, size)
    labels = torch.arange(len(files.classes)).repeat_interleave(files.per_class)
    whole = Split(packed, labels, PackedFrames((T, 2, size, size)))
    train, test = _split(files, SPLITS[split], split_seed)
    return Dataset(
        name=files.name,
        source=str(folder.resolve()),
        train=whole.subset(train),
        test=whole.subset(test),
        classes=len(files.classes),
    )


def _split(files: Recordings, share: float, seed: int | None) -> tuple[Tensor, Tensor]:
    index = torch.arange(len(files)).view(len(files.classes), files.per_class)
    if seed is not None:
        generator = torch.Generator().manual_seed(seed)
        index = torch.stack([row[torch.randperm(len(row), generator=generator)] for row in index])
    first = round(share * files.per_class)
    return index[:, :first].flatten(), index[:, first:].flatten()


def _decoded(files: Recordings, folder: Path, T: int, size: int) -> Tensor:
    """The packed frames of all recordings, from the cache as far as it goes; what is new is kept there.

    The cache holds the frames of the first recordings, in most cases of all. It is written whenever a class is
    done, and when decoding ends in the middle of one.
    """
    paths = _paths(files, folder)
    fingerprint = _fingerprint(paths, folder, T, size)
    cache = cache_dir() / files.name / f"frames-{T}x{size}x{size}.npz"
    frames = np.zeros((len(files), -(-T * 2 * size * size // 8)), np.uint8)
    kept = _cached(cache, fingerprint, frames)
    done = kept
    try:
        for path in _progress(paths[done:], f"{files.name}: events to frames"):
            frames[done] = pack_frames(_frames(path, T, size))
            done += 1
            if done % files.per_class == 0:
                _keep(cache, fingerprint, frames[:done])
                kept = done
    finally:
        if done > kept:
            _keep(cache, fingerprint, frames[:done])
    return torch.from_numpy(frames)


def _paths(files: Recordings, folder: Path) -> list[Path]:
    suffix = ".npz" if any(folder.glob("*/cifar10_*_*.npz")) else ".aedat"
    paths = [folder / f"{name}{suffix}" for name in files.names()]
    missing = [path for path in paths if not path.is_file()]
    if missing:
        raise DataError(
            f"{folder} is incomplete: of {len(files):,} recordings {len(missing):,} are missing, first "
            f"{missing[0].relative_to(folder)}."
        )
    return paths


def _frames(path: Path, T: int, size: int) -> np.ndarray:
    events = _READERS[path.suffix](path)
    if len(events.t) < T:
        raise DataError(f"{path} is truncated: expected events for {T} frames, found {len(events.t)} events.")
    try:
        return events_to_frames(*events, T=T, size=size)
    except (TypeError, ValueError) as error:
        raise DataError(f"{path} does not fit: {error}.") from None


def _fingerprint(paths: list[Path], folder: Path, T: int, size: int) -> str:
    """Changes with the recordings' names and sizes; opening ten thousand files would take too long."""
    digest = hashlib.sha256(f"{_DECODING} {T} {size}".encode())
    for path in paths:
        digest.update(f"\n{path.relative_to(folder).as_posix()} {path.stat().st_size}".encode())
    return digest.hexdigest()


def _cached(cache: Path, fingerprint: str, frames: np.ndarray) -> int:
    """Fill the first rows of `frames`; how many that were."""
    if not cache.exists():
        return 0
    try:
        with np.load(cache, allow_pickle=False) as file:
            if str(file["fingerprint"]) != fingerprint:
                return 0
            kept = file["frames"]
            frames[: len(kept)] = kept
            return len(kept)
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        logger.warning("%s is damaged and is made anew: %s", cache, error)
        return 0


def _keep(cache: Path, fingerprint: str, frames: np.ndarray) -> None:
    try:
        with replacing(cache) as file:
            np.savez(file, fingerprint=np.array(fingerprint), frames=frames)
    except OSError as error:
        logger.warning("frames cannot be kept in %s: %s", cache, error)


def _progress(paths: list[Path], what: str) -> Iterable[Path]:
    """With a bar, where rich is installed and there is something to do."""
    try:
        from rich.console import Console
        from rich.progress import track
    except ModuleNotFoundError:
        return paths
    return track(paths, what, console=Console(stderr=True), transient=True) if paths else paths
