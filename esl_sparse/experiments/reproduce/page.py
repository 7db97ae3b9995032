"""What is left of an experiment: a CSV file of all runs, a plot, a page for people, and JSON for programs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from matplotlib import rc_context

from ..log import write_csv, write_json
from ..machine import machine
from ..plots import STYLE, write_png
from ..protocol import points
from .experiment import Experiment, Outcome, Scale

_LABELS = {
    Scale.PAPER: "",
    Scale.STAND_IN: "**Stand-in: small networks on data that can be had anywhere, not the paper's.**",
    Scale.QUICK: "**Quick: a smoke run on 8x8 digits. It shows that the command works; its accuracies mean nothing.**",
}
_RULES = ("prune", "grow")
_RECIPE = ("data", "network", "T", "epochs", "batch_size", "optimizer", "lr", "schedule", "loss", "augment")
_REWIRING = ("alpha", "interval", "t_end")


def write_page(experiment: Experiment, scale: Scale, outcomes: Sequence[Outcome], out: Path) -> list[Path]:
    """Write `NAME.md`, `.png`, `.csv` and `.json` into `out`, NAME by experiment and scale; returns the paths."""
    out.mkdir(parents=True, exist_ok=True)
    stem = experiment.stem(scale)
    page, plot, table, values = (out / f"{stem}.{suffix}" for suffix in ("md", "png", "csv", "json"))
    means = {outcome.row.label: outcome.mean for outcome in outcomes}
    rows = [_row(experiment, outcome, means.get(outcome.row.reference or "")) for outcome in outcomes]
    write_csv(table, _runs(outcomes))
    write_json(values, _values(experiment, scale, outcomes, rows))
    with rc_context(STYLE):
        write_png(experiment.draw(outcomes), plot, f"{_conditions(scale, outcomes)}; {_seeds(outcomes)}")
    page.write_text(_page(experiment, scale, outcomes, rows, plot.name))
    return [page, plot, table, values]


def _row(experiment: Experiment, outcome: Outcome, reference: float | None) -> dict[str, str]:
    return {
        "row": outcome.row.label,
        "paper (%)": outcome.row.paper,
        "ours (%)": f"{100 * outcome.mean:.2f}",
        "sd": "" if outcome.sd is None else f"{100 * outcome.sd:.2f}",
        "difference": _difference(outcome, reference),
        "density": f"{outcome.density:.3f}",
        "connections": f"{outcome.connections:,}",
        **{name: _text(column(outcome)) for name, column in experiment.columns.items()},
    }


def _difference(outcome: Outcome, reference: float | None) -> str:
    """To the reference, whose mean is given; of one seed it has no interval."""
    if outcome.difference is None and reference is not None:
        return f"{100 * (outcome.mean - reference):+.2f}"
    return points(outcome.difference)


def _text(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else str(value)


def _page(
    experiment: Experiment, scale: Scale, outcomes: Sequence[Outcome], rows: list[dict[str, str]], plot: str
) -> str:
    headers = [name for name in rows[0] if any(row[name] for row in rows)]
    where = machine()
    lines = [
        f"# {experiment.title}",
        "",
        *([_LABELS[scale], ""] if _LABELS[scale] else []),
        f"| {' | '.join(headers)} |",
        "|" + "---|" * len(headers),
        *(f"| {' | '.join(row[name] for name in headers)} |" for row in rows),
        "",
        f"![{experiment.title}]({plot})",
        "",
        experiment.note(scale),
        "",
        f"{_seeds(outcomes)}; the epoch is picked on a 10 % validation split and tested once; "
        f"differences are to the dense network, paired by seed, in points{_interval(outcomes)}.",
        "",
        "Settings:",
        "",
        *(f"- {line}" for line in _settings(outcomes)),
        "",
        f"Made by `esl-sparse reproduce {experiment.name}{_flag(scale)} --seeds {len(outcomes[0].results)}`, "
        f"esl_sparse {where['esl_sparse']}, commit {where['commit'] or 'unknown'}, torch {where['torch']}, Python "
        f"{where['python']}, {where['cpu']}, {where['threads']} threads.",
    ]
    return "\n".join(lines) + "\n"


def _seeds(outcomes: Sequence[Outcome]) -> str:
    count = len(outcomes[0].results)
    return "1 seed" if count == 1 else f"{count} seeds"


def _interval(outcomes: Sequence[Outcome]) -> str:
    return ", with their 95 % t-interval" if any(outcome.difference for outcome in outcomes) else ""


def _flag(scale: Scale) -> str:
    return "" if scale is Scale.PAPER else f" --{scale.value}"


def _settings(outcomes: Sequence[Outcome]) -> list[str]:
    """Of the networks, each set once, with all pairs of rules that went with it."""

    def said(outcome: Outcome) -> str:
        config = outcome.row.config
        names = [*_RECIPE, *(_REWIRING if config.evolves else ())]
        if config.model == "single-spike":
            names = [name for name in names if name not in ("T", "loss")]
        return ", ".join(f"{name} {_value(getattr(config, name))}" for name in names)

    rules: dict[str, dict[str, None]] = {}
    for outcome in outcomes:
        pairs = rules.setdefault(said(outcome), {})
        if outcome.row.config.evolves:
            pairs[" + ".join(getattr(outcome.row.config, name) for name in _RULES)] = None
    return [f"{line}; rules {', '.join(pairs)}" if pairs else line for line, pairs in rules.items()]


def _value(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _conditions(scale: Scale, outcomes: Sequence[Outcome]) -> str:
    sets = ", ".join(dict.fromkeys(outcome.row.config.data for outcome in outcomes))
    return f"{sets} ({scale.value})" if scale is not Scale.PAPER else sets


def _runs(outcomes: Sequence[Outcome]) -> list[dict[str, Any]]:
    return [
        {
            "row": outcome.row.label,
            "seed": seed,
            "test_accuracy": result.test_accuracy,
            "val_accuracy": result.val_accuracy,
            "best_epoch": result.best_epoch,
            "connections": result.active_weights,
            "dense_connections": result.total_weights,
            "seconds": result.seconds,
            "updates": result.updates,
        }
        for outcome in outcomes
        for seed, result in enumerate(outcome.results)
    ]


def _values(
    experiment: Experiment, scale: Scale, outcomes: Sequence[Outcome], rows: list[dict[str, str]]
) -> dict[str, Any]:
    return {
        "experiment": experiment.name,
        "scale": scale.value,
        "machine": machine(),
        "rows": [
            {
                **row,
                "test_accuracy": outcome.accuracies,
                "interval": None if outcome.difference is None else asdict(outcome.difference),
                "config": json.loads(json.dumps(outcome.row.config.to_dict())),
            }
            for row, outcome in zip(rows, outcomes, strict=True)
        ],
    }
