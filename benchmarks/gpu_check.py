"""All that needs a GPU, with this Python and no network: ``make gpu-check``.

Builds in place, runs the GPU tests, some of them under compute-sanitizer, and the GPU benchmarks. A part that fails or
takes too long does not stop the others. Leaves ``gpu-check.log``, ``gpu-check.json`` and the benchmarks' ``gpu.json``
and ``memory.json`` in the folder named by ``OUT``; fails where there is no GPU.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, TextIO

ROOT = Path(__file__).parents[1]
GRACE = 5.0  # seconds between the request to end and the end
OUTCOMES = ("tests", "failures", "errors", "skipped")
# Under compute-sanitizer a kernel takes up to a hundred times as long.
SANITIZED = (
    "agrees and float32 and (16x16-two-steps or 16x16-strided)"
    " or test_block_score and agrees and 4x4-overhang and packed or test_temporal and agrees and 4x4-overhang"
    " or test_select and the_column_index"
)


class Part(NamedTuple):
    command: list[str]
    limit: float  # seconds


def parts(out: Path) -> Iterator[tuple[str, Part]]:
    """Less than nine minutes in all, also where each has to be stopped."""
    python, pytest = sys.executable, [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "tests/gpu"]
    yield "build", Part([python, "setup.py", "build_ext", "--inplace"], 115)
    yield "pytest", Part([*pytest, f"--junitxml={out / 'junit.xml'}"], 165)
    sanitizer = shutil.which("compute-sanitizer")
    for tool in ("memcheck", "racecheck"):
        if sanitizer:
            options = [sanitizer, "--tool", tool, "--error-exitcode", "1"]
            yield tool, Part([*options, *pytest, "-x", "-k", SANITIZED], 35)
    benchmark = [python, "-m", "benchmarks.run"]
    memory = ["memory", "--sweep", "--device", "cuda", "--output", str(out / "memory.json")]
    yield "memory", Part([*benchmark, *memory], 35)
    yield "benchmark", Part([*benchmark, "gpu", "--output", str(out / "gpu.json")], 120)


def run(part: Part, log: TextIO) -> int | str:
    """Exit status, or what became of it; its output goes to the screen and into the log."""
    environment = {"ESL_SPARSE_CUDA_ARCHS": "native", **os.environ}
    late = threading.Event()
    with subprocess.Popen(
        part.command,
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,  # whoever holds the other end of the pipe ends with it
    ) as process:

        def stop(with_signal: signal.Signals) -> None:
            late.set()
            os.killpg(process.pid, with_signal)

        # First asked to end: pytest then writes what it has seen.
        timers = [
            threading.Timer(part.limit, stop, [signal.SIGINT]),
            threading.Timer(part.limit + GRACE, stop, [signal.SIGKILL]),
        ]
        for timer in timers:
            timer.start()
        assert process.stdout is not None
        for line in process.stdout:
            print(line, end="", flush=True)
            log.write(line)
        process.wait()
        for timer in timers:
            timer.cancel()
    return f"stopped after {part.limit:g} s" if late.is_set() else process.returncode


def _last_line(*command: str) -> str | None:
    """What a tool says about its version; None where it is missing."""
    if shutil.which(command[0]) is None:
        return None
    lines = subprocess.run(command, capture_output=True, text=True).stdout.split("\n")
    return next((line.strip() for line in reversed(lines) if line.strip()), None)


def machine() -> dict[str, Any]:
    import torch

    triton = None
    if importlib.util.find_spec("triton"):
        import triton as module

        triton = module.__version__
    return {
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "driver": _last_line("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"),
        "torch": torch.__version__,
        "triton": triton,
        "nvcc": _last_line("nvcc", "--version"),
        "compute-sanitizer": _last_line("compute-sanitizer", "--version"),
        "python": sys.version.split()[0],
        "commit": _last_line("git", "rev-parse", "--short=10", "HEAD"),
    }


def _counts(junit: Path) -> dict[str, int]:
    if not junit.exists():
        return dict.fromkeys(OUTCOMES, 0)
    suite = ET.parse(junit).getroot().find("testsuite")
    assert suite is not None
    return {name: int(suite.get(name, 0)) for name in OUTCOMES}


def main() -> int:
    header = machine()
    if header["gpu"] is None:
        print("gpu-check: torch sees no GPU on this machine, so nothing was checked", file=sys.stderr)
        return 1
    out = Path(os.environ.get("OUT") or ROOT / "build" / "gpu-check").resolve()
    out.mkdir(parents=True, exist_ok=True)
    junit, start = out / "junit.xml", time.monotonic()
    junit.unlink(missing_ok=True)
    summary: dict[str, Any] = {"ok": False, "machine": header, "exits": {}, "seconds": {}}
    with open(out / "gpu-check.log", "w") as log:
        for name, part in parts(out):
            begin = time.monotonic()
            summary["exits"][name] = run(part, log)
            summary["seconds"][name] = round(time.monotonic() - begin, 1)
            counts = _counts(junit)
            # Tests that were all skipped have shown nothing.
            ran = counts["tests"] - counts["skipped"]
            passed = ran - counts["failures"] - counts["errors"]
            summary |= {"ok": ran > 0 and not any(summary["exits"].values()), "passed": passed, **counts}
            (out / "gpu-check.json").write_text(json.dumps(summary, indent=2) + "\n")
    junit.unlink(missing_ok=True)
    verdict = "ok" if summary["ok"] else f"FAILED: {summary['exits']}"
    total = time.monotonic() - start
    print(f"gpu-check: {verdict}: {passed} of {ran} tests passed on {header['gpu']}, {total:.0f} s; {out}")
    return 0 if summary["ok"] else 1


if __name__ == "__main__":
    sys.exit(main())
