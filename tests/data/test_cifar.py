import io
import os
import pickle

import pytest
import torch

from esl_sparse.data import DataError, DataNotFoundError, download
from esl_sparse.data.cifar import load_cifar

from .cifar_files import TINY, archive, array, content, dictionary, numbers, samples, string, write_folder
from .conftest import offline

SETS = pytest.mark.parametrize("files", TINY.values(), ids=TINY)
BINARY, PYTHON = 0, 1
TEN = TINY["cifar10"]


def check(dataset, files, version):
    assert (dataset.name, dataset.classes, dataset.shape) == (files.name, files.classes, (3, 32, 32))
    mean, std = (torch.tensor(v, dtype=torch.float64).view(3, 1, 1) for v in (files.mean, files.std))
    for split, names in ((dataset.train, version.train), (dataset.test, version.test)):
        parts = [samples(files, name) for name in names]
        images, labels = split[:]
        assert labels.tolist() == [label for part in parts for label in part[1]]
        expected = (torch.cat([part[0] for part in parts]).double() / 255 - mean) / std
        torch.testing.assert_close(images, expected.float(), rtol=1e-5, atol=1e-6)


@SETS
@pytest.mark.parametrize("which", [BINARY, PYTHON])
@pytest.mark.parametrize("place", ["given", "given/{name}", "given/{folder}", "given/{name}/{folder}"])
def test_unpacked(home, files, which, place):
    version = files.versions[which]
    below = place.format(name=files.name, folder=version.folder)
    data_dir = home / "given"
    if place == "given":  # the caller names the archive's own folder
        data_dir, below = home / version.folder, version.folder
    folder = write_folder(files, version, home / below)
    dataset = load_cifar(files, data_dir)
    assert dataset.source == str(folder)
    check(dataset, files, version)


@SETS
@pytest.mark.parametrize("which", [BINARY, PYTHON])
def test_archive(home, files, which):
    version = files.versions[which]
    packed, files = archive(files, version)
    path = home / "home/work/data" / version.archive
    path.parent.mkdir()
    path.write_bytes(packed)
    dataset = load_cifar(files)
    assert dataset.source == str(path)
    check(dataset, files, version)


def test_download_is_checked_and_kept(home, monkeypatch):
    packed, files = archive(TEN, TEN.versions[BINARY])
    served = [b"captive portal", packed]
    monkeypatch.setattr(download, "urlopen", lambda url, timeout: io.BytesIO(served.pop(0)))
    with pytest.raises(DataNotFoundError, match=r"https://.*/cifar-10-binary.tar.gz .*expected MD5"):
        load_cifar(files)
    check(load_cifar(files), files, files.versions[BINARY])
    monkeypatch.setattr(download, "urlopen", offline)
    check(load_cifar(files), files, files.versions[BINARY])


def test_not_found_says_what_where_and_whence(home):
    with pytest.raises(DataNotFoundError) as error:
        load_cifar(TEN, home / "empty")
    assert "cifar10 was not found; searched: " in str(error.value)
    for word in (str(home / "empty"), "cifar-10-python.tar.gz", "cifar-10-batches-bin", "cs.toronto.edu"):
        assert word in str(error.value)


def test_a_file_called_train_is_not_cifar100(home):
    (home / "given").mkdir()
    (home / "given/train").write_bytes(b"of something else")
    with pytest.raises(DataNotFoundError):
        load_cifar(TINY["cifar100"], home / "given")


def folder_with(home, which, name, raw, files=TEN):
    folder = write_folder(files, files.versions[which], home / files.versions[which].folder)
    if raw is None:
        (folder / name).unlink()
    else:
        (folder / name).write_bytes(raw)
    return folder


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda good: good[:-1], r"expected 4 images of 3,073 bytes = 12,292, found 12,291\."),
        (lambda good: good[:3073], r"expected 4 images of 3,073 bytes = 12,292, found 3,073\."),
        (lambda good: good + good, r"= 12,292, found 24,584\."),
        (lambda good: good[:3073] + b"\x0a" + good[3074:], r"expected 0 to 9, found 10 at image 1\."),
        (lambda good: None, r"is incomplete: expected data_batch_1.bin, .* found no data_batch_2.bin\."),
    ],
)
def test_bad_binary_files(home, damage, says):
    name = "data_batch_2.bin"
    folder = folder_with(home, BINARY, name, damage(content(TEN, TEN.versions[BINARY], name)))
    with pytest.raises(DataError, match=says) as error:
        load_cifar(TEN, folder)
    assert name in str(error.value)


