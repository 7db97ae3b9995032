import gzip
import hashlib
import tracemalloc

import pytest
import torch

from esl_sparse.data import DataError, idx
from esl_sparse.data.idx import read_idx

from .idx_files import idx_bytes

IMAGES = torch.arange(2 * 3 * 4, dtype=torch.uint8).view(2, 3, 4)


@pytest.mark.parametrize("name", ["images", "images.gz"])
def test_reads_plain_and_gzipped(tmp_path, name):
    content = idx_bytes(IMAGES)
    path = tmp_path / name
    path.write_bytes(gzip.compress(content) if path.suffix else content)
    assert torch.equal(read_idx(path, hashlib.sha256(content).hexdigest()), IMAGES)


@pytest.mark.parametrize(
    ("name", "damage", "says"),
    [
        ("f", lambda good: good[:-1], "expected 2 x 3 x 4 = 24 bytes as its header says, found 23"),
        ("f", lambda good: good + b"\0", "expected 2 x 3 x 4 = 24 bytes as its header says, found 25"),
        ("f", lambda good: good[:9], "expected 16 bytes of header, found 9"),
        (
            "f",
            lambda good: good[:2] + b"\x0d" + good[3:],
            "00 00 08 and a rank, found 00 00 0d",
        ),
        ("f", lambda good: b"", "found nothing"),
        ("f.gz", lambda good: good, "not a gzip file: expected the first bytes 1f 8b, found 00 00"),
        ("f.gz", lambda good: gzip.compress(good)[:-9], "is truncated: the gzip stream ends"),
        (
            "f.gz",
            lambda good: gzip.compress(good)[:-8] + bytes(8),
            "is corrupt: its gzip stream",
        ),
    ],
)
def test_bad_file_is_named_with_expected_and_found(tmp_path, name, damage, says):
    path = tmp_path / name
    path.write_bytes(damage(idx_bytes(IMAGES)))
    with pytest.raises(DataError) as error:
        read_idx(path)
    assert str(path) in str(error.value)
    assert says in str(error.value)


def test_a_gzip_bomb_is_not_unpacked(tmp_path, monkeypatch):
    path = tmp_path / "f.gz"
    path.write_bytes(gzip.compress(bytes(1 << 20)))
    monkeypatch.setattr(idx, "_LARGEST", 1 << 16)
    tracemalloc.start()
    with pytest.raises(DataError, match="it unpacks to more than 65,536 bytes") as error:
        read_idx(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert str(path) in str(error.value) and peak < 1 << 19


@pytest.mark.parametrize("rank", [1, 9, 255])
def test_a_header_of_huge_sizes_allocates_nothing(tmp_path, rank):
    path = tmp_path / "f"
    path.write_bytes(bytes([0, 0, 8, rank]) + b"\xff" * 4 * rank)
    with pytest.raises(DataError, match="has the wrong size"):
        read_idx(path)


def test_one_flipped_bit_fails_the_checksum(tmp_path):
    content = idx_bytes(IMAGES)
    path = tmp_path / "f"
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(DataError, match=r"expected sha256 .* found"):
        read_idx(path, hashlib.sha256(content).hexdigest())
