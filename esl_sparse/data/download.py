"""Fetch published files into a folder: every file is checked before it takes its place."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from urllib.request import urlopen

from .errors import DataError, DataNotFoundError
from .idx import parse_idx, unpack

logger = logging.getLogger(__name__)

_TIMEOUT_S = 10


def download(sha256: Mapping[str, str], mirrors: Sequence[str], folder: Path) -> None:
    """Fetch `<name>.gz` for every name, from the first mirror that serves the right content."""
    for name, digest in sha256.items():
        target = folder / f"{name}.gz"
        raw = _fetch(target.name, digest, mirrors)
        folder.mkdir(parents=True, exist_ok=True)
        temporary = target.with_name(f".{target.name}.{os.getpid()}")
        temporary.write_bytes(raw)
        os.replace(temporary, target)


def _fetch(filename: str, digest: str, mirrors: Sequence[str]) -> bytes:
    failures = []
    for mirror in mirrors:
        url = mirror + filename
        logger.info("downloading %s", url)
        try:
            with urlopen(url, timeout=_TIMEOUT_S) as response:
                raw: bytes = response.read()
            parse_idx(unpack(raw, Path(filename)), Path(filename), digest)
        except (OSError, DataError) as error:
            failures.append(f"{url} ({getattr(error, 'reason', error)})")
        else:
            return raw
    raise DataNotFoundError(f"no download either: {', '.join(failures)}")
