"""One static page that compares runs, from their folders alone: no scripts, nothing from elsewhere."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from html import escape
from itertools import accumulate
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes

from ..data.atomic import replacing
from .config import TrainConfig
from .display import size
from .html_parts import GREY, PAGE, chart, chip, legend, section, table
from .log import read_log
from .plots import colours, count_axis, draw_density, draw_firing_rate, loss_axis, percent_axis
from .records import TrainResult
from .run_folder import read_result
from .train import RunError

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
    """Under the names of their folders or, where those are the same, their paths from a common one."""
    paths = {folder.resolve(): folder for folder in folders}
    names = [path.name for path in paths]
    if len(set(names)) < len(names):
        common = os.path.commonpath(paths)
        names = [str(path.relative_to(common)) for path in paths]
    return [_read(folder, name) for folder, name in zip(paths.values(), names, strict=True)]


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


def write_report(path: Path, runs: Sequence[Run]) -> None:
    with replacing(path) as file:
        file.write(page(runs).encode("utf-8", "replace"))


def page(runs: Sequence[Run]) -> str:
    palette = colours(len(runs), ordered=False)
    sections = [
        section("Runs", _summary(runs, palette)),
        section("Validation", _validation(runs, palette)),
        section("Weight state in training", _memory(runs)),
        section("Settings that differ", _differences(runs)) if len(runs) > 1 else "",
        *(section(run.name, _details(run, i)) for i, run in enumerate(runs)),
    ]
    title = ", ".join(run.name for run in runs[:3]) + (" ..." if len(runs) > 3 else "")
    return PAGE.substitute(title=escape(title), body="\n".join(sections))


def _summary(runs: Sequence[Run], palette: Sequence[str]) -> str:
    head = (
        "run", "structure", "density", "blocks", "best validation", "test", "epochs", "training",
        "updates", "weights", "weight state", "of dense",
    )  # fmt: skip
    rows = []
    for run, colour in zip(runs, palette, strict=True):
        config, result = run.config, run.result
        best = max((entry["val_accuracy"] for entry in run.epochs), default=None)
        seconds = sum(entry["seconds"] for entry in run.epochs)
        row = [
            f"{chip(colour)}{escape(run.name)}<br><small>{escape(f'{config.data}, {config.network}')}</small>",
            config.structure,
            _NONE if config.structure == "dense" else f"{config.density:g}",
            escape(config.block) if config.has_blocks else _NONE,
            _NONE if best is None else f"{best:.2%}",
            f"{result.test_accuracy:.2%}" if result else "unfinished",
            f"{len(run.epochs)} of {config.epochs}",
            f"{result.seconds if result else seconds:,.1f} s",
            f"{len({entry['iteration'] for entry in run.rewires}):,}",
        ]
        if result:
            state = result.weight_state
            share = result.active_weights / result.total_weights
            row.append(f"{result.active_weights:,} ({share:.1%})")
            row += [size(state.total), f"{state.total / state.dense:.1%}"]
        else:
            row += [_NONE] * 3
        rows.append(row)
    return table(head, rows)


def _validation(runs: Sequence[Run], palette: Sequence[str]) -> str:
    charts = [
        chart(
            f"{field}-{by}",
            f"Validation {field[4:]} over {by}",
            partial(_draw_validation, runs=runs, palette=palette, field=field, by=by),
        )
        for field in ("val_accuracy", "val_loss")
        for by in ("epochs", "seconds")
    ]
    names = [run.name for run in runs]
    return legend(zip(names, palette, strict=True)) + f'<div class="charts pairs">{"".join(charts)}</div>'


def _draw_validation(axes: Axes, runs: Sequence[Run], palette: Sequence[str], field: str, by: str) -> None:
    for run, colour in zip(runs, palette, strict=True):
        x = [entry["epoch"] for entry in run.epochs]
        if by == "seconds":
            x = list(accumulate(entry["seconds"] for entry in run.epochs))
        axes.plot(x, [entry[field] for entry in run.epochs], "o-", color=colour)
    if field == "val_loss":
        loss_axis(axes)
    else:
        percent_axis(axes, "top-1 accuracy (%)")
    count_axis(axes, "epoch" if by == "epochs" else "seconds of training, without validation")


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
    heads = [chip(colour) + part.replace("iz", "is") for part, colour in palette.items()]
    note = "<p>The upright line is what the same layers keep when dense.</p>"
    return table(("run", "", *heads, "total", "dense"), rows) + note


def _differences(runs: Sequence[Run]) -> str:
    configs = [{name: _plain(value) for name, value in run.config.to_dict().items()} for run in runs]
    counts = {name: Counter(config[name] for config in configs) for name in configs[0]}
    usual = {name: count.most_common(1)[0][0] for name, count in counts.items() if len(count) > 1}
    if not usual:
        return "<p>None.</p>"
    rows = []
    for run, config in zip(runs, configs, strict=True):
        cells = ((escape(config[name]), config[name] == value) for name, value in usual.items())
        rows.append([escape(run.name), *(cell if same else f"<mark>{cell}</mark>" for cell, same in cells)])
    return table(("run", *usual), rows) + "<p>Marked: what most runs, or the first, have otherwise.</p>"


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
            chart(f"density-{number}", caption, partial(draw_density, epochs=run.epochs, rewires=run.rewires))
        )
    if run.rewires:
        caption = "Blocks (of a mask: weights) grown, above, and pruned, below, in each update"
        charts.append(chart(f"updates-{number}", caption, partial(_draw_updates, run=run, layers=layers)))
    if run.epochs:
        names = list(run.epochs[0]["firing_rate"])
        below = legend(zip(names, colours(len(names)), strict=True))
        caption = "Firing rate in training of each layer of neurons"
        charts.append(chart(f"rate-{number}", caption, partial(draw_firing_rate, epochs=run.epochs), below))
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
        rows.append([chip(colour) + escape(layer), f"{density:.2%}", f"{explored:.2%}", *counts])
    return table(("layer", "density at the end", "ever active", "pruned", "grown"), rows)


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
    axes.axhline(0, color=GREY, linewidth=0.8)
    axes.yaxis.set_major_formatter(lambda count, _: f"{abs(count):,.0f}")
    axes.set_ylabel("pruned | grown")
    count_axis(axes, "iteration")


def _plain(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
