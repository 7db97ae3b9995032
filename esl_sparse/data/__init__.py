"""Data sets by name: `load("mnist")`, `load("cifar10")`, `load("dvs-cifar10", T=10, size=48)`."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from .cifar import CIFAR10, CIFAR100, load_cifar
from .dataset import Dataset, Split
from .digits import load_digits
from .dvs_cifar10 import DVS_CIFAR10, load_dvs_cifar10
from .errors import DataError, DataNotFoundError
from .mnist import FASHION_MNIST, MNIST, load_idx_dataset
from .moving import load_moving

__all__ = ["DATASETS", "DataError", "DataNotFoundError", "Dataset", "Split", "load", "options_of"]

DATASETS: dict[str, Callable[..., Dataset]] = {
    "mnist": partial(load_idx_dataset, MNIST),
    "fashion-mnist": partial(load_idx_dataset, FASHION_MNIST),
    "digits": lambda data_dir: load_digits(),
    "cifar10": partial(load_cifar, CIFAR10),
    "cifar100": partial(load_cifar, CIFAR100),
    "dvs-cifar10": partial(load_dvs_cifar10, DVS_CIFAR10),
    "dvs-fashion-mnist": partial(load_moving, FASHION_MNIST),
    "dvs-mnist": partial(load_moving, MNIST),
}
"""Loaders by name, called with the folder to look in or None; what else one takes by name are its options."""


def load(name: str, data_dir: str | os.PathLike[str] | None = None, **options: Any) -> Dataset:
    """Load a data set into memory.

    With `data_dir` it is looked for there and nowhere else. Without, in `$ESL_SPARSE_DATA`, `data`,
    `../shared/data`, `/usr/share/datasets` and the user's cache; what none of them has is downloaded
    into the cache, but for DVS-CIFAR10.

    Options of the sets of event frames: `T`, frames of a sample, and `size`, their width and height (dvs-cifar10: 10
    and 48; dvs-fashion-mnist and dvs-mnist: 4 and 28). Of dvs-cifar10 also `split`, "tet" (default) or "900-100",
    and `split_seed`.

    Raises:
        DataNotFoundError: there is no such file, and none can be downloaded. DataError: the name or an option is
            unknown, or a file is not what it should be.
    """
    known = options_of(name)
    if unknown := [option for option in options if option not in known]:
        takes = f"expected {', '.join(known)}" if known else "it has none"
        raise DataError(f"Unknown option {unknown[0]!r} of {name}: {takes}.")
    return DATASETS[name](Path(data_dir) if data_dir is not None else None, **options)


def options_of(name: str) -> list[str]:
    """What `load` takes besides the name and the folder.

    Raises:
        DataError: the name is unknown.
    """
    if name not in DATASETS:
        raise DataError(f"Unknown data set {name!r}: expected one of {', '.join(DATASETS)}.")
    parameters = inspect.signature(DATASETS[name]).parameters.values()
    return [parameter.name for parameter in parameters if parameter.kind is inspect.Parameter.KEYWORD_ONLY]
