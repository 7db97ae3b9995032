"""Where data sets are looked for. The first folder with any of the files decides: nothing bad is skipped."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from .errors import DataError

_CHECKOUT = Path(__file__).resolve().parents[2]
_ROOTS = (Path("data"), Path("../shared/data"), _CHECKOUT.parent / "shared/data", Path("/usr/share/datasets"))


def cache_dir() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "esl_sparse"


def search_path(name: str, torchvision_name: str, data_dir: Path | None = None) -> list[Path]:
    """Folders that may hold the data set's files; a folder named by the caller is the only place to look."""

    def inside(root: Path) -> list[Path]:
        return [root / name, root / torchvision_name / "raw"]

    if data_dir is not None:
        return [data_dir, *inside(data_dir)]
    named = os.environ.get("ESL_SPARSE_DATA")
    folders = [Path(named), *inside(Path(named))] if named else []
    for root in _ROOTS:
        folders += inside(root)
    return [*folders, cache_dir() / name]


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
