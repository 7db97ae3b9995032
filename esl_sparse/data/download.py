"""Fetch published files into a folder: every file is checked before it takes its place."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from urllib.request import urlopen

from .atomic import replacing
from .errors import DataError, DataNotFoundError

logger = logging.getLogger(__name__)

_TIMEOUT_S = 10
_LARGEST = 1 << 29  # bytes; the largest published archive has 170 MB


def download(
    filenames: Iterable[str], mirrors: Sequence[str], folder: Path, check: Callable[[str, bytes], object]
) -> None:
    """Fetch every file from the first mirror that serves the right content.

    `check(filename, content)` raises `DataError` for what is not the published file.
    """
    for filename in filenames:
        content = _fetch(filename, mirrors, check)
        with replacing(folder / filename) as file:
            file.write(content)


def _fetch(filename: str, mirrors: Sequence[str], check: Callable[[str, bytes], object]) -> bytes:
    failures = []
    for mirror in mirrors:
        url = mirror + filename
        logger.info("downloading %s", url)
        try:
            with urlopen(url, timeout=_TIMEOUT_S) as response:
                content: bytes = response.read(_LARGEST + 1)
            if len(content) > _LARGEST:
                raise DataError(f"more than {_LARGEST:,} bytes")
            check(filename, content)
        except (OSError, DataError) as error:
            failures.append(f"{url} ({getattr(error, 'reason', error)})")
        else:
            return content
    raise DataNotFoundError(f"no download either: {', '.join(failures)}")
