"""``python -m benchmarks.tables``: writes the tables of docs/performance.md from the stored results."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from .report import RESULTS

PAGE = Path(__file__).parent.parent / "docs" / "performance.md"
BLOCKS = ("1x1", "4x4", "16x16")


def _stored(name: str) -> Any:
    return json.loads((RESULTS / f"{name}.json").read_text())


def _table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    head = list(head)
    lines = [head, ["---"] * len(head), *map(list, rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _times(ratio: float) -> str:
    return f"{ratio:.1f}" if ratio >= 1 else f"*{ratio:.2f}, loses*"


def _linear(by: str, **fixed: float) -> str:
    """Speedup of forward + backward over nn.Linear."""
    found: dict[float, dict[str, float]] = {}
    for row in _stored("linear")["rows"]:
        wanted = {"inputs": 1024, "outputs": 1024, "lanes": 2048, "mode": "forward+backward", **fixed}
        if all(row[key] == value for key, value in wanted.items()):
            found.setdefault(row[by], {})[row["provider"]] = row["speedup"][1]
    providers = [
        name for name in (*BLOCKS, "dense+mask", "torch CSR") if any(name in x for x in found.values())
    ]
    rows = (
        [f"{key:g}", *(_times(found[key][name]) if name in found[key] else "" for name in providers)]
        for key in sorted(found, reverse=by == "density")
    )
    return _table([by, *providers], rows)


def _conv() -> str:
    """Medians over layers, lanes and rates; beside nn.Conv2d's own memory format and beside the faster one."""
    medians = [row for row in _stored("conv")["medians"] if row["block"] == 4]
    modes = list(dict.fromkeys(row["mode"] for row in medians))
    found = {(row["mode"], row["density"]): row for row in medians}
    densities = sorted({row["density"] for row in medians}, reverse=True)

    def cell(row: dict[str, Any]) -> str:
        lost = f", {row['lost']} lose" if row["lost"] else ""
        return f"{row['default']:.1f} ({row['speedup']:.1f}{lost})"

    return _table(
        ["density", *modes], ([f"{d:g}", *(cell(found[mode, d]) for mode in modes)] for d in densities)
    )


def _memory(name: str) -> str:
    rows = _stored(name)["rows"]
    dense = next(row["peak"] for row in rows if row["provider"] == "dense")
    return _table(
        ["weights", "density", "peak, MB", "of dense"],
        (
            [
                row["provider"],
                f"{row['density']:g}",
                f"{row['peak'] / 1e6:,.0f}",
                f"{row['peak'] / dense:.3f}",
            ]
            for row in rows
        ),
    )


TABLES = {
    "linear by density": lambda: _linear("density", rate=0.1),
    "linear by rate": lambda: _linear("rate", density=0.1),
    "conv": _conv,
    "memory": lambda: _memory("memory"),
    "memory-vggsnn": lambda: _memory("memory-vggsnn"),
}


def filled(page: str) -> str:
    """The page with every table between its marks made anew.

    Raises:
        KeyError: a mark names no table.
    """
    marked = r"(<!-- table: (.+?) -->\n)(.*?)(\n<!-- end -->)"
    return re.sub(marked, lambda m: f"{m[1]}\n{TABLES[m[2]]()}\n{m[4]}", page, flags=re.DOTALL)


if __name__ == "__main__":
    PAGE.write_text(filled(PAGE.read_text()))
    print(PAGE)
