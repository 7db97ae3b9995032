"""CIFAR-10 and CIFAR-100 as published: the binary or the Python version, unpacked or still in its archive."""

from __future__ import annotations

import hashlib
import pickle
import tarfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from .dataset import Dataset, Pixels, Split
from .download import download
from .errors import DataError
from .pickles import read_pickle
from .search import fetch_missing, search_path

_PIXELS = 3 * 32 * 32
_HOME = "https://www.cs.toronto.edu/~kriz/"


@dataclass(frozen=True)
class Version:
    """One published packing of a data set; `train` and `test` say how many images each file holds."""

    archive: str
    md5: str
    folder: str  # inside the archive
    train: Mapping[str, int]
    test: Mapping[str, int]
    label_bytes: int = 0  # before the pixels of a binary record, the class last; 0: pickles

    @property
    def files(self) -> dict[str, int]:
        return {**self.train, **self.test}


@dataclass(frozen=True)
class CifarFiles:
    """A data set: its versions in the order of preference, and what normalises its channels."""

    name: str
    classes: int
    label_key: bytes  # of the list of classes in a pickle
    mean: tuple[float, ...]
    std: tuple[float, ...]
    versions: tuple[Version, ...]


# Archives' MD5: https://www.cs.toronto.edu/~kriz/cifar.html. Mean and standard deviation: those of TET
# (data_loaders.py of its authors' code); CIFAR-10's deviation is, as usual, the mean over images of each image's own.
CIFAR10 = CifarFiles(
    name="cifar10",
    classes=10,
    label_key=b"labels",
    mean=(0.4914, 0.4822, 0.4465),
    std=(0.2023, 0.1994, 0.2010),
    versions=(
        Version(
            archive="cifar-10-binary.tar.gz",
            md5="c32a1d4ab5d03f1284b67883e8d87530",
            folder="cifar-10-batches-bin",
            train={f"data_batch_{i}.bin": 10_000 for i in range(1, 6)},
            test={"test_batch.bin": 10_000},
            label_bytes=1,
        ),
        Version(
            archive="cifar-10-python.tar.gz",
            md5="c58f30108f718f92721af3b95e74349a",
            folder="cifar-10-batches-py",
            train={f"data_batch_{i}": 10_000 for i in range(1, 6)},
            test={"test_batch": 10_000},
        ),
    ),
)
CIFAR100 = CifarFiles(
    name="cifar100",
    classes=100,
    label_key=b"fine_labels",
    mean=(0.5071, 0.4867, 0.4408),
    std=(0.2675, 0.2565, 0.2761),
    versions=(
        Version(
            archive="cifar-100-binary.tar.gz",
            md5="03b5dce01913d631647c71ecec9e9cb8",
            folder="cifar-100-binary",
            train={"train.bin": 50_000},
            test={"test.bin": 10_000},
            label_bytes=2,
        ),
        Version(
            archive="cifar-100-python.tar.gz",
            md5="eb9058c3a382ffc7106e4002c42a8d85",
            folder="cifar-100-python",
            train={"train": 50_000},
            test={"test": 10_000},
        ),
    ),
)


def load_cifar(files: CifarFiles, data_dir: Path | None = None) -> Dataset:
    """Images `[B, 3, 32, 32]`, normalised by channel; the classes of CIFAR-100 are the fine ones."""
    folders = search_path(files.name, ["."], data_dir)
    found = _find(files, folders)
    if found is None:
        what = " or ".join(f"{version.archive} (or its {version.folder}/)" for version in files.versions)
        home = f"{_HOME}cifar.html"
        folder = fetch_missing(
            files.name, what, home, folders, data_dir, lambda folder: _download(files, folder)
        )
        found = files.versions[0], folder / files.versions[0].archive
    version, place = found
    contents = _unpacked(version, place) if place.is_dir() else _archived(version, place)
    parts = {name: _parse(files, version, name, path, content) for name, path, content in contents}

    def split(names: Mapping[str, int]) -> Split:
        images = torch.cat([parts[name][0] for name in names])
        labels = torch.cat([parts[name][1] for name in names])
        return Split(images, labels, Pixels(mean=files.mean, std=files.std))

    return Dataset(
        name=files.name,
        source=str(place.resolve()),
        train=split(version.train),
        test=split(version.test),
        classes=files.classes,
    )


def _find(files: CifarFiles, folders: list[Path]) -> tuple[Version, Path] | None:
    """The first version that is there at all, as a folder of files or as an archive."""
    for folder in folders:
        for version in files.versions:
            places = [folder / version.folder]
            if folder.name in (version.folder, files.name):  # files are called "train": not in any folder
                places.append(folder)
            for place in places:
                if any((place / name).is_file() for name in version.files):
                    return version, place
            if (folder / version.archive).is_file():
                return version, folder / version.archive
    return None


