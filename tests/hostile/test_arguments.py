"""Wrong arguments end in an error or in a result, never in a signal: in a process of its own, with little memory."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="limits memory as Linux does")


@pytest.mark.parametrize("every", [7, pytest.param(1, marks=pytest.mark.slow)])
def test_no_argument_kills_the_process(every):
    done = subprocess.run(
        [sys.executable, "-m", "tests.hostile.attack", str(every)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    lines = done.stdout.splitlines() or ["start"]
    if done.returncode < 0:
        pytest.fail(f"{signal.Signals(-done.returncode).name} in {lines[-1]}")
    assert done.returncode == 0, f"{lines[-1]}\n{done.stderr}"
    assert [line for line in lines if line.startswith("BAD")] == []
    assert lines[-1] == "done" and len(lines) > 10_000 / every
