"""Data sets by name: `load("mnist")`, `load("fashion-mnist")`, `load("digits")`."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from .dataset import Dataset, Split
from .digits import load_digits
from .errors import DataError, DataNotFoundError
from .mnist import FASHION_MNIST, MNIST, load_idx_dataset

__all__ = ["DATASETS", "DataError", "DataNotFoundError", "Dataset", "Split", "load"]

DATASETS: dict[str, Callable[[Path | None], Dataset]] = {
    "mnist": lambda data_dir: load_idx_dataset(MNIST, data_dir),
    "fashion-mnist": lambda data_dir: load_idx_dataset(FASHION_MNIST, data_dir),
    "digits": lambda data_dir: load_digits(),
}


def load(name: str, data_dir: str | os.PathLike[str] | None = None) -> Dataset:
    """Load a data set into memory.

    With `data_dir` it is looked for there and nowhere else. Without, in `$ESL_SPARSE_DATA`, `data`,
    `../shared/data`, `/usr/share/datasets` and the user's cache; what none of them has is downloaded
    into the cache.
    """
    if name not in DATASETS:
        raise DataError(f"Unknown data set {name!r}: expected one of {', '.join(DATASETS)}.")
    return DATASETS[name](Path(data_dir) if data_dir is not None else None)
