"""What a figure was measured on: the header of every stored result."""

from __future__ import annotations

import datetime
import os
import platform
import re
import subprocess
from pathlib import Path

import psutil
import torch

import esl_sparse
from esl_sparse import _native
from esl_sparse._backends import BACKENDS, choose

ROOT = Path(__file__).parent.parent


def _cpu_model() -> str:
    try:
        found = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text())
    except OSError:
        found = None
    return found[1] if found else platform.processor() or platform.machine()


def _libraries() -> dict[str, str]:
    """MKL and oneDNN as torch was built with them, e.g. ``{"MKL": "2024.2", "oneDNN": "3.12.0"}``."""
    config = torch.__config__.show()
    patterns = {"MKL": r"Math Kernel Library Version (\S+?)-", "oneDNN": r"MKL-DNN v(\S+)"}
    return {name: found[1] for name, pattern in patterns.items() if (found := re.search(pattern, config))}


def _commit() -> str | None:
    def git(*args: str) -> str:
        return subprocess.run(["git", *args], cwd=ROOT, capture_output=True, text=True, check=True).stdout

    try:
        changed = git("status", "--porcelain", "--untracked-files=no", "--", "csrc", "esl_sparse")
        return git("rev-parse", "--short=10", "HEAD").strip() + ("+changes" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def header() -> dict:
    try:
        system = platform.freedesktop_os_release()["PRETTY_NAME"]
    except OSError:
        system = platform.system()
    ops = BACKENDS["reference"]
    return {
        "cpu": _cpu_model(),
        "cores": psutil.cpu_count(logical=False),
        "threads": torch.get_num_threads(),
        "ram_gb": round(psutil.virtual_memory().total / 1e9, 1),
        "load_before": round(os.getloadavg()[0], 2),
        "os": system,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torch_isa": torch.backends.cpu.get_cpu_capability(),
        "libraries": _libraries(),
        "esl_sparse": esl_sparse.__version__,
        "esl_sparse_isa": _native.get_isa() if _native.available() else None,
        "esl_sparse_backend": {op: choose(op, "cpu", torch.float32, (4, 4)) for op in ops},
        "commit": _commit(),
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d"),
    }


def conditions(machine: dict) -> str:
    """The header in one line, to stand beside figures."""
    libraries = ", ".join(f"{name} {version}" for name, version in machine["libraries"].items())
    backends = sorted(set(machine["esl_sparse_backend"].values()))
    return (
        f"{machine['cpu']}, {machine['threads']} threads, float32; torch {machine['torch']} "
        f"({machine['torch_isa']}; {libraries}); esl_sparse {machine['esl_sparse']} ({'/'.join(backends)}, "
        f"{machine['esl_sparse_isa']}, {machine['commit']}); {machine['date']}"
    )
