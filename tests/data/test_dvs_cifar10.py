import numpy as np
import pytest
import torch

from esl_sparse.data import DataError, DataNotFoundError, dvs_cifar10, load
from esl_sparse.data.dvs_cifar10 import DVS_CIFAR10, load_dvs_cifar10
from esl_sparse.data.events import events_to_frames

from .event_files import TINY, aedat_bytes, random_events, write_recordings

T, SIZE = 3, 32


def expected(k, T=T, size=SIZE):
    return torch.from_numpy(events_to_frames(*random_events(k), T=T, size=size)).float()


def numbers(split):
    """Which recording each sample of a split is."""
    every = torch.stack([expected(k) for k in range(len(TINY))]).flatten(1)
    samples = split[:][0].flatten(1)
    found = (samples[:, None] == every).all(2)
    assert (found.sum(1) == 1).all()
    return found.int().argmax(1).tolist()


def loaded(folder, **options):
    return load_dvs_cifar10(TINY, folder, **{"T": T, "size": SIZE, **options})


@pytest.fixture
def recordings(home):
    return write_recordings(home / "recordings")


@pytest.mark.parametrize("place", ["given", "given/tiny-dvs", "given/CIFAR10DVS/extract"])
@pytest.mark.parametrize("suffix", [".aedat", ".npz"])
def test_frames_and_labels(home, place, suffix):
    folder = write_recordings(home / place, suffix=suffix)
    dataset = loaded(home / "given")
    assert (dataset.source, dataset.classes, dataset.event) == (str(folder), 3, True)
    assert dataset.shape == dataset.test.shape == (T, 2, SIZE, SIZE)
    assert dataset.features == T * 2 * SIZE * SIZE
    for split, first, last in ((dataset.train, 0, 7), (dataset.test, 7, 10)):
        frames, labels = split[:]
        ks = [label * 10 + number for label in range(3) for number in range(first, last)]
        assert labels.tolist() == [k // 10 for k in ks]
        assert frames.equal(torch.stack([expected(k) for k in ks]))


def test_published_counts():
    names = list(DVS_CIFAR10.names())
    assert len(names) == len(set(names)) == len(DVS_CIFAR10) == 10_000
    assert (names[0], names[-1]) == ("airplane/cifar10_airplane_0", "truck/cifar10_truck_999")
    for share, counts in ((0.7, (700, 300)), (0.9, (900, 100))):
        train, test = dvs_cifar10._split(DVS_CIFAR10, share, None)
        assert torch.cat([train, test]).sort().values.equal(torch.arange(10_000))
        for part, count in zip((train, test), counts, strict=True):
            assert (part // 1000).bincount().tolist() == [count] * 10
        assert (train % 1000).max() < counts[0] <= (test % 1000).min()


@pytest.mark.parametrize(("split", "count"), [("tet", 7), ("900-100", 9)])
def test_seeded_splits(recordings, split, count):
    parts = {}
    for seed in (None, 0, 1):
        dataset = loaded(recordings, split=split, split_seed=seed)
        train, test = numbers(dataset.train), numbers(dataset.test)
        assert sorted(train + test) == list(range(30))
        assert np.bincount(np.array(train) // 10).tolist() == [count] * 3
        parts[seed] = train
    again = loaded(recordings, split=split, split_seed=1)
    assert numbers(again.train) == parts[1]
    assert len({frozenset(train) for train in parts.values()}) == 3


@pytest.fixture
def decoded(monkeypatch):
    """The recordings that were decoded, by name."""
    names = []
    decode = dvs_cifar10._frames

    def counted(path, *options):
        frames = decode(path, *options)
        names.append(path.name)
        return frames

    monkeypatch.setattr(dvs_cifar10, "_frames", counted)
    return names


def test_recordings_are_decoded_once(home, recordings, decoded):
    first = loaded(recordings).train[:][0]
    assert len(decoded) == 30
    assert loaded(recordings).train[:][0].equal(first)
    assert len(decoded) == 30
    (cache,) = (home / "cache/esl_sparse/tiny-dvs").iterdir()
    loaded(recordings, T=4)
    assert len(decoded) == 60
    cache.write_bytes(cache.read_bytes()[:-100])  # damaged
    assert loaded(recordings).train[:][0].equal(first)
    assert len(decoded) == 90
    (recordings / "dog/cifar10_dog_3.aedat").write_bytes(aedat_bytes(*random_events(99, 61)))
    assert not loaded(recordings).train[:][0].equal(first)
    assert len(decoded) == 120


@pytest.mark.parametrize("error", [KeyboardInterrupt, DataError])
def test_an_interrupt_loses_only_what_was_not_done(home, recordings, decoded, monkeypatch, error):
    counted = dvs_cifar10._frames

    def interrupted(path, *options):
        if path.name == "cifar10_dog_7.aedat":
            raise error
        return counted(path, *options)

    with monkeypatch.context() as patch:
        patch.setattr(dvs_cifar10, "_frames", interrupted)
        with pytest.raises(error):
            loaded(recordings)
    assert len(decoded) == 17
    dataset = loaded(recordings)
    assert len(decoded) == 30 and len(set(decoded)) == 30
    assert numbers(dataset.test) == [7, 8, 9, 17, 18, 19, 27, 28, 29]
    assert len(list((home / "cache/esl_sparse/tiny-dvs").iterdir())) == 1


def test_a_cache_that_cannot_be_written_is_warned_of(home, recordings, caplog):
    (home / "cache").write_text("a file where a folder should be")
    assert numbers(loaded(recordings).test)[0] == 7
    assert "frames cannot be kept in" in caplog.text


def test_missing_and_bad_recordings(home, recordings):
    path = recordings / "dog/cifar10_dog_3.aedat"
    good = path.read_bytes()
    path.write_bytes(good[:-1])
    with pytest.raises(DataError, match=r"cifar10_dog_3.aedat is truncated"):
        loaded(recordings)
    path.write_bytes(aedat_bytes([1, 2], [0, 0], [0, 0], [0, 0]))
    with pytest.raises(DataError, match=r"dog_3.aedat is truncated: expected events for 3 frames, found 2"):
        loaded(recordings)
    path.unlink()
    with pytest.raises(DataError, match=r"of 30 recordings 1 are missing, first dog/cifar10_dog_3.aedat"):
        loaded(recordings)
    write_recordings(home / "npz", suffix=".npz")
    t, x, y, p = random_events(0)
    np.savez(home / "npz/cat/cifar10_cat_2.npz", t=t, x=x + 128, y=y, p=p)
    with pytest.raises(DataError, match=r"cat_2.npz does not fit: x: expected 0 to 127"):
        loaded(home / "npz")


def test_not_found_says_what_where_and_whence(home):
    with pytest.raises(DataNotFoundError) as error:
        load("dvs-cifar10")
    for word in (
        "airplane/cifar10_airplane_0.aedat",
        "9,999 more",
        "../shared/data/dvs-cifar10",
        "figshare.com",
    ):
        assert word in str(error.value)
    with pytest.raises(DataError, match="split: expected one of tet, 900-100, got 'half'"):
        load("dvs-cifar10", split="half")
