"""Where data sets are looked for. The first folder with any of the files decides: nothing bad is skipped."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from .errors import DataError, DataNotFoundError

_CHECKOUT = Path(__file__).resolve().parents[2]
_ROOTS = (Path("data"), Path("../shared/data"), _CHECKOUT.parent / "shared/data", Path("/usr/share/datasets"))


def cache_dir() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "esl_sparse"


def search_path(name: str, others: Sequence[str], data_dir: Path | None) -> list[Path]:
    """Folders that may hold the data set's files; a folder named by the caller is the only place to look.

    Below a root these are `name` and `others`, where other programs put the same files.
    """

    def inside(root: Path) -> list[Path]:
        return [root / below for below in (name, *others)]

    if data_dir is not None:
        return list(dict.fromkeys([data_dir, *inside(data_dir)]))
    named = os.environ.get("ESL_SPARSE_DATA")
    folders = [Path(named), *inside(Path(named))] if named else []
    for root in _ROOTS:
        folders += inside(root)
    return list(dict.fromkeys([*folders, cache_dir() / name]))


def fetch_missing(
    name: str,
    what: str,
    home: str,
    folders: Iterable[Path],
    data_dir: Path | None,
    fetch: Callable[[Path], None] | None = None,
) -> Path:
    """Nothing was found: the cache folder that `fetch` has filled, where it may and can.

    `what` names the files, `home` is where they are published.
    """
    failed = f"{name} was not found; searched: {', '.join(map(str, folders))} for {what}, published at {home}"
    if data_dir is not None or fetch is None:
        raise DataNotFoundError(f"{failed}.")
    folder = cache_dir() / name
    try:
        fetch(folder)
    except DataNotFoundError as error:
        raise DataNotFoundError(f"{failed}; {error}.") from None
    return folder


def find(names: Iterable[str], folders: Iterable[Path]) -> Path | None:
    names = list(names)
    return next((folder for folder in folders if any(_present(folder, name) for name in names)), None)


def locate(folder: Path, name: str) -> Path:
    """The file itself, plain before gzipped."""
    found = _present(folder, name)
    if found is None:
        raise DataError(f"{folder} is incomplete: expected {name} or {name}.gz, found neither.")
    return found


def _present(folder: Path, name: str) -> Path | None:
    return next((path for path in (folder / name, folder / f"{name}.gz") if path.is_file()), None)
