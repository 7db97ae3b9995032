"""Table 1 and Fig. 2: networks whose neurons fire once, on MNIST."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from ...energy import ENERGY_CONSTANTS
from ..config import TrainConfig
from ..plots import COLOURS, figure_of
from ..presets import PRESETS
from .experiment import MEASURED, Column, Experiment, Outcome, Row, Scale

EPS = 60  # of Table 1: 95,040 connections of 784 x 800, and 8,000 to the readout


def _base(scale: Scale) -> TrainConfig:
    config = TrainConfig(**PRESETS["mnist-single-spike"])
    if scale is Scale.QUICK:
        config = replace(config, data="digits", hidden=(100,), epochs=2, batch_size=32, interval=8)
    return config


def density_of(eps: float, n_in: int, n_out: int) -> float:
    """Erdos-Renyi: ``eps (n_in + n_out)`` of ``n_in n_out`` connections, all of them at most."""
    return min(1.0, eps * (n_in + n_out) / (n_in * n_out))


def _inputs(config: TrainConfig) -> int:
    return 64 if config.data == "digits" else 784


def _sparse(base: TrainConfig, eps: float, structure: str, block: int) -> TrainConfig:
    density = round(density_of(eps, _inputs(base), base.hidden[0]), 6)
    return replace(base, structure=structure, density=density, block_size=(block, block))


def _table1(scale: Scale) -> list[Row]:
    base = _base(scale)
    inputs, hidden = _inputs(base), base.hidden[0]
    eps = EPS if scale is Scale.PAPER else 6
    sparse = _sparse(base, eps, "evolve", 1)
    connections = round(sparse.density * inputs * hidden) + 10 * hidden
    small = round(connections / (inputs + 10))
    dense = replace(base, structure="dense")
    reference = f"dense {inputs}-{hidden}-10"
    papers = ("96.7", "96.58", "about 92") if scale is Scale.PAPER else ("", "", "")
    return [
        Row(reference, dense, paper=papers[0]),
        Row(f"evolving, eps = {eps}, 1x1", sparse, reference, papers[1]),
        Row(f"evolving, eps = {eps}, 4x4", _sparse(base, eps, "evolve", 4), reference),
        Row(f"static, eps = {eps}, 1x1", _sparse(base, eps, "static", 1), reference),
        Row(f"dense {inputs}-{small}-10", replace(dense, hidden=(small,)), reference, papers[2]),
    ]


def _of_every_connection(constant: str) -> Column:
    """As the paper counts: each connection once."""

    def joules(outcome: Outcome) -> str:
        return f"{getattr(ENERGY_CONSTANTS['paper'], constant) * outcome.connections:.2e}"

    return joules


def _accuracy_and_energy(outcomes: Sequence[Outcome]) -> Figure:
    fig, (left, right) = figure_of(2)
    y = range(len(outcomes))
    labels = [outcome.row.label for outcome in outcomes]
    sd = [outcome.sd or 0.0 for outcome in outcomes]
    left.barh(y, [outcome.mean for outcome in outcomes], xerr=sd, color=COLOURS[0], height=0.6)
    low = min(outcome.mean - outcome.sd if outcome.sd else outcome.mean for outcome in outcomes)
    left.set(title="Test accuracy (%)", xlim=(max(0.0, low - 0.02), None))
    left.xaxis.set_major_formatter(PercentFormatter(1.0, symbol=""))
    right.barh(y, [1e6 * outcome.energy.energy for outcome in outcomes], color=COLOURS[1], height=0.6)
    right.set(title="Energy of an image (uJ, 45 nm, by spikes)")
    left.set_yticks(y, labels)
    right.set_yticks(y, [""] * len(labels))
    for axes in (left, right):
        axes.invert_yaxis()
        axes.grid(axis="y", visible=False)
    return fig


def _note(scale: Scale) -> str:
    return (
        "FLOPs and the two energies beside them as the paper counts: each connection once for each image, 250 W / 14 "
        "TFLOPS on the GPU, 12.52 pJ on TrueNorth. The last energy counts what spikes cause, at .9 pJ an operation "
        f"(45 nm), with the rates of {MEASURED:,} test images and the first seed."
    )


TABLE1 = Experiment(
    name="table1",
    title="Table 1: single-spike networks, dense against sparse",
    seeds=5,
    scales=(Scale.PAPER, Scale.QUICK),
    rows=_table1,
    draw=_accuracy_and_energy,
    columns={
        "FLOPs": lambda outcome: outcome.connections,
        "energy, GPU (J)": _of_every_connection("mac"),
        "energy, TrueNorth (J)": _of_every_connection("sop"),
        "energy by spikes (J)": lambda outcome: f"{outcome.energy.energy:.2e}",
        "rate of hidden neurons": lambda outcome: f"{outcome.energy.layers[-1].rate:.3f}",
    },
    note=_note,
)


def _fig2(scale: Scale) -> list[Row]:
    base = _base(scale)
    eps = range(10, 100, 10) if scale is Scale.PAPER else (2, 6)
    reference = "dense"
    rows = [Row(f"eps = {e}", _sparse(base, e, "evolve", 1), reference) for e in eps]
    return [*rows, Row(reference, replace(base, structure="dense"))]


def _connections_and_accuracy(outcomes: Sequence[Outcome]) -> Figure:
    fig, (bars,) = figure_of()
    *sparse, dense = outcomes
    x = [outcome.row.label.removeprefix("eps = ") for outcome in sparse]
    bars.bar(x, [outcome.connections / 1000 for outcome in sparse], color="#b9cfe6", label="connections")
    bars.set(xlabel="eps", ylabel="connections (thousands)", title="Connections and test accuracy")
    line = bars.twinx()
    line.errorbar(
        x,
        [outcome.mean for outcome in sparse],
        yerr=[outcome.sd or 0.0 for outcome in sparse],
        fmt="o-",
        color=COLOURS[1],
        label="test accuracy",
    )
    line.axhline(dense.mean, color=COLOURS[4], linestyle="--", label="dense")
    line.set_ylabel("test accuracy (%)")
    line.yaxis.set_major_formatter(PercentFormatter(1.0, symbol=""))
    line.grid(visible=False)
    line.spines["right"].set_visible(True)
    fig.legend(loc="outside right upper")
    return fig


FIG2 = Experiment(
    name="fig2",
    title="Fig. 2: accuracy of single-spike networks by number of connections",
    seeds=3,
    scales=(Scale.PAPER, Scale.QUICK),
    rows=_fig2,
    draw=_connections_and_accuracy,
    columns={},
    note=lambda scale: (
        "The hidden layer has eps (784 + 800) connections, 1x1; the readout is dense, 8,000 more."
    ),
)
