"""``python -m benchmarks.plot``: draws ``benchmarks/results/*.png`` from the stored results alone."""

from __future__ import annotations

import argparse
import textwrap
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter

from . import cases, linear, machine, memory
from .cases import LinearCase, MemoryCase, NetworkCase
from .report import RESULTS, load

COLOURS = {
    "dense": "#555555",
    "dense+mask": "#a0a0a0",
    "torch CSR": "#d08c28",
    "1x1": "#7fb3d5",
    "4x4": "#1f77b4",
    "16x16": "#123f6d",
}
NAMES = {"dense": "dense (nn.Linear)"} | {
    name: f"esl_sparse {name} blocks" for name in ("1x1", "4x4", "16x16")
}


def _density_axis(axes: Axes) -> None:
    axes.set_xscale("log")
    axes.set_xlabel("density")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.grid(alpha=0.3)


def _finish(figure: Figure, results: list[dict], path: Path) -> None:
    """Save with the conditions under the plot: each result's method, each different machine header."""
    lines = [f"{result['benchmark']}: {result['method']}" for result in results]
    lines += dict.fromkeys(machine.conditions(result["machine"]) for result in results)
    width = int(figure.get_figwidth() * 17)
    text = "\n".join("\n".join(textwrap.wrap(line, width)) for line in lines)
    figure.tight_layout(rect=(0, 0.035 * (text.count("\n") + 2) * 4.5 / figure.get_figheight(), 1, 1))
    figure.text(0.01, 0.01, text, fontsize=7, color="#444444", va="bottom")
    figure.savefig(path, dpi=130)
    plt.close(figure)
    print(path)


def speedup_axes(axes: Axes, rows: list[dict], case: LinearCase, mode: str = linear.BOTH) -> None:
    axes.axhline(1, color=COLOURS["dense"], linewidth=1, label=NAMES["dense"])
    for name, colour in COLOURS.items():
        curve = linear.speedups(rows, case, name, mode)
        if name != linear.BASELINE and curve:
            densities = sorted(curve)
            label = NAMES.get(name, name)
            axes.plot(densities, [curve[d] for d in densities], "o-", color=colour, markersize=4, label=label)
    _density_axis(axes)
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}x"))
    axes.set_ylabel("times faster than dense")
    axes.set_title(f"{mode}\n{case}", fontsize=9)


def memory_axes(axes: Axes, rows: list[dict], case: dict) -> None:
    """Peak over density, with the fitted lines."""
    network = "network" in case
    names = NAMES | ({"dense": "dense (plain torch)"} if network else {})
    top = max(row["peak"] for row in rows) / 1e9
    for name in ("dense", "dense+mask"):
        for row in (row for row in rows if row["provider"] == name):
            axes.axhline(row["peak"] / 1e9, color=COLOURS[name], label=names.get(name, name))
    for name in linear.OURS:
        points = sorted((row["density"], row["peak"]) for row in rows if row["provider"] == name)
        if len(points) > 1:
            slope, intercept = memory.fit(points)
            label = f"{NAMES[name]}: {slope / 1e9:.2f} GB x density + {intercept / 1e9:.2f} GB"
            axes.plot(
                [d for d, _ in points], [p / 1e9 for _, p in points], "o", color=COLOURS[name], markersize=4
            )
            ends = [0.0, max(d for d, _ in points)]
            axes.plot(ends, [(intercept + slope * d) / 1e9 for d in ends], color=COLOURS[name], label=label)
    axes.set(xlim=(0, 1.02), ylim=(0, 1.05 * top), xlabel="density", ylabel="peak training memory, GB")
    axes.grid(alpha=0.3)
    trained = NetworkCase(**case) if network else MemoryCase(**case)
    axes.set_title(f"training memory, Adam\n{trained}", fontsize=9)


def parts_axes(axes: Axes, rows: list[dict]) -> None:
    """What each peak is made of; samples/s above the bars."""
    labels = [row["provider"] + (f"\n{row['density']:g}" if "x" in row["provider"] else "") for row in rows]
    bottom = [0.0] * len(rows)
    for part, colour in zip(memory.PARTS, matplotlib.color_sequences["tab10"], strict=False):
        heights = [max(row[part], 0) / 1e9 for row in rows]
        axes.bar(labels, heights, bottom=bottom, color=colour, label=part)
        bottom = [b + h for b, h in zip(bottom, heights, strict=True)]
    for i, row in enumerate(rows):
        axes.text(i, bottom[i], f"{row['samples_per_second']:.3g}/s", ha="center", va="bottom", fontsize=7)
    axes.tick_params(axis="x", labelsize=7)
    axes.set_ylabel("GB")
    axes.set_title("parts of the peak; samples/s above", fontsize=9)
    axes.legend(fontsize=7)


