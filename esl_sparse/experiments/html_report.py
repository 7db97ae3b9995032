"""One static page that compares runs, from their folders alone: no scripts, nothing from elsewhere."""

from __future__ import annotations

import io
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from html import escape
from itertools import accumulate
from pathlib import Path
from string import Template
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..data.atomic import replacing
from .config import TrainConfig
from .display import size
from .log import read_log
from .plots import STYLE, colours, count_axis, draw_density, draw_firing_rate, loss_axis, percent_axis
from .records import TrainResult
from .run_folder import read_result
from .train import RunError

_GREY = "#8a8a8a"  # readable on white and on black
_SVG: Any = {
    **STYLE,
    **dict.fromkeys(("axes.edgecolor", "xtick.color", "ytick.color", "grid.color"), _GREY),
    "grid.alpha": 0.25,
    "font.family": ["DejaVu Sans"],
    "font.size": 9,
    "savefig.transparent": True,
    "svg.fonttype": "none",
    "svg.hashsalt": "esl_sparse",
}
_PARTS = ("values", "index", "gradient", "optimizer")
_NONE = "–"  # noqa: RUF001


@dataclass(frozen=True)
class Run:
    """What a run folder holds; an unfinished one has no result."""

    name: str
    config: TrainConfig
    result: TrainResult | None
    epochs: list[dict[str, Any]]
    rewires: list[dict[str, Any]]
    steps: list[dict[str, Any]]

    @property
    def layers(self) -> list[str]:
        if self.epochs:
            return list(self.epochs[0]["density"])
        return list(dict.fromkeys(entry["layer"] for entry in self.rewires))


def read_runs(folders: Sequence[Path]) -> list[Run]:
    """Under the names of their folders or, where those are the same, their paths."""
    names = [folder.resolve().name for folder in folders]
    unique = len(set(names)) == len(names)
    return [
        _read(folder, name if unique else str(folder)) for folder, name in zip(folders, names, strict=True)
    ]


def _read(folder: Path, name: str) -> Run:
    if not (folder / "config.json").is_file():
        raise RunError(f"{folder} holds no run: it has no config.json.")
    try:
        config = TrainConfig.from_dict(json.loads((folder / "config.json").read_text()))
        result = read_result(folder)[1] if (folder / "result.json").exists() else None
        logs = [read_log(folder, event) for event in ("epoch", "rewire", "step")]
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise RunError(f"{folder} holds a run that cannot be read: {error}.") from None
    return Run(name, config, result, *logs)


def write_page(path: Path, runs: Sequence[Run]) -> None:
    with replacing(path) as file:
        file.write(page(runs).encode("utf-8", "replace"))


def page(runs: Sequence[Run]) -> str:
    palette = colours(len(runs))
    sections = [
        _section("Runs", _summary(runs, palette)),
        _section("Validation", _validation(runs, palette)),
        _section("Weight state in training", _memory(runs)),
        _section("Settings that differ", _differences(runs)),
        *(_section(run.name, _details(run, i)) for i, run in enumerate(runs)),
    ]
    title = ", ".join(run.name for run in runs[:3]) + (" ..." if len(runs) > 3 else "")
    return _PAGE.substitute(title=escape(title), body="\n".join(sections))


def _summary(runs: Sequence[Run], palette: Sequence[str]) -> str:
    head = (
        "run", "data, network", "structure", "density", "blocks", "best validation", "test", "epochs", "training",
        "updates", "weights", "weight state", "of dense",
    )  # fmt: skip
    rows = []
    for run, colour in zip(runs, palette, strict=True):
        config, result = run.config, run.result
        best = max((entry["val_accuracy"] for entry in run.epochs), default=None)
        seconds = sum(entry["seconds"] for entry in run.epochs)
        row = [
            _chip(colour) + escape(run.name),
            escape(f"{config.data}, {config.network}"),
            config.structure,
            _NONE if config.structure == "dense" else f"{config.density:g}",
            config.block if config.has_blocks else _NONE,
            _NONE if best is None else f"{best:.2%}",
            f"{result.test_accuracy:.2%}" if result else "unfinished",
            f"{len(run.epochs)} of {config.epochs}",
            f"{result.seconds if result else seconds:,.1f} s",
            f"{len({entry['iteration'] for entry in run.rewires}):,}",
        ]
        if result:
            state = result.weight_state
            share = result.active_weights / result.total_weights
            row.append(f"{result.active_weights:,} of {result.total_weights:,} ({share:.1%})")
            row += [size(state.total), f"{state.total / state.dense:.1%}"]
        else:
            row += [_NONE] * 3
        rows.append(row)
    return _table(head, rows)


