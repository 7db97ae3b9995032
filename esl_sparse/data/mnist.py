"""MNIST and Fashion-MNIST: four idx files each, as published, found on this machine or downloaded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from .dataset import Dataset, Pixels, Split
from .download import download
from .idx import parse_idx, read_idx, unpack
from .search import fetch_missing, find, locate, search_path


@dataclass(frozen=True)
class IdxFiles:
    """The published files of one data set: the unpacked content's digest by name, and where to fetch them."""

    name: str
    torchvision_name: str
    mirrors: tuple[str, ...]
    sha256: Mapping[str, str]  # train images, train labels, test images, test labels
    classes: int = 10


MNIST = IdxFiles(
    name="mnist",
    torchvision_name="MNIST",
    mirrors=(
        "https://ossci-datasets.s3.amazonaws.com/mnist/",
        "https://storage.googleapis.com/cvdf-datasets/mnist/",
    ),
    sha256={
        "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
        "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
        "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
        "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
    },
)
FASHION_MNIST = IdxFiles(
    name="fashion-mnist",
    torchvision_name="FashionMNIST",
    mirrors=(
        "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
        "https://github.com/zalandoresearch/fashion-mnist/raw/master/data/fashion/",
    ),
    sha256={
        "train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
        "train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
        "t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
        "t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
    },
)


def load_idx_dataset(files: IdxFiles, data_dir: Path | None = None) -> Dataset:
    source, train, test = read_idx_files(files, data_dir)
    return Dataset(
        name=files.name,
        source=source,
        train=Split(train[0].unsqueeze(1), train[1], Pixels()),
        test=Split(test[0].unsqueeze(1), test[1], Pixels()),
        classes=files.classes,
    )


def read_idx_files(
    files: IdxFiles, data_dir: Path | None
) -> tuple[str, tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """The folder, then images uint8 `[N, H, W]` and labels int64 `[N]` for training and for the test."""
    folders = search_path(files.name, [f"{files.torchvision_name}/raw"], data_dir)
    folder = find(files.sha256, folders)
    if folder is None:
        what = f"{', '.join(files.sha256)} (each plain or .gz)"
        folder = fetch_missing(
            files.name, what, files.mirrors[0], folders, data_dir, lambda folder: _download(files, folder)
        )
    train_images, train_labels, test_images, test_labels = (
        read_idx(locate(folder, name), digest) for name, digest in files.sha256.items()
    )
    train, test = (train_images, train_labels.long()), (test_images, test_labels.long())
    return str(folder.resolve()), train, test


def _download(files: IdxFiles, folder: Path) -> None:
    digests = {f"{name}.gz": digest for name, digest in files.sha256.items()}

    def check(filename: str, content: bytes) -> None:
        path = Path(filename)
        parse_idx(unpack(content, path), path, digests[filename])

    download(digests, files.mirrors, folder, check)
