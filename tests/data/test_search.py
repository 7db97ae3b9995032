import gzip
import io

import pytest
import torch

from esl_sparse.data import DataError, DataNotFoundError, download, load
from esl_sparse.data.mnist import load_idx_dataset

from .conftest import offline
from .idx_files import CONTENT, TINY, write_tiny


def _source(**kwargs):
    return load_idx_dataset(TINY, **kwargs).source


def test_order_of_search(home, monkeypatch):
    places = [
        home / "cache/esl_sparse/tiny",
        home / "home/shared/data/TINY/raw",
        home / "home/work/data/tiny",
        home / "named/tiny",
    ]
    monkeypatch.setenv("ESL_SPARSE_DATA", str(home / "named"))
    for place in places:  # from last to first in the order of search
        write_tiny(place)
        assert _source() == str(place)


@pytest.mark.parametrize("below", ["", "tiny", "TINY/raw"])
@pytest.mark.parametrize("packed", [True, False])
def test_data_dir(home, below, packed):
    folder = write_tiny(home / "given" / below, packed)
    dataset = load_idx_dataset(TINY, home / "given")
    assert dataset.source == str(folder)
    assert (len(dataset.train), len(dataset.test), dataset.features) == (20, 10, 16)
    images, labels = dataset.train[:3]
    assert images.shape == (3, 1, 4, 4)
    assert images.unique().tolist() == [1.0]
    assert labels.tolist() == [0, 1, 2]


def test_a_given_data_dir_is_the_only_place(home):
    write_tiny(home / "cache/esl_sparse/tiny")
    with pytest.raises(DataNotFoundError, match=r"tiny was not found; searched: .*empty"):
        load_idx_dataset(TINY, home / "empty")


def test_a_bad_file_stops_the_search(home):
    write_tiny(home / "cache/esl_sparse/tiny")
    first = write_tiny(home / "home/work/data/tiny")
    (first / "t10k-labels-idx1-ubyte.gz").write_bytes(b"<html>")
    with pytest.raises(DataError, match=r"t10k-labels.* is not a gzip file: expected .* found 3c 68"):
        _source()
    (first / "t10k-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(DataError, match=r"is incomplete: expected t10k-labels-idx1-ubyte .* found neither"):
        _source()


def test_nothing_found_says_where_and_why(home):
    with pytest.raises(DataNotFoundError, match=r"searched: .*cache.* for train-images.*no network.*second"):
        _source()


def test_download_checks_content_and_falls_over_to_the_next_mirror(home, monkeypatch):
    def serve(url, timeout):
        good = gzip.compress(CONTENT[url.rsplit("/", 1)[1].removesuffix(".gz")])
        return io.BytesIO(b"captive portal" if "first" in url else good)

    monkeypatch.setattr(download, "urlopen", serve)
    assert _source() == str(home / "cache/esl_sparse/tiny")
    monkeypatch.setattr(download, "urlopen", offline)
    assert _source() == str(home / "cache/esl_sparse/tiny")
    assert len(list((home / "cache/esl_sparse/tiny").iterdir())) == len(CONTENT)


def test_digits_and_unknown_names():
    digits = load("digits")
    assert (len(digits.train), len(digits.test), digits.features) == (1437, 360, 64)
    assert digits.shape == digits.test.shape == (1, 8, 8) and not digits.event
    assert digits.train[:100][0].max() == 1.0
    with pytest.raises(DataError, match="expected one of mnist, fashion-mnist, digits"):
        load("imagenet")
    with pytest.raises(DataError, match=r"Unknown option 'T' of digits: it has none\."):
        load("digits", T=4)
    with pytest.raises(DataError, match=r"Unknown option 'size' of cifar10: it has none\."):
        load("cifar10", size=32)
    with pytest.raises(DataError, match=r"'steps' of dvs-cifar10: expected T, size, split, split_seed\."):
        load("dvs-cifar10", T=4, steps=4)
    with pytest.raises(DataError, match=r"T: expected a positive integer, got 0\."):
        load("dvs-fashion-mnist", T=0)
    with pytest.raises(DataError, match=r"size: expected a positive integer, got 28\.0\."):
        load("dvs-cifar10", size=28.0)


def test_validation_split_is_seeded_and_disjoint():
    dataset = load("digits")
    train, val = dataset.split_validation(0.1, seed=3)
    again, _ = dataset.split_validation(0.1, seed=3)
    other, _ = dataset.split_validation(0.1, seed=4)
    assert (len(train), len(val)) == (1293, 144)
    images, labels = train[:]
    assert labels.equal(again[:][1])
    assert not labels.equal(other[:][1])
    both = sorted(torch.cat([images, val[:][0]]).tolist())
    assert both == sorted(dataset.train[:][0].tolist())