def _validation(runs: Sequence[Run], palette: Sequence[str]) -> str:
    def draw(axes: Axes, field: str, by: str) -> None:
        for run, colour in zip(runs, palette, strict=True):
            x = [entry["epoch"] for entry in run.epochs]
            if by == "seconds":
                x = list(accumulate(entry["seconds"] for entry in run.epochs))
            axes.plot(x, [entry[field] for entry in run.epochs], "o-", color=colour)
        if field == "val_loss":
            loss_axis(axes)
        else:
            percent_axis(axes, "top-1 accuracy (%)")
        count_axis(axes, "epoch" if by == "epochs" else "seconds of training, validation left out")

    charts = "".join(
        _chart(f"{field}-{by}", f"Validation {field[4:]} over {by}", lambda axes, f=field, b=by: draw(axes, f, b))
        for field in ("val_accuracy", "val_loss")
        for by in ("epochs", "seconds")
    )  # fmt: skip
    return _key(zip((run.name for run in runs), palette, strict=True)) + f'<div class="charts">{charts}</div>'


def _memory(runs: Sequence[Run]) -> str:
    """Bars of HTML, so that names of any length and script fit beside them."""
    states = {run.name: run.result.weight_state for run in runs if run.result}
    if not states:
        return "<p>Known when a run is finished.</p>"
    scale = max(max(state.total, state.dense) for state in states.values()) / 100
    palette = dict(zip(_PARTS, colours(len(_PARTS)), strict=True))
    rows = []
    for name, state in states.items():
        counts = [getattr(state, part) for part in _PARTS]
        parts = "".join(
            f'<i style="width:{count / scale:.2f}%;background:{colour}"></i>'
            for count, colour in zip(counts, palette.values(), strict=True)
        )
        bar = f'<div class="bar">{parts}<b style="left:{state.dense / scale:.2f}%"></b></div>'
        rows.append([escape(name), bar, *map(size, (*counts, state.total, state.dense))])
    heads = [_chip(colour) + part.replace("iz", "is") for part, colour in palette.items()]
    note = "<p>The upright line is what the same layers keep when dense.</p>"
    return _table(("run", "", *heads, "total", "dense"), rows) + note


def _differences(runs: Sequence[Run]) -> str:
    configs = [{key: _plain(value) for key, value in run.config.to_dict().items()} for run in runs]
    usual = {key: Counter(config[key] for config in configs).most_common(1)[0] for key in configs[0]}
    keys = [key for key, (_, count) in usual.items() if count < len(runs)]
    if not keys:
        return "<p>None.</p>"
    rows = []
    for run, config in zip(runs, configs, strict=True):
        cells = [escape(config[key]) for key in keys]
        marked = [
            cell if config[key] == usual[key][0] else f"<mark>{cell}</mark>"
            for key, cell in zip(keys, cells, strict=True)
        ]
        rows.append([escape(run.name), *marked])
    return _table(("run", *keys), rows) + "<p>Marked: what most runs, or the first, have otherwise.</p>"


def _details(run: Run, number: int) -> str:
    layers = dict(zip(run.layers, colours(len(run.layers)), strict=True))
    parts = [f"<p>{escape(run.config.title)}</p>"]
    if not run.result:
        parts.append(f"<p><strong>Unfinished</strong>{_last_step(run)}.</p>")
    if layers:
        parts.append(_layer_table(run, layers))
    charts = []
    if run.epochs:
        caption = "Density of each layer over iterations"
        charts.append(
            _chart(f"density-{number}", caption, lambda axes: draw_density(axes, run.epochs, run.rewires))
        )
    if run.rewires:
        caption = "Blocks (of a mask: weights) grown, above, and pruned, below, in each update"
        charts.append(_chart(f"updates-{number}", caption, lambda axes: _draw_updates(axes, run, layers)))
    if run.epochs:
        names = list(run.epochs[0]["firing_rate"])
        key = _key(zip(names, colours(len(names)), strict=True))
        caption = "Firing rate in training of each layer of neurons"
        charts.append(_chart(f"rate-{number}", caption, lambda axes: draw_firing_rate(axes, run.epochs), key))
    parts.append(f'<div class="charts">{"".join(charts)}</div>')
    settings = json.dumps(run.config.to_dict(), indent=2)
    parts.append(f"<details><summary>All settings</summary><pre>{escape(settings)}</pre></details>")
    return "".join(parts)


