import json
from dataclasses import replace

import pytest

from esl_sparse.experiments.config import TrainConfig
from esl_sparse.experiments.presets import PRESETS
from esl_sparse.experiments.protocol import interval


def test_interval_by_hand():
    # mean 2, sd 1, n 3: t(.975, 2) = 4.302653, half width 4.302653 / sqrt(3)
    found = interval([0.01, 0.02, 0.03])
    assert (found.mean, found.low, found.high) == pytest.approx((0.02, 0.02 - 0.02484138, 0.02 + 0.02484138))


def test_rows_seeds_and_restart(esl, tmp_path):
    arguments = ["protocol", "--data", "digits", "--epochs", 2, "--interval", 3, "--seeds", 2]
    arguments += ["--row", "dense", "--row", "evolve 0.1 4x4", "--lr", 0.001, "--lr", 0.01]
    arguments += ["--runs", tmp_path / "runs", "--out", tmp_path / "results"]
    code, out, _ = esl(*arguments)
    assert code == 0
    assert out.count(" s\n") == 6  # two rows: two rates with the first seed, the better one with the second

    results = json.loads((tmp_path / "results/digits.json").read_text())
    dense, evolve = results["rows"]
    assert (dense["name"], evolve["name"]) == ("dense", "evolve 0.1 4x4")
    assert dense["lr"] == evolve["lr"] == 0.01
    assert len(evolve["test_accuracy"]) == 2
    assert dense["difference"] is None
    differences = [a - b for a, b in zip(evolve["test_accuracy"], dense["test_accuracy"], strict=True)]
    assert evolve["difference"]["mean"] == pytest.approx(sum(differences) / 2)
    assert "| evolve 0.1 4x4 | 0.01 |" in (tmp_path / "results/digits.md").read_text()

    code, out, _ = esl(*arguments)  # nothing is run twice
    assert code == 0 and " s\n" not in out
    assert json.loads((tmp_path / "results/digits.json").read_text()) == results
    code, _, err = esl(*arguments, "--tau", 0.25)
    assert code and "holds a run with other settings" in err


def test_convolutional_rows(esl, tmp_path):
    arguments = ["protocol", "--data", "digits", "--epochs", 2, "--interval", 4, "--batch-size", 64]
    arguments += ["--seeds", 2, "--runs", tmp_path / "runs", "--out", tmp_path, "--suite", "conv"]
    code, _, err = esl(*arguments)
    assert code and "conv has no rows for mlp; see --preset fashion-convnet" in err
    arguments += ["--preset", "fashion-convnet", "--channels", "4-8", "--row", "* 0.1 4x4", "--row", "dense"]
    code, out, _ = esl(*arguments)
    assert code == 0 and out.count(" s\n") == 6
    values = json.loads((tmp_path / "digits-convnet.json").read_text())
    assert values["lrs"] == [PRESETS["fashion-convnet"]["lr"]]
    dense, static, evolve = values["rows"]
    assert (dense["difference"], dense["difference_to_static"], static["difference_to_static"]) == (None,) * 3
    for reference, key in ((dense, "difference"), (static, "difference_to_static")):
        pairs = zip(evolve["test_accuracy"], reference["test_accuracy"], strict=True)
        assert evolve[key]["mean"] == pytest.approx(sum(a - b for a, b in pairs) / 2)
    assert all(row["seconds"] > 0 for row in values["rows"])
    table = (tmp_path / "digits-convnet.md").read_text()
    assert "convnet 4-8, T = 4" in table and "training (s) |" in table and "Densities of layers: erk" in table
    code, out, _ = esl(*arguments)  # nothing is run twice
    assert code == 0 and " s\n" not in out
    code, _, err = esl("protocol", "--data", "digits", "--model", "convnet")
    assert code and "density has no rows for convnet; see --model mlp" in err


def test_rules_are_compared_with_the_static_topology(esl, tmp_path):
    arguments = ["protocol", "--suite", "rules", "--data", "digits", "--epochs", 2, "--interval", 3]
    arguments += ["--seeds", 2, "--runs", tmp_path / "runs", "--out", tmp_path, "--name", "table"]
    rows = ["--row", "static 0.1*", "--row", "deep_r 0.1*", "--row", "set+momentum 0.1*"]
    code, _, _ = esl(*arguments, *rows)
    assert code == 0
    static, deep_r, momentum = json.loads((tmp_path / "table.json").read_text())["rows"]
    assert static["difference_to_static"] is None and deep_r["difference_to_static"] is not None
    differences = [a - b for a, b in zip(momentum["test_accuracy"], static["test_accuracy"], strict=True)]
    assert momentum["difference_to_static"]["mean"] == pytest.approx(sum(differences) / 2)
    assert "difference to static" in (tmp_path / "table.md").read_text()
    code, _, err = esl(*arguments, "--row", "set+nothing*")
    assert code and "no row is called 'set+nothing*'" in err


def test_runs_of_a_fixed_topology_are_the_same_whatever_the_rewiring():
    for structure in ("dense", "static"):
        config = TrainConfig(structure=structure)
        assert replace(config, alpha=0.1, interval=7, grow="random").effective == config.effective
        assert replace(config, lr=0.1).effective != config.effective
    assert replace(TrainConfig(), alpha=0.1).effective != TrainConfig().effective
