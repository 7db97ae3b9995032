"""The idx format of MNIST, plain or gzipped: two zero bytes, type, rank, big-endian sizes, elements."""

from __future__ import annotations

import gzip
import hashlib
import io
import math
import struct
import zlib
from pathlib import Path

import torch
from torch import Tensor

from .errors import DataError

_UINT8 = 0x08
_LARGEST = 1 << 28  # bytes of an unpacked file; the published ones have up to 47 MB


def read_idx(path: Path, sha256: str | None = None) -> Tensor:
    """Read one idx file of unsigned bytes as a uint8 tensor.

    `sha256` is the digest of the unpacked content, so that it holds for every way of packing the file.
    """
    return parse_idx(unpack(path.read_bytes(), path), path, sha256)


def unpack(raw: bytes, path: Path) -> bytes:
    """Undo gzip when the file's name says that it is gzipped."""
    if path.suffix != ".gz":
        return raw
    if raw[:2] != b"\x1f\x8b":
        raise DataError(f"{path} is not a gzip file: expected the first bytes 1f 8b, found {_hex(raw[:2])}.")
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(raw)) as file:
            content = file.read(_LARGEST + 1)
    except EOFError:
        raise DataError(f"{path} is truncated: the gzip stream ends after {len(raw):,} bytes.") from None
    except (OSError, zlib.error) as error:
        raise DataError(f"{path} is corrupt: its gzip stream cannot be unpacked ({error}).") from None
    if len(content) > _LARGEST:
        raise DataError(
            f"{path} is no idx file of these data sets: it unpacks to more than {_LARGEST:,} bytes."
        )
    return content


def parse_idx(content: bytes, path: Path, sha256: str | None = None) -> Tensor:
    if len(content) < 4 or content[:3] != bytes([0, 0, _UINT8]) or content[3] == 0:
        raise DataError(
            f"{path} is not an idx file of bytes: expected the first bytes 00 00 08 and a rank, "
            f"found {_hex(content[:4])}."
        )
    rank = content[3]
    offset = 4 + 4 * rank
    if len(content) < offset:
        raise DataError(f"{path} is truncated: expected {offset} bytes of header, found {len(content)}.")
    shape = struct.unpack(f">{rank}I", content[4:offset])
    if len(content) - offset != math.prod(shape):
        raise DataError(
            f"{path} has the wrong size: expected {' x '.join(map(str, shape))} = {math.prod(shape):,} bytes "
            f"as its header says, found {len(content) - offset:,}."
        )
    found = hashlib.sha256(content).hexdigest()
    if sha256 is not None and found != sha256:
        raise DataError(f"{path} is not the published file: expected sha256 {sha256}, found {found}.")
    # frombuffer over a bytearray: the tensor owns writable memory and nothing is copied twice
    return torch.frombuffer(bytearray(content), dtype=torch.uint8)[offset:].view(shape)


def _hex(raw: bytes) -> str:
    return raw.hex(" ") or "nothing"