def _last_step(run: Run) -> str:
    if not run.steps:
        return ""
    step = run.steps[-1]
    return f", at iteration {step['iteration']:,} with a loss of {step['loss']:.4g}"


def _layer_table(run: Run, layers: dict[str, str]) -> str:
    """Also the key to the colours of the charts."""
    rows = []
    for layer, colour in layers.items():
        events = [entry for entry in run.rewires if entry["layer"] == layer]
        last = run.epochs[-1] if run.epochs else None
        density = last["density"][layer] if last else events[-1]["density"]
        explored = last["r_s"][layer] if last else events[-1]["r_s"]
        counts = [f"{sum(entry[kind] for entry in events):,}" for kind in ("pruned", "grown")]
        rows.append([_chip(colour) + escape(layer), f"{density:.2%}", f"{explored:.2%}", *counts])
    return _table(("layer", "density at the end", "ever active", "pruned", "grown"), rows)


def _draw_updates(axes: Axes, run: Run, layers: dict[str, str]) -> None:
    iterations = sorted({entry["iteration"] for entry in run.rewires})
    edges = [*iterations, iterations[-1] + run.config.interval]
    counts = {(entry["layer"], entry["iteration"]): entry for entry in run.rewires}
    for kind, sign in (("grown", 1), ("pruned", -1)):
        base = [0] * len(iterations)
        for layer, colour in layers.items():
            top = [
                low + sign * counts.get((layer, iteration), {kind: 0})[kind]
                for low, iteration in zip(base, iterations, strict=True)
            ]
            axes.stairs(top, edges, baseline=base, fill=True, color=colour, linewidth=0)
            base = top
    axes.axhline(0, color=_GREY, linewidth=0.8)
    axes.yaxis.set_major_formatter(lambda count, _: f"{abs(count):,.0f}")
    axes.set_ylabel("pruned | grown")
    count_axis(axes, "iteration")


def _chart(name: str, caption: str, draw: Callable[[Axes], Any], key: str = "") -> str:
    with rc_context(_SVG):
        figure = Figure(figsize=(5.4, 3.1), layout="constrained")
        draw(figure.add_subplot())
        file = io.StringIO()
        figure.savefig(file, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    svg = file.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>|<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r"(?<=[\">]) *\n *(?=[<\"])|(?<=>)\s+(?=<)", "", svg)
    # ids are to be unique on the page, and most are never referred to
    used = set(re.findall(r"#([\w.]+)(?=[\")])", svg))
    svg = re.sub(r' id="([\w.]+)"', lambda m: f' id="{name}-{m[1]}"' if m[1] in used else "", svg)
    svg = re.sub(r"#([\w.]+)(?=[\")])", lambda m: f"#{name}-{m[1]}" if m[1] in used else m[0], svg)
    svg = re.sub(
        r'<svg .*?(viewBox="[^"]*").*?>', rf'<svg role="img" aria-label="{caption}" \1>', svg, count=1
    )
    return f"<figure>{svg}<figcaption>{caption}</figcaption>{key}</figure>"


def _section(title: str, content: str) -> str:
    return f"<section><h2>{escape(title)}</h2>{content}</section>"


def _key(entries: Iterable[tuple[str, str]]) -> str:
    items = "".join(f"<li>{_chip(colour)}{escape(name)}</li>" for name, colour in entries)
    return f'<ul class="key">{items}</ul>'


def _chip(colour: str) -> str:
    return f'<span class="chip" style="background:{colour}"></span>'


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Of cells that are HTML; the first of each row is its heading."""
    heads = "".join(f'<th scope="col">{cell}</th>' for cell in head)
    body = "".join(
        f'<tr><th scope="row">{row[0]}</th>' + "".join(f"<td>{cell}</td>" for cell in row[1:]) + "</tr>"
        for row in rows
    )
    return f'<div class="wide"><table><thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table></div>'


def _plain(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)


_PAGE = Template("""<!DOCTYPE html>
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
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .85rem; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .7rem; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap; }
th:first-child { text-align: left; padding-left: 0; }
tbody th { font-weight: 600; }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(24rem, 100%), 1fr)); gap: 1rem; }
figure { margin: 0; max-width: 36rem; }
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
<h1>Runs compared</h1>
$body
</body>
</html>
""")
