"""Builds in place and runs the GPU tests with this Python and no network: ``make gpu-check``.

Leaves ``gpu-check.log`` and ``gpu-check.json`` in the folder named by ``OUT``; fails where there is no GPU.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import time
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
OUTCOMES = ("tests", "failures", "errors", "skipped")


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
        "python": sys.version.split()[0],
    }


def main() -> int:
    header = machine()
    if header["gpu"] is None:
        print("gpu-check: torch sees no GPU on this machine, so nothing was checked", file=sys.stderr)
        return 1
    out = Path(os.environ.get("OUT") or ROOT / "build" / "gpu-check").resolve()
    out.mkdir(parents=True, exist_ok=True)
    junit, start = out / "junit.xml", time.monotonic()
    junit.unlink(missing_ok=True)
    steps = {
        "build": [sys.executable, "setup.py", "build_ext", "--inplace"],
        "pytest": [sys.executable, "-m", "pytest", "-m", "gpu", f"--junitxml={junit}"],
    }
    exits: dict[str, int] = {}
    with open(out / "gpu-check.log", "w") as log:
        for name, command in steps.items():
            with subprocess.Popen(
                command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
            ) as process:
                assert process.stdout is not None
                for line in process.stdout:
                    print(line, end="", flush=True)
                    log.write(line)
            exits[name] = process.returncode
            if exits[name]:
                break
    counts = dict.fromkeys(OUTCOMES, 0)
    if junit.exists():
        suite = ET.parse(junit).getroot().find("testsuite")
        assert suite is not None
        counts = {name: int(suite.get(name, 0)) for name in OUTCOMES}
        junit.unlink()
    # Tests that were all skipped have shown nothing.
    ran = counts["tests"] - counts["skipped"]
    ok = ran > 0 and not any(exits.values())
    passed = ran - counts["failures"] - counts["errors"]
    summary = {"ok": ok, "machine": header, "exits": exits, "passed": passed, **counts}
    summary["seconds"] = round(time.monotonic() - start, 1)
    (out / "gpu-check.json").write_text(json.dumps(summary, indent=2) + "\n")
    print(f"gpu-check: {'ok' if ok else 'FAILED'}: {passed} of {ran} tests passed on {header['gpu']}; {out}")
    return 0 if ok else 1


if __name__ == "__main__":
    sys.exit(main())
