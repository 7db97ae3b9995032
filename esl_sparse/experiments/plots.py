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
from matplotlib.colors import to_hex
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
    loss.set_title("Loss")
    loss_axis(loss)
    accuracy.set_title("Top-1 accuracy")
    percent_axis(accuracy, "accuracy (%)")
    for axes in (loss, accuracy):
        count_axis(axes, "epoch")
        axes.legend()
    return figure


def _density(epochs: list[dict[str, Any]], rewires: list[dict[str, Any]]) -> Figure:
    figure, (axes,) = figure_of()
    constant = draw_density(axes, epochs, rewires)
    axes.set(title="Density of each layer" + (" (constant)" if rewires and constant else ""))
    _legend(figure, axes, "layer (at the end)")
    return figure


def draw_density(axes: Axes, epochs: list[dict[str, Any]], rewires: list[dict[str, Any]]) -> bool:
    """One line a layer; says whether all of them are constant."""
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
    axes.set_ylim(0, 1.05)
    percent_axis(axes, "active weights (% of all)")
    count_axis(axes, "iteration")
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
    axes.set(title="Explored weights, $R_s$", ylim=(0, 1.05))
    percent_axis(axes, "weights ever active (% of all)")
    count_axis(axes, "iteration")
    _legend(figure, axes, "layer (at the end)")
    return figure


def _firing_rate(epochs: list[dict[str, Any]]) -> Figure:
    figure, (axes,) = figure_of()
    draw_firing_rate(axes, epochs)
    axes.set(title="Firing rate in training")
    _legend(figure, axes, "layer")
    return figure


def draw_firing_rate(axes: Axes, epochs: list[dict[str, Any]]) -> None:
    """One line a layer of neurons."""
    x = [entry["epoch"] for entry in epochs]
    for layer, colour in _layers(epochs, "firing_rate"):
        axes.plot(x, [entry["firing_rate"][layer] for entry in epochs], "o-", label=layer, color=colour)
    axes.set(ylabel="spikes per neuron and step")
    axes.set_ylim(0, 1.15 * axes.get_ylim()[1])
    count_axis(axes, "epoch")


def _layers(epochs: list[dict[str, Any]], key: str) -> list[tuple[str, str]]:
    """With a colour each."""
    layers = list(epochs[0][key])
    return list(zip(layers, colours(len(layers)), strict=True))


def colours(number: int, ordered: bool = True) -> list[str]:
    """Of many, from dark to bright in their order or, where they have none, up to 20 that differ more."""
    if number <= len(COLOURS):
        return list(COLOURS[:number])
    if not ordered and number <= 20:
        return [to_hex(colormaps["tab20"](i)) for i in range(number)]
    return [to_hex(colour) for colour in colormaps["viridis"](np.linspace(0.15, 0.9, number))]


def _legend(figure: Figure, axes: Axes, title: str) -> None:
    """Beside the axes where it would cover lines."""
    if len(axes.lines) <= _INSIDE:
        axes.legend(title=title)
    else:
        figure.legend(loc="outside right upper", title=title, fontsize=7, title_fontsize=8)


def count_axis(axes: Axes, label: str) -> None:
    axes.set_xlabel(label)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def percent_axis(axes: Axes, label: str) -> None:
    axes.set_ylabel(label)
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, symbol=""))


def loss_axis(axes: Axes) -> None:
    axes.set(ylabel="cross-entropy (nats)", yscale="log")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_locator(LogLocator(subs=(2, 5)))
    axes.yaxis.set_minor_formatter("{x:g}")
