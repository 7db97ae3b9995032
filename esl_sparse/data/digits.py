"""The 1,797 handwritten 8x8 digits that come inside scikit-learn: no file, no network."""

from __future__ import annotations

import torch

from .dataset import Dataset, Pixels, Split
from .errors import DataError

_TEST = 360


def load_digits() -> Dataset:
    try:
        import sklearn
        from sklearn import datasets
    except ModuleNotFoundError:
        raise DataError('The digits lie inside scikit-learn: pip install "esl_sparse[train]".') from None
    bunch = datasets.load_digits()
    images = torch.from_numpy(bunch.images).to(torch.uint8).unsqueeze(1)
    labels = torch.from_numpy(bunch.target).long()
    # no split is published, so one is fixed here; shuffled, because the file runs writer by writer
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    whole = Split(images, labels, Pixels(peak=16))
    return Dataset(
        name="digits",
        source=f"scikit-learn {sklearn.__version__}",
        train=whole.subset(order[_TEST:]),
        test=whole.subset(order[:_TEST]),
        classes=10,
    )
