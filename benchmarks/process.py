"""Measuring memory by processes of their own. Linux only."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).parent.parent

# The first statements of the process: nothing but torch is there when what it holds is noted.
_AFTER_TORCH = """
import sys
import torch
held = next(line for line in open("/proc/self/status") if line.startswith("VmRSS"))
open("/proc/self/clear_refs", "w").write("5")
from {module} import child
child(int(held.split()[1]) * 1024, sys.argv[1])
"""


def status(field: str) -> int:
    """Bytes of a ``/proc/self/status`` field: VmRSS now, VmHWM peak."""
    found = re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) * 1024


def reset_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def answer(command: list[str], variables: Mapping[str, str] | None = None) -> dict:
    """The last line that a process prints, as JSON; where it dies (no memory), ``error``."""
    environment = {**os.environ, **(variables or {})}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [""])[-1]
        return {"error": f"exit status {done.returncode}: {last}"}
    return json.loads(done.stdout.splitlines()[-1])


def after_torch(module: str, request: dict, variables: Mapping[str, str] | None = None) -> dict:
    """What ``module.child(held, request as JSON)`` prints in a process that has imported torch only.

    ``held``: bytes resident then; the peak is counted from there.
    """
    program = _AFTER_TORCH.format(module=module)
    return answer([sys.executable, "-c", program, json.dumps(request)], variables)