def _download(files: CifarFiles, folder: Path) -> None:
    version = files.versions[0]

    def check(filename: str, content: bytes) -> None:
        _check_md5(filename, hashlib.md5(content, usedforsecurity=False).hexdigest(), version)

    download([version.archive], [_HOME], folder, check)


def _check_md5(archive: Path | str, found: str, version: Version) -> None:
    if found != version.md5:
        raise DataError(f"{archive} is not the published file: expected MD5 {version.md5}, found {found}.")


Contents = Iterator[tuple[str, str, bytes]]  # of each file its name, what to call it in a message, its bytes


def _unpacked(version: Version, folder: Path) -> Contents:
    for name, images in version.files.items():
        path = folder / name
        if not path.is_file():
            raise DataError(f"{folder} is incomplete: expected {', '.join(version.files)}, found no {name}.")
        _check_size(version, str(path), path.stat().st_size, images)
        yield name, str(path), path.read_bytes()


def _archived(version: Version, path: Path) -> Contents:
    digest = hashlib.md5(usedforsecurity=False)
    with path.open("rb") as file:
        for piece in iter(lambda: file.read(1 << 20), b""):
            digest.update(piece)
    _check_md5(path, digest.hexdigest(), version)
    wanted = {f"{version.folder}/{name}": name for name in version.files}
    try:
        with tarfile.open(path, "r|gz") as archive:
            for member in archive:
                name = wanted.get(member.name)
                if name is None:
                    continue
                where = f"{path}: {member.name}"
                content = archive.extractfile(member) if member.isreg() else None
                if content is None:
                    raise DataError(f"{where} is not a file.")
                _check_size(version, where, member.size, version.files[name])
                del wanted[member.name]
                yield name, where, content.read()
    except (tarfile.TarError, EOFError, OSError, zlib.error) as error:
        raise DataError(f"{path} cannot be unpacked: {error}.") from None
    if wanted:
        raise DataError(f"{path} is incomplete: it has no {', '.join(wanted)}.")


def _check_size(version: Version, where: str, found: int, images: int) -> None:
    if version.label_bytes:
        expected = images * (version.label_bytes + _PIXELS)
        if found != expected:
            raise DataError(
                f"{where} has the wrong size: expected {images:,} images of {version.label_bytes + _PIXELS:,} "
                f"bytes = {expected:,}, found {found:,}."
            )
    elif found > (most := images * 2 * _PIXELS):
        raise DataError(f"{where} has the wrong size: expected at most {most:,} bytes, found {found:,}.")


def _parse(
    files: CifarFiles, version: Version, name: str, where: str, content: bytes
) -> tuple[Tensor, Tensor]:
    """Images uint8 `[N, 3, 32, 32]`, labels int64 `[N]`."""
    parse: Callable[[bytes, CifarFiles, Version], tuple[np.ndarray, np.ndarray]]
    parse = _parse_binary if version.label_bytes else _parse_pickle
    try:
        images, labels = parse(content, files, version)
    except (pickle.UnpicklingError, ValueError, OverflowError) as error:
        raise DataError(f"{where} cannot be read: {error}.") from None
    expected = version.files[name]
    if images.shape != (expected, _PIXELS) or labels.shape != (expected,):
        raise DataError(
            f"{where} has the wrong shape: expected {expected:,} images of {_PIXELS:,} bytes and as many "
            f"labels, found {' x '.join(map(str, images.shape))} and {len(labels):,}."
        )
    wrong = np.flatnonzero((labels < 0) | (labels >= files.classes))
    if len(wrong):
        raise DataError(
            f"{where} has a wrong label: expected 0 to {files.classes - 1}, found {labels[wrong[0]]} "
            f"at image {wrong[0]:,}."
        )
    return torch.tensor(images).view(-1, 3, 32, 32), torch.tensor(labels, dtype=torch.int64)


def _parse_binary(content: bytes, files: CifarFiles, version: Version) -> tuple[np.ndarray, np.ndarray]:
    records = np.frombuffer(content, np.uint8).reshape(-1, version.label_bytes + _PIXELS)
    return records[:, version.label_bytes :], records[:, version.label_bytes - 1]


def _parse_pickle(content: bytes, files: CifarFiles, version: Version) -> tuple[np.ndarray, np.ndarray]:
    values = read_pickle(content)
    images, labels = values.get(b"data"), values.get(files.label_key)
    if not isinstance(images, np.ndarray) or not isinstance(labels, list):
        raise ValueError(f"expected an array 'data' and a list {files.label_key.decode()!r}")
    if not all(type(label) is int for label in labels):
        raise ValueError(f"{files.label_key.decode()!r} holds something else than whole numbers")
    return images, np.array(labels, dtype=np.int64)