class Evil:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


IMAGES, LABELS = samples(TEN, "test_batch")
ROWS = array(IMAGES.flatten(1))


@pytest.mark.parametrize(
    ("raw", "says"),
    [
        (content(TEN, TEN.versions[PYTHON], "test_batch")[:-300], "cannot be read"),
        (b"<html>404</html>", "cannot be read"),
        (b"", "cannot be read: ValueError: pickle exhausted before seeing STOP"),
        (b"\x80\x02](K\x01e.", "it holds a list, not a dictionary"),
        (dictionary({b"data": ROWS}), "expected an array 'data' and a list 'labels'"),
        (dictionary({b"data": numbers([1]), b"labels": numbers(LABELS)}), "expected an array 'data'"),
        (dictionary({b"data": ROWS, b"labels": numbers([1, 2, 3])}), "4 x 3072 and 3"),
        (dictionary({b"data": ROWS, b"labels": numbers([1, 2, -1, 3])}), "found -1 at image 2"),
        (dictionary({b"data": ROWS, b"labels": b"](" + string(b"cat") * 4 + b"e"}), "whole numbers"),
        (dictionary({b"data": ROWS, b"labels": b"](" + b"\x8a\x09" + b"\x7f" * 9 + b"e"}), "cannot be read"),
        (dictionary({b"data": array(IMAGES.view(2, -1)), b"labels": numbers(LABELS)}), "2 x 6144 and 4"),
        (dictionary({b"data": array(IMAGES.flatten(1), b"O8"), b"labels": numbers(LABELS)}), "type b'O8'"),
        (dictionary({b"data": b"cbuiltins\neval\n" + string(b"1") + b"\x85R"}), "asks for builtins.eval"),
        (dictionary({b"data": b"cnumpy\nfromfile\n"}), "asks for numpy.fromfile"),
        (content(TEN, TEN.versions[PYTHON], "test_batch") + bytes(30_000), "at most 24,576 bytes"),
    ],
)
def test_bad_pickles(home, raw, says):
    folder = folder_with(home, PYTHON, "test_batch", raw)
    with pytest.raises(DataError) as error:
        load_cifar(TEN, folder)
    assert says in str(error.value)
    assert f"{folder / 'test_batch'} " in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("place", [b"r\xff\xff\xff\xff", b"p4294967295\n", b"p-1\n"])
def test_a_pickle_with_a_huge_table_is_refused(home, place):
    """Python's unpickler would make room for 2**33 pointers."""
    folder = folder_with(home, PYTHON, "test_batch", b"\x80\x02}" + place + b".")
    with pytest.raises(DataError, match=r"it keeps a value at place|cannot be read"):
        load_cifar(TEN, folder)


def test_a_malicious_pickle_does_nothing(home):
    evil = home / "evil"
    folder = folder_with(home, PYTHON, "test_batch", pickle.dumps({"data": Evil(evil)}, protocol=2))
    with pytest.raises(DataError, match=r"it asks for \w+\.mkdir"):
        load_cifar(TEN, folder)
    assert not evil.exists()


def link(member, raw):
    member.type, member.linkname, member.size = b"2", "/etc/passwd", 0
    return member, b""


def longer(member, raw):
    member.size += 1
    return member, raw + b"\0"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (link, "cifar-10-batches-bin/data_batch_1.bin is not a file"),
        (longer, "cifar-10-batches-bin/data_batch_1.bin has the wrong size"),
        (lambda member, raw: (None, b""), "is incomplete: it has no cifar-10-batches-bin/data_batch_1.bin"),
    ],
)
def test_bad_archives(home, change, says):
    packed, files = archive(TEN, TEN.versions[BINARY], change)
    (home / files.versions[BINARY].archive).write_bytes(packed)
    with pytest.raises(DataError) as error:
        load_cifar(files, home)
    assert says in str(error.value)


def test_an_archive_cut_short(home):
    packed, files = archive(TEN, TEN.versions[BINARY])
    path = home / files.versions[BINARY].archive
    path.write_bytes(packed[:-1000])
    with pytest.raises(DataError, match="is not the published file: expected MD5"):
        load_cifar(files, home)