def _measured(result: dict) -> list[dict]:
    return [row for row in result["rows"] if "error" not in row and "missing" not in row]


def plot_linear(result: dict, path: Path) -> None:
    """One panel for each case with a curve."""
    rows = _measured(result)
    fields = LinearCase._fields
    found = dict.fromkeys(LinearCase(*(row[f] for f in fields)) for row in rows)
    drawn = [case for case in found if len(linear.speedups(rows, case, "4x4")) > 1]
    columns = min(3, len(drawn))
    lines = -(-len(drawn) // columns)
    figure, grid = plt.subplots(
        lines, columns, figsize=(4.2 * columns, 3.4 * lines + 0.6), sharey=True, squeeze=False
    )
    for axes in grid.flat[len(drawn) :]:
        axes.remove()
    for axes, case in zip(grid.flat, drawn, strict=False):
        speedup_axes(axes, rows, case)
    grid[0][0].legend(fontsize=7)
    _finish(figure, [result], path)


def plot_lif(result: dict, path: Path) -> None:
    rows = [row for row in _measured(result) if row["provider"] != "clone"]
    figure, axes = plt.subplots(figsize=(6, 2.8))
    bars = axes.barh(
        [row["provider"] for row in rows], [row["cost"][1] for row in rows], color=COLOURS["4x4"]
    )
    axes.bar_label(
        bars, [f"{row['cost'][1]:.3g}x, {row['ms'][1]:.3g} ms" for row in rows], padding=3, fontsize=8
    )
    axes.margins(x=0.25)
    axes.invert_yaxis()
    axes.set_xlabel("times a warm clone of the input")
    axes.set_title(f"LIF forward+backward on {result['conditions']['shape']}", fontsize=9)
    _finish(figure, [result], path)


def plot_memory(result: dict, path: Path) -> None:
    rows = _measured(result)
    figure, (left, right) = plt.subplots(1, 2, figsize=(13, 4.5), width_ratios=(2, 3))
    memory_axes(left, rows, result["conditions"]["case"])
    left.legend(fontsize=7)
    parts_axes(right, [row for row in rows if row["provider"] != "1x1"])
    _finish(figure, [result], path)


def plot_showcase(result: dict, path: Path) -> None:
    """Test accuracy over training time."""
    figure, axes = plt.subplots(figsize=(6, 4))
    for row, colour in zip(_measured(result), ("#555555", "#a0a0a0", "#7fb3d5", "#1f77b4"), strict=False):
        clock, _, accuracy = zip(*row["curve"], strict=True)
        label = f"{row['variant']}: {row['samples']:,} samples, peak {row['peak'] / memory.MB:.0f} MB"
        axes.plot(clock, [100 * value for value in accuracy], "o-", color=colour, markersize=4, label=label)
    axes.set(xlabel="seconds of training", ylabel="test accuracy, %")
    axes.set_title("SpikingJelly script on dvs-fashion-mnist", fontsize=9)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=7)
    _finish(figure, [result], path)


def plot_overview(folder: Path, path: Path) -> None:
    """The README's plot: speed of the target case beside memory."""
    speed, space = load("linear", folder), load("memory", folder)
    if speed is None or space is None:
        print("overview: needs the stored results of linear and memory")
        return
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4.4))
    rows = _measured(speed)
    target = any(linear.speedups(rows, cases.TARGET_CASE, name) for name in linear.OURS)
    speedup_axes(left, rows, cases.TARGET_CASE if target else cases.QUICK_LINEAR_CASES[0])
    memory_axes(right, _measured(space), space["conditions"]["case"])
    left.legend(fontsize=7)
    right.legend(fontsize=7)
    _finish(figure, [speed, space], path)


PLOTS = {
    "linear": plot_linear,
    "lif": plot_lif,
    "memory": plot_memory,
    "memory-vggsnn": plot_memory,
    "showcase": plot_showcase,
}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.plot", description=__doc__)
    parser.add_argument(
        "--results", type=Path, default=RESULTS, help="folder of the JSON files; PNGs go there too"
    )
    folder = parser.parse_args(arguments).results
    for name, plot in PLOTS.items():
        if (result := load(name, folder)) is not None:
            plot(result, folder / f"{name}.png")
    plot_overview(folder, folder / "overview.png")


if __name__ == "__main__":
    main()
