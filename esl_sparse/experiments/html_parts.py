"""The pieces of an HTML page: charts as SVG inside it, tables, and its frame."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterable, Sequence
from html import escape
from string import Template
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .plots import STYLE

GREY = "#8a8a8a"  # readable on white and on black
_SVG: Any = {
    **STYLE,
    **dict.fromkeys(("axes.edgecolor", "xtick.color", "ytick.color", "grid.color"), GREY),
    "grid.alpha": 0.25,
    "font.family": ["DejaVu Sans"],
    "font.size": 9,
    "savefig.transparent": True,
    "svg.fonttype": "none",
    "svg.hashsalt": "esl_sparse",
}


def chart(name: str, caption: str, draw: Callable[[Axes], Any], below: str = "") -> str:
    """`name` is unique on the page; `below` is HTML."""
    with rc_context(_SVG):
        figure = Figure(figsize=(4.4, 2.7), layout="constrained")
        draw(figure.add_subplot())
        file = io.StringIO()
        figure.savefig(file, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    svg = file.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>|<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r">\s+<", "><", svg)
    # ids are to be unique on the page, and most are never referred to
    used = set(re.findall(r'(?:href="|url\()#([\w.]+)', svg))
    svg = re.sub(r' id="([\w.]+)"', lambda m: f' id="{name}-{m[1]}"' if m[1] in used else "", svg)
    svg = re.sub(r'(href="|url\()#', rf"\1#{name}-", svg)
    svg = re.sub(
        r'<svg .*?(viewBox="[^"]*").*?>', rf'<svg role="img" aria-label="{caption}" \1>', svg, count=1
    )
    return f"<figure>{svg}<figcaption>{caption}</figcaption>{below}</figure>"


def section(title: str, content: str) -> str:
    return f"<section><h2>{escape(title)}</h2>{content}</section>"


def legend(entries: Iterable[tuple[str, str]]) -> str:
    items = "".join(f"<li>{chip(colour)}{escape(name)}</li>" for name, colour in entries)
    return f'<ul class="key">{items}</ul>'


def chip(colour: str) -> str:
    return f'<span class="chip" style="background:{colour}"></span>'


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Of cells that are HTML; the first of each row is its heading."""
    heads = "".join(f'<th scope="col">{cell}</th>' for cell in head)
    body = "".join(
        f'<tr><th scope="row">{row[0]}</th>' + "".join(f"<td>{cell}</td>" for cell in row[1:]) + "</tr>"
        for row in rows
    )
    return f'<div class="wide"><table><thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table></div>'


PAGE = Template("""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>$title</title>
<style>
:root { color-scheme: light dark; --line: #8884; }
body { max-width: 78rem; margin: 1.5rem auto; padding: 0 1rem; font: 15px/1.45 system-ui, sans-serif; }
h1 { font-size: 1.4rem; }
h2 { font-size: 1.15rem; margin: 2.2rem 0 .6rem; overflow-wrap: anywhere; }
.wide { overflow-x: auto; margin-bottom: .8rem; }
table { border-collapse: collapse; font-size: .85rem; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .6rem; text-align: right; vertical-align: middle; white-space: nowrap; }
tr { border-bottom: 1px solid var(--line); }
thead th:not(:has(.chip)) { white-space: normal; }
th:first-child { text-align: left; padding-left: 0; }
tbody th { font-weight: 600; }
small { font-weight: 400; }
.charts { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(23rem, 100%), 1fr)); gap: 1rem; }
.charts.pairs { grid-template-columns: repeat(auto-fill, minmax(min(26rem, 100%), 1fr)); }
figure { margin: 0; max-width: 38rem; }
svg { width: 100%; height: auto; }
svg text { fill: currentColor !important; font-family: system-ui, sans-serif !important; }
figcaption, p { font-size: .9rem; }
.key { list-style: none; padding: 0; display: flex; flex-wrap: wrap; gap: .2rem 1.1rem; font-size: .85rem; }
.chip { display: inline-block; width: .8em; height: .8em; margin-right: .4em; border-radius: 2px; }
.bar { position: relative; display: flex; width: 22rem; height: 1rem; }
.bar b { position: absolute; top: -.15rem; bottom: -.15rem; border-left: 2px solid currentColor; margin-left: -2px; }
pre { font-size: .8rem; }
</style>
</head>
<body>
<h1>esl-sparse report</h1>
$body
</body>
</html>
""")
