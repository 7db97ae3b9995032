"""The plots of a run folder, drawn from its log alone."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps, rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import LogLocator, MaxNLocator, PercentFormatter

from .config import TrainConfig
from .log import read_log

STYLE: Any = {
    "axes.grid": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "axes.titlesize": 11,
    "axes.labelcolor": "#444444",
    "grid.color": "#e6e6e6",
    "legend.frameon": False,
    "lines.linewidth": 1.8,
    "lines.markersize": 3.5,
}
_WIDTH = {1: 6.4, 2: 10.5, 3: 13.0, 4: 16.0}  # inches of so many panels
_INSIDE = 3  # lines that leave room for a legend
COLOURS = ("#2a6fbb", "#e07b39", "#3a9a5b", "#8b5fbf", "#555555")


def plot_run(folder: Path) -> list[Path]:
    """Draw `plots/*.png` anew and return their paths."""
    config = TrainConfig.from_dict(json.loads((folder / "config.json").read_text()))
    epochs = read_log(folder, "epoch")
    if not epochs:
        return []
    rewires = read_log(folder, "rewire")
    target = folder / "plots"
    target.mkdir(exist_ok=True)
    with rc_context(STYLE):
        figures = {
            "accuracy.png": _accuracy(epochs),
            "density.png": _density(epochs, rewires),
            "r_s.png": _r_s(epochs, rewires),
            "firing_rate.png": _firing_rate(epochs),
        }
        for name, figure in figures.items():
            write_png(figure, target / name, config.title)
    return [target / name for name in figures]


def write_png(figure: Figure, path: Path, conditions: str) -> None:
    """With the conditions in its last line."""
    figure.text(0.01, 0.005, conditions, fontsize=8, color="#777777")
    FigureCanvasAgg(figure).print_png(str(path))


def figure_of(panels: int = 1) -> tuple[Figure, Sequence[Axes]]:
    layout: Any = ConstrainedLayoutEngine(rect=(0, 0.04, 1, 0.96))  # leaves a line for the conditions
    figure = Figure(figsize=(_WIDTH[panels], 4.0), dpi=120, layout=layout)
    return figure, [figure.add_subplot(1, panels, panel + 1) for panel in range(panels)]


def _accuracy(epochs: list[dict[str, Any]]) -> Figure:
    figure, (loss, accuracy) = figure_of(2)
    x = [entry["epoch"] for entry in epochs]
    best = max(epochs, key=lambda entry: entry["val_accuracy"])
    labels = {
        "train": "training",
        "val": f"validation (best {best['val_accuracy']:.2%}, epoch {best['epoch']})",
    }
    for (part, label), colour in zip(labels.items(), COLOURS, strict=False):
        loss.plot(x, [entry[f"{part}_loss"] for entry in epochs], "o-", label=label.split()[0], color=colour)
        accuracy.plot(x, [entry[f"{part}_accuracy"] for entry in epochs], "o-", label=label, color=colour)
    accuracy.plot(best["epoch"], best["val_accuracy"], "o", markersize=9, fillstyle="none", color=COLOURS[1])
    loss.set(title="Loss", ylabel="cross-entropy (nats)", yscale="log")
    loss.yaxis.set_major_formatter("{x:g}")
    loss.yaxis.set_minor_locator(LogLocator(subs=(2, 5)))
    loss.yaxis.set_minor_formatter("{x:g}")
    accuracy.set(title="Top-1 accuracy", ylabel="accuracy (%)")
    accuracy.yaxis.set_major_formatter(PercentFormatter(1.0, symbol=""))
    for axes in (loss, accuracy):
        _count(axes, "epoch")
        axes.legend()
    return figure


def _density(epochs: list[dict[str, Any]], rewires: list[dict[str, Any]]) -> Figure:
    figure, (axes,) = figure_of()
    constant = layer_densities(axes, epochs, rewires)
    axes.set_title("Density of each layer" + (" (constant)" if rewires and constant else ""))
    _legend(figure, axes, "layer (at the end)")
    return figure


def layer_densities(axes: Axes, epochs: list[dict[str, Any]], rewires: list[dict[str, Any]]) -> bool:
    """Draw them over iterations, from a run's log; says whether they never change."""
    constant = True
    for layer, colour in _layers(epochs, "density"):
        # only updates change it, so it is a staircase; the log begins with what the first update left
        events = [entry for entry in rewires if entry["layer"] == layer]
        last = epochs[-1]["density"][layer]
        steps = [(entry["iteration"], entry["density"]) for entry in events]
        if all(density == last for _, density in steps):
            steps = [(0, last)]
        else:
            constant = False
        x, y = zip(*steps, (epochs[-1]["iteration"], last), strict=True)
        axes.plot(x, y, drawstyle="steps-post", label=f"{layer} ({last:.1%})", color=colour)
    axes.set(ylabel="active weights (% of all)", ylim=(0, 1.05))
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, symbol=""))
    _count(axes, "iteration")
    return constant


def _r_s(epochs: list[dict[str, Any]], rewires: list[dict[str, Any]]) -> Figure:
    figure, (axes,) = figure_of()
    end = epochs[-1]["iteration"]
    for layer, colour in _layers(epochs, "r_s"):
        # between updates nothing is explored, so the record is a staircase
        events = [entry for entry in rewires if entry["layer"] == layer]
        last = epochs[-1]["r_s"][layer]
        start = events[0]["density"] if events else last
        x = [0, *(entry["iteration"] for entry in events), end]
        y = [start, *(entry["r_s"] for entry in events), last]
        axes.plot(x, y, drawstyle="steps-post", label=f"{layer} ({last:.1%})", color=colour)
    axes.set(title="Explored weights, $R_s$", ylabel="weights ever active (% of all)", ylim=(0, 1.05))
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, symbol=""))
    _count(axes, "iteration")
    _legend(figure, axes, "layer (at the end)")
    return figure


def _firing_rate(epochs: list[dict[str, Any]]) -> Figure:
    figure, (axes,) = figure_of()
    x = [entry["epoch"] for entry in epochs]
    for layer, colour in _layers(epochs, "firing_rate"):
        axes.plot(x, [entry["firing_rate"][layer] for entry in epochs], "o-", label=layer, color=colour)
    axes.set(title="Firing rate in training", ylabel="spikes per neuron and step")
    axes.set_ylim(0, 1.15 * axes.get_ylim()[1])
    _count(axes, "epoch")
    _legend(figure, axes, "layer")
    return figure


def _layers(epochs: list[dict[str, Any]], key: str) -> list[tuple[str, Any]]:
    """With a colour each: of many layers, from dark to bright by depth."""
    layers = list(epochs[0][key])
    if len(layers) <= len(COLOURS):
        return list(zip(layers, COLOURS, strict=False))
    return list(zip(layers, colormaps["viridis"](np.linspace(0, 0.9, len(layers))), strict=True))


def _legend(figure: Figure, axes: Axes, title: str) -> None:
    """Beside the axes where it would cover lines."""
    if len(axes.lines) <= _INSIDE:
        axes.legend(title=title)
    else:
        figure.legend(loc="outside right upper", title=title, fontsize=7, title_fontsize=8)


def _count(axes: Axes, label: str) -> None:
    axes.set_xlabel(label)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
