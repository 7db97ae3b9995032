"""`esl-sparse train` from outside: the run folder, every structure, what it says when things are wrong."""

import csv
import json

import pytest
import torch
from PIL import Image

from esl_sparse.checkpoint import load_checkpoint
from esl_sparse.data import DataError, Dataset, Split, load
from esl_sparse.data.moving import MovingImages
from esl_sparse.experiments.build import build
from esl_sparse.experiments.config import TrainConfig

DIGITS = ("--data", "digits", "--batch-size", 32, "--interval", 10, "--hidden", 128, "--lr", 0.005)
STRUCTURES = ("dense", "mask", "static", "evolve")


@pytest.mark.parametrize("structure", STRUCTURES)
def test_run_folder_is_complete(esl, tmp_path, structure):
    run = tmp_path / "run"
    code, out, _ = esl("train", *DIGITS, "--structure", structure, "--epochs", 2, "--run-dir", run)
    assert code == 0
    assert "test accuracy" in out and "weight state" in out and "samples/s" in out

    config = json.loads((run / "config.json").read_text())
    assert (config["data"], config["structure"], config["block_size"]) == ("digits", structure, [4, 4])
    rows = list(csv.DictReader((run / "metrics.csv").open()))
    assert [row["epoch"] for row in rows] == ["1", "2"]
    assert {"train_loss", "val_accuracy", "density/hidden.0", "r_s/hidden.0", "firing_rate/lif.0"} <= set(
        rows[0]
    )
    events = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    assert {event["event"] for event in events} == {"step", "epoch"} | (
        {"rewire"} if structure in ("mask", "evolve") else set()
    )
    assert list((run / "tensorboard").glob("events.out.tfevents.*"))
    for name in ("accuracy", "density", "r_s", "firing_rate"):
        with Image.open(run / f"plots/{name}.png") as image:
            image.verify()
    assert load_checkpoint(run / "checkpoint.pt")["progress"]["epoch"] == 2
    assert load_checkpoint(run / "best.pt")["model"]

    result = json.loads((run / "result.json").read_text())
    state = result["weight_state"]
    used = state["values"] + state["index"] + state["gradient"] + state["optimizer"]
    active, total = 128 * 64 + 1280, 128 * 64 + 1280
    if structure == "dense":
        assert used == state["dense"] + 2 * 4  # Adam's step counts
    elif structure == "mask":
        assert used > state["dense"]
    else:
        assert used < 0.25 * state["dense"]
    if structure != "dense":
        active = (
            round(0.1 * 128 * 64 / 16) * 16 + 1280 if structure != "mask" else round(0.1 * 128 * 64) + 1280
        )
    assert (result["active_weights"], result["total_weights"]) == (active, total)
    assert result["updates"] == (6 if structure in ("mask", "evolve") else 0)


def test_report(esl, tmp_path):
    for structure in ("dense", "evolve"):
        esl(
            "train",
            *DIGITS,
            "--structure",
            structure,
            "--epochs",
            1,
            "--interval",
            5,
            "--run-dir",
            tmp_path / structure,
        )
    (tmp_path / "dense/plots/accuracy.png").unlink()
    code, out, _ = esl("report", tmp_path / "dense", tmp_path / "evolve")
    assert code == 0
    assert "digits-dense-seed0" in out and "digits-evolve-0.1-4x4-seed0" in out
    assert (tmp_path / "dense/plots/accuracy.png").exists()
    code, out, _ = esl("report", tmp_path / "dense")
    assert code == 0 and "test accuracy" in out
    (tmp_path / "dense/result.json").unlink()
    code, _, err = esl("report", tmp_path / "dense")
    assert code and "no finished run" in err


def test_learns(esl, tmp_path):
    """Sparse on real digits: MNIST where it is at hand."""
    try:
        data, floor = load("mnist").name, 0.95
        options = ("--epochs", 2, "--hidden", 800, "--lr", 0.005, "--interval", 30)
    except DataError:
        data, floor = "digits", 0.9
        options = ("--epochs", 20, "--hidden", 800, "--lr", 0.005, "--interval", 10)
    code, _, _ = esl("train", "--data", data, "--density", 0.1, *options, "--run-dir", tmp_path / "run")
    assert code == 0
    result = json.loads((tmp_path / "run/result.json").read_text())
    assert result["test_accuracy"] > floor
    assert result["active_weights"] < 0.25 * result["total_weights"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--density", 0], "density: expected more than 0 and at most 1, got 0.0"),
        (["--density", 1.5], "density: expected more than 0 and at most 1, got 1.5"),
        (["--tau", 2], "tau: expected more than 0 and at most 1, got 2.0"),
        (["--epochs", 0], "epochs: expected at least 1, got 0"),
        (["--lr", -1], "lr: expected more than 0, got -1.0"),
        (["--block-size", "3x4"], "block_size: expected powers of two"),
        (["--block-size", "four"], "expected NxN or auto, got 'four'"),
        (["--hidden", "800-"], "expected N or N-N, got '800-'"),
        (["--structure", "banana"], "'banana' is not one of"),
        (["--data", "imagenet"], "'imagenet' is not one of"),
        (["--data-dir", "/nowhere", "--data", "mnist"], "mnist was not found; searched: /nowhere"),
        (["--resume", "/nowhere"], "'/nowhere' does not exist"),
        (["--interval", "soon"], "'soon' is not a valid integer"),
        (["--banana"], "No such option"),
    ],
)
def test_wrong_arguments_are_one_sentence(esl, tmp_path, monkeypatch, arguments, says):
    monkeypatch.chdir(tmp_path)
    code, _, err = esl("train", "--data", "digits", *arguments)
    assert code != 0
    assert says in err
    assert err.startswith("esl-sparse: ") and err.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_a_perceptron_takes_no_events():
    images = torch.zeros(30, 28, 28, dtype=torch.uint8)
    split = Split(images, torch.arange(30) % 10, MovingImages(T=2, size=28))
    dataset = Dataset(name="dvs-tiny", source="here", train=split, test=split, classes=10)
    with pytest.raises(ValueError, match="mlp takes still images, dvs-tiny gives frames of events"):
        build(TrainConfig(), dataset, total_steps=1)


def test_few_updates_are_warned_of(esl, tmp_path):
    code, _, err = esl("train", *DIGITS, "--epochs", 1, "--interval", 20, "--run-dir", tmp_path / "run")
    assert code == 0
    assert "leaves 1 update" in err


def test_digits_take_over_loudly(esl, tmp_path, monkeypatch):
    from esl_sparse.data import download, search

    def offline(url, timeout):
        raise OSError("no network")

    monkeypatch.setattr(search, "_ROOTS", ())
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(download, "urlopen", offline)
    code, out, _ = esl("train", "--epochs", 1, "--hidden", 16, "--interval", 2, "--run-dir", tmp_path / "run")
    assert code == 0
    assert "mnist IS NOT AVAILABLE" in out and "digits" in out
    assert json.loads((tmp_path / "run/config.json").read_text())["data"] == "digits"


def test_a_run_is_not_overwritten(esl, tmp_path):
    run = tmp_path / "run"
    assert esl("train", *DIGITS, "--epochs", 1, "--interval", 5, "--run-dir", run)[0] == 0
    before = (run / "result.json").read_bytes()
    code, _, err = esl("train", *DIGITS, "--epochs", 1, "--run-dir", run)
    assert code and "already holds a run" in err
    code, _, err = esl("train", "--resume", run)
    assert code and "finished run" in err
    assert (run / "result.json").read_bytes() == before
