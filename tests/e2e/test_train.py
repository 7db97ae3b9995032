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
from esl_sparse.experiments.presets import PRESETS
from esl_sparse.nn import SparseConv2d, SpikingBlock

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


@pytest.mark.parametrize("structure", (*STRUCTURES, "deep_r"))
def test_run_folder_of_a_convolutional_network(esl, tmp_path, structure):
    run = tmp_path / "run"
    options = ("--data", "digits", "--model", "convnet", "--channels", "8-16-32", "--density", 0.2)
    options += ("--epochs", 2, "--interval", 4, "--batch-size", 64, "--structure", structure)
    code, out, _ = esl("train", *options, "--augment", "cifar", "--run-dir", run)
    assert code == 0
    assert "convnet 8-16-32" in out
    layers = [f"blocks.{i}.conv" for i in range(4)] + ["readout.linear"]
    row = list(csv.DictReader((run / "metrics.csv").open()))[-1]
    for name in layers:
        assert {f"density/{name}", f"r_s/{name}"} <= set(row)
    for i in range(4):
        assert 0 < float(row[f"firing_rate/blocks.{i}"]) < 1
    for name in ("accuracy", "density", "r_s", "firing_rate"):
        with Image.open(run / f"plots/{name}.png") as image:
            image.verify()

    shapes = [(8, 1, 3, 3), (16, 8, 3, 3), (32, 16, 3, 3), (32, 32, 3, 3), (10, 32 * 2 * 2)]
    sizes = [torch.Size(shape).numel() for shape in shapes]
    # ERK by hand: the first convolution and the readout are full, the other three share what remains
    epsilon = (0.2 * sum(sizes) - sizes[0] - sizes[4]) / sum(sum(shape) for shape in shapes[1:4])
    expected = [1, *(epsilon * sum(shapes[i]) / sizes[i] for i in (1, 2, 3)), 1]
    if structure == "dense":
        expected = [1] * 5
    # blocks are whole, masks too
    grain = {"dense": 0, "mask": 1}.get(structure, 16)
    for name, density, size in zip(layers, expected, sizes, strict=True):
        assert float(row[f"density/{name}"]) == pytest.approx(density, abs=(grain + 0.1) / size)
    result = json.loads((run / "result.json").read_text())
    assert result["total_weights"] == sum(sizes)
    rewired = [
        json.loads(line) for line in (run / "log.jsonl").read_text().splitlines() if '"rewire"' in line
    ]
    assert bool(rewired) == (structure in ("mask", "evolve", "deep_r"))
    if structure == "evolve":
        assert result["updates"] == 8 and all(event["pruned"] > 0 for event in rewired[:4])
        assert {event["layer"] for event in rewired} == set(layers[:4])  # full ones have nowhere to grow


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
        (["--size", 12], "size: digits has one only, got 12"),
        (["--split", "tet"], "split: digits has one only, got 'tet'"),
        (["--channels", "32-0"], "channels: expected positive layer sizes, got (32, 0)"),
        (["--augment", "mixup"], "'mixup' is not one of"),
        (["--preset", "imagenet"], "'imagenet' is not one of"),
        (["--model", "vggsnn"], "size: expected at least 16 pixels for 4 poolings, got 8"),
        (["--model", "convnet", "--channels", "4-4-4-4-4"], "at least 16 pixels for 4 poolings, got 8"),
        (["--data", "dvs-mnist", "--data-dir", "/nowhere"], "mnist was not found; searched: /nowhere"),
        (["--data", "dvs-mnist", "--model", "convnet", "--size", 0], "size: expected at least 1, got 0"),
    ],
)
def test_wrong_arguments_are_one_sentence(esl, tmp_path, monkeypatch, arguments, says):
    monkeypatch.chdir(tmp_path)
    code, _, err = esl("train", "--data", "digits", *arguments)
    assert code != 0
    assert says in err
    assert err.startswith("esl-sparse: ") and err.count("\n") == 1
    assert not list(tmp_path.iterdir())


def tiny(shape, decode, classes=10):
    """A data set of 30 random samples of bytes."""
    stored = torch.randint(0, 256, (30, *shape), dtype=torch.uint8)
    split = Split(stored, torch.arange(30) % classes, decode)
    return Dataset(name="tiny", source="here", train=split, test=split, classes=classes)


