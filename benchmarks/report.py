"""A benchmark's result: header, rows and targets, stored as small JSON while it grows."""

from __future__ import annotations

import json
from pathlib import Path

from . import machine

RESULTS = Path(__file__).parent / "results"


class Report:
    """Rows as they come; with a ``path`` stored at once, so that an interrupted run leaves what it has.

    Args:
        benchmark: name of the benchmark.
        command: the command line that repeats it.
        path: JSON file, or None to keep nothing.
    """

    def __init__(self, benchmark: str, command: str, path: Path | None = None) -> None:
        self.path = path
        self.content: dict = {
            "benchmark": benchmark,
            "command": command,
            "machine": machine.header(),
            "method": "",
            "conditions": {},
            "rows": [],
            "targets": [],
        }

    @property
    def rows(self) -> list[dict]:
        return self.content["rows"]

    def set(self, key: str, value: object) -> None:
        self.content[key] = value
        self._store()

    def add(self, rows: list[dict]) -> None:
        self.rows.extend(rows)
        self._store()

    def target(self, what: str, bound: str, measured: float | None, met: bool | None) -> None:
        """Print and keep one target beside what was measured; None: not measured in this run."""
        shown = "not measured in this run" if measured is None else f"measured {measured:.3g}"
        verdict = {True: "met", False: "MISSED", None: ""}[met]
        print(f"  target: {what} {bound}: {shown}  {verdict}".rstrip())
        self.content["targets"].append({"what": what, "bound": bound, "measured": measured, "met": met})
        self._store()

    def _store(self) -> None:
        if self.path is not None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            partial = self.path.with_suffix(".part")
            partial.write_text(_dump(self.content))
            partial.replace(self.path)


def _dump(content: dict) -> str:
    """JSON with one row a line: small, and a change shows as the lines that changed."""
    parts = []
    for key, value in content.items():
        if isinstance(value, list) and value:
            lines = ",\n".join(f"    {json.dumps(row)}" for row in value)
            parts.append(f"  {json.dumps(key)}: [\n{lines}\n  ]")
        else:
            parts.append(f"  {json.dumps(key)}: {json.dumps(value)}")
    return "{\n" + ",\n".join(parts) + "\n}\n"


def load(name: str, folder: Path = RESULTS) -> dict | None:
    """A stored result, or None."""
    path = folder / f"{name}.json"
    return json.loads(path.read_text()) if path.exists() else None
