"""`esl-sparse reproduce`: every experiment by its smoke run; what the pages say is what the runs found."""

import csv
import json
from types import SimpleNamespace

import pytest

from esl_sparse.energy import ENERGY_CONSTANTS
from esl_sparse.experiments.reproduce import EXPERIMENTS, Scale
from esl_sparse.experiments.reproduce.experiment import Outcome, run_name
from esl_sparse.experiments.reproduce.single_spike import density_of
from esl_sparse.experiments.run_folder import read_result


@pytest.fixture
def quick(esl, tmp_path):
    def run(what, *more):
        return esl(
            *("reproduce", what, "--quick", "--threads", 1, *more),
            *("--runs", tmp_path / "runs", "--out", tmp_path / "out"),
        )

    return run


def read(folder, stem):
    values = json.loads((folder / f"{stem}.json").read_text())
    with (folder / f"{stem}.csv").open() as file:
        return values, list(csv.DictReader(file)), (folder / f"{stem}.md").read_text()


def test_all_of_them(quick, tmp_path):
    code, out, err = quick("all", "--seeds", 1)
    assert code == 0, err
    for name in EXPERIMENTS:
        values, runs, page = read(tmp_path / "out", f"{name}-quick")
        assert "smoke run" in page and "its accuracies mean nothing" in page
        assert values["scale"] == "quick" and len(values["rows"]) == len(runs)
        assert (tmp_path / f"out/{name}-quick.png").read_bytes().startswith(b"\x89PNG")
        assert not (tmp_path / f"out/{name}.md").exists()
        assert all(row["paper (%)"] == "" for row in values["rows"])
        assert "\n1 seed; " in page and "t-interval" not in page
        accuracy = {row["row"]: row["test_accuracy"][0] for row in values["rows"]}
        for row in EXPERIMENTS[name].rows(Scale.QUICK):
            shown = next(x["difference"] for x in values["rows"] if x["row"] == row.label)
            points = 100 * (accuracy[row.label] - accuracy[row.reference]) if row.reference else None
            assert shown == ("" if points is None else f"{points:+.2f}")
            if row.config.evolves:
                assert f"{row.config.prune} + {row.config.grow}" in page.split("Settings:")[1]
    code, out, _ = quick("all", "--seeds", 1)
    assert code == 0 and ": test " not in out


def test_page_and_runs_agree(quick, tmp_path):
    assert quick("table1", "--seeds", 2)[0] == 0
    values, runs, page = read(tmp_path / "out", "table1-quick")
    assert values["rows"][0]["row"] == "dense 64-100-10"
    for row in values["rows"]:
        mine = [run for run in runs if run["row"] == row["row"]]
        accuracies = [float(run["test_accuracy"]) for run in mine]
        assert accuracies == row["test_accuracy"] and len(accuracies) == 2
        assert row["ours (%)"] == f"{50 * sum(accuracies):.2f}"
        connections = int(mine[0]["connections"])
        assert row["connections"] == row["FLOPs"] == f"{connections:,}"
        gpu = connections * ENERGY_CONSTANTS["paper"].mac
        assert float(row["energy, GPU (J)"]) == pytest.approx(gpu, rel=5e-3)
        # every pixel spikes, at one of two times, so the hidden layer works in full
        assert float(row["energy by spikes (J)"]) <= connections * 0.9e-12 * 1.005
        assert f"| {row['row']} |" in page
    dense, sparse, *_ = values["rows"]
    pairs = zip(sparse["test_accuracy"], dense["test_accuracy"], strict=True)
    assert sparse["interval"]["mean"] == pytest.approx(sum(a - b for a, b in pairs) / 2)
    folders = list((tmp_path / "runs").iterdir())
    assert len(folders) == 10
    for folder in folders:
        assert folder.name == run_name(read_result(folder)[0])


def test_every_panel_of_fig4_shows_the_worst_rule():
    def outcome(row):
        accuracy = 0.1 if row.config.prune == "set_itop" else 0.9
        return Outcome(row, None, [], [SimpleNamespace(test_accuracy=accuracy)], None)

    experiment = EXPERIMENTS["fig4"]
    figure = experiment.draw([outcome(row) for row in experiment.rows(Scale.STAND_IN)])
    assert all(axes.get_ylim()[0] <= 0.1 < 0.9 <= axes.get_ylim()[1] for axes in figure.axes)


def test_rows_are_the_paper_s():
    assert density_of(60, 784, 800) == pytest.approx(95_040 / 627_200)
    assert density_of(1000, 10, 10) == 1.0
    table1 = {row.label: row for row in EXPERIMENTS["table1"].rows(Scale.PAPER)}
    assert table1["dense 784-130-10"].paper == "about 92"  # 103,220 weights
    assert table1["evolving, eps = 60, 1x1"].paper == "96.58"
    assert len(EXPERIMENTS["fig2"].rows(Scale.PAPER)) == 10
    for name in ("table2", "fig3", "fig4"):
        rows = EXPERIMENTS[name].rows(Scale.PAPER)
        assert {row.config.data for row in rows} <= {"cifar10", "cifar100", "dvs-cifar10"}
        assert {row.config.model for row in rows} <= {"resnet19", "vggsnn"}
        assert {row.config.data for row in EXPERIMENTS[name].rows(Scale.STAND_IN)} <= {
            "fashion-mnist",
            "dvs-fashion-mnist",
        }
    fig4 = [row.config for row in EXPERIMENTS["fig4"].rows(Scale.PAPER) if row.config.evolves]
    assert {config.density for config in fig4} == {0.1, 0.01}
    assert {config.prune for config in fig4} == {"magnitude", "set", "set_itop"}


def test_data_that_is_not_there(esl, tmp_path):
    places = ("--data-dir", tmp_path, "--runs", tmp_path / "runs", "--out", tmp_path / "out")
    code, _, err = esl("reproduce", "table2", *places)
    assert code and "--stand-in" in err and str(tmp_path) in err
    assert not (tmp_path / "out").exists() and not (tmp_path / "runs").exists()
    code, _, err = esl("reproduce", "table1", *places)
    assert code and "--stand-in" not in err
    code, _, err = esl("reproduce", "table1", "--stand-in", *places)
    assert code and "table1 has no such scale" in err
    code, _, err = esl("reproduce", "fig3", "--stand-in", "--quick", *places)
    assert code and "choose one" in err