def test_data_that_a_model_does_not_take():
    frames = tiny((28, 28), MovingImages(T=2, size=28))
    with pytest.raises(ValueError, match="mlp takes still images, tiny gives frames of events"):
        build(TrainConfig(), frames, total_steps=1)
    with pytest.raises(ValueError, match="T: expected 2, the frames of a sample of tiny, got 4"):
        build(TrainConfig(model="convnet"), frames, total_steps=1)
    wide = tiny((1, 8, 12), torch.Tensor.float)
    with pytest.raises(ValueError, match="convnet takes square images, tiny has 8x12"):
        build(TrainConfig(model="convnet"), wide, total_steps=1)


@pytest.mark.parametrize(("model", "convolutions"), [("vggsnn", 8), ("resnet19", 20)])
@pytest.mark.filterwarnings("ignore:t_end")
def test_large_models_take_what_the_data_gives(model, convolutions):
    dataset = tiny((3, 16, 16), torch.Tensor.float, classes=7)
    config = TrainConfig(model=model, T=2, density=0.02)
    model = build(config, dataset, total_steps=100).model.eval()
    assert sum(isinstance(m, SparseConv2d) for m in model.modules()) == convolutions
    assert all(block.is_fused for block in model.modules() if isinstance(block, SpikingBlock))
    with torch.no_grad():
        assert model(dataset.train[:2][0]).shape == (2, 2, 7)


def test_event_frames_enter_as_bits():
    dataset = tiny((8, 8), MovingImages(T=2, size=8))
    config = TrainConfig(model="convnet", channels=(4, 8), T=2, structure="static")
    model = build(config, dataset, total_steps=100).model
    assert model(dataset.train[:5][0]).shape == (2, 5, 10)
    kinds = {name: m.input for name, m in model.named_modules() if isinstance(m, SparseConv2d)}
    assert kinds == {"blocks.0.conv": "auto", "blocks.1.conv": "float", "blocks.2.conv": "float"}
    assert model.blocks[0].conv._kind == (1, 1.0)


def test_layers_of_a_perceptron_share_the_density_too():
    dataset = tiny((1, 8, 8), torch.Tensor.float)
    config = TrainConfig(hidden=(64, 32), distribution="erk", block_size=1, structure="static")
    first, second = (layer.density for layer in build(config, dataset, total_steps=1).model.hidden)
    # sum over product of the sides: 2 / 64 and 3 / 64
    assert second / first == pytest.approx(1.5, rel=0.01)
    assert (first * 64 * 64 + second * 64 * 32) / (64 * 96) == pytest.approx(0.1, abs=1e-3)


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_configurations(name):
    config = TrainConfig(**PRESETS[name])
    assert config.data in name or config.data.removesuffix("-mnist") in name
    assert config.model in name


def test_options_beside_a_preset_count_more(esl, tmp_path):
    run = tmp_path / "run"
    small = ("--data", "digits", "--channels", "4-8", "--epochs", 1, "--batch-size", 256, "--interval", 1)
    code, _, _ = esl("train", *small, "--preset", "fashion-convnet", "--run-dir", run)
    assert code == 0
    config = json.loads((run / "config.json").read_text())
    expected = TrainConfig(**PRESETS["fashion-convnet"]).to_dict()
    given = {"data": "digits", "channels": [4, 8], "epochs": 1, "batch_size": 256, "interval": 1}
    assert config == json.loads(json.dumps(expected)) | given
    (run / "result.json").unlink()
    code, _, err = esl("train", "--preset", "fashion-convnet", "--resume", run)
    assert code and "leave out --preset" in err


def test_configurations_of_before_mean_the_same():
    """What run folders of perceptrons hold, written before there were other models."""
    old = {"data": "mnist", "model": "mlp", "hidden": [800], "structure": "evolve", "density": 0.3}
    config = TrainConfig.from_dict({**old, "block_size": [4, 4], "T": 4, "seed": 1})
    assert config == TrainConfig(density=0.3, seed=1)
    assert config.sharing == "uniform" and config.augment == "none" and not config.data_options


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
