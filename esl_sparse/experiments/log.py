"""The files of a run folder that people and plots read: log.jsonl, metrics.csv and plain JSON."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def read_log(folder: Path, event: str | None = None) -> list[dict[str, Any]]:
    """The run's events in order, of one kind if asked; a last line that a crash cut short is left out."""
    file = folder / "log.jsonl"
    if not file.exists():
        return []
    entries = []
    for line in file.read_text().splitlines():
        try:
            entries.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return [entry for entry in entries if event in (None, entry["event"])]


def epoch_rows(folder: Path) -> list[dict[str, Any]]:
    """One flat row an epoch: values by layer become columns `density/hidden.0` and so on."""
    rows = []
    for entry in read_log(folder, "epoch"):
        row: dict[str, Any] = {}
        for key, value in entry.items():
            if isinstance(value, dict):
                row.update({f"{key}/{layer}": number for layer, number in value.items()})
            elif key != "event":
                row[key] = value
        rows.append(row)
    return rows


def write_csv(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def write_json(path: Path, values: dict[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=2) + "\n")
