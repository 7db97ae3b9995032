"""Where and with what a result was made: a line or two beside it."""

from __future__ import annotations

import platform
import re
import subprocess
from pathlib import Path

import torch

from .._version import __version__

_PACKAGE = Path(__file__).parents[1]


def machine() -> dict[str, str | int | None]:
    return {
        "cpu": cpu_model(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "esl_sparse": __version__,
        "commit": commit(_PACKAGE, "."),
    }


def cpu_model() -> str:
    try:
        found = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text())
    except OSError:
        found = None
    return found[1] if found else platform.processor() or platform.machine()


def commit(folder: Path, *sources: str) -> str | None:
    """The checkout's, with `+changes` if a file below `sources` differs from it; None outside of a checkout."""

    def git(*args: str) -> str:
        return subprocess.run(["git", *args], cwd=folder, capture_output=True, text=True, check=True).stdout

    try:
        if git("ls-files", "--", "__init__.py" if sources == (".",) else ".").strip() == "":
            return None  # installed inside somebody else's repository
        changed = git("status", "--porcelain", "--untracked-files=no", "--", *sources)
        return git("rev-parse", "--short=10", "HEAD").strip() + ("+changes" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return None
