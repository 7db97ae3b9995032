"""`make gpu-check` ends when it says, whatever its parts do."""

import io
import sys
import time

import pytest

from benchmarks import gpu_check
from benchmarks.gpu_check import Part, run


@pytest.mark.parametrize(
    ("code", "found", "printed"),
    [
        ("print('a'); raise SystemExit(3)", 3, "a\n"),
        ("import time\ntry: time.sleep(60)\nexcept KeyboardInterrupt: print('kept')", "stopped", "kept\n"),
        # A child that outlives its parent holds the pipe.
        ("import subprocess, sys\nsubprocess.run(['sleep', '60'])", "stopped", ""),
        ("import signal, time\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\ntime.sleep(60)", "stopped", ""),
    ],
)
def test_a_part_ends_in_time(monkeypatch, code, found, printed):
    monkeypatch.setattr(gpu_check, "GRACE", 0.5)
    start, log = time.monotonic(), io.StringIO()
    status = run(Part([sys.executable, "-c", code], 1.0), log)
    assert status == found or str(status).startswith(f"{found} after 1 s")
    assert log.getvalue().startswith(printed)
    assert time.monotonic() - start < 20


def test_less_than_nine_minutes(monkeypatch, tmp_path):
    monkeypatch.setattr("shutil.which", lambda tool: tool)
    limits = [part.limit + gpu_check.GRACE for _, part in gpu_check.parts(tmp_path)]
    assert len(limits) == 6 and sum(limits) < 9 * 60
