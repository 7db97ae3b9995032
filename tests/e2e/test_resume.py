"""An interrupted run continues to the same bits, whether it was stopped between epochs or inside one."""

import copy
import signal
import time
from dataclasses import replace

import pytest
import torch

from esl_sparse.checkpoint import CheckpointError, load_checkpoint, save_checkpoint
from esl_sparse.data import Split, load
from esl_sparse.data.moving import MovingImages
from esl_sparse.experiments.config import TrainConfig
from esl_sparse.experiments.log import read_log
from esl_sparse.experiments.train import Interrupted, Trainer

SMALL = TrainConfig(data="digits", batch_size=32, interval=10, hidden=(128, 64), lr=5e-3, epochs=3)
CONV = replace(
    SMALL, model="convnet", channels=(8, 16), density=0.3, augment="cifar", batch_size=64, epochs=2
)


def same(a, b):
    """Equality to the bit of nested containers of tensors and plain values."""
    if isinstance(a, torch.Tensor):
        if not isinstance(b, torch.Tensor) or (a.dtype, a.shape) != (b.dtype, b.shape):
            return False
        return torch.equal(*(t.detach().reshape(-1).view(torch.uint8) for t in (a, b)))  # 0 is not -0
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


def untimed(state):
    """A checkpoint without the clock's part."""
    progress = {k: v for k, v in state["progress"].items() if k not in ("seconds", "sums")}
    return {**state, "progress": progress}


@pytest.mark.parametrize(
    ("base", "structure", "stop_after"),
    [
        (SMALL, "dense", 20),
        (SMALL, "mask", 60),
        (SMALL, "static", 20),
        (SMALL, "evolve", 60),
        (SMALL, "evolve", 41),  # an epoch has 41 iterations
        (CONV, "dense", 10),
        (CONV, "mask", 23),
        (CONV, "static", 21),  # after one of 21 iterations
        (CONV, "evolve", 23),  # in a window: they follow each other
        (CONV, "deep_r", 10),
    ],
)
def test_same_bits_after_an_interrupt(tmp_path, base, structure, stop_after):
    config = replace(base, structure=structure)
    assert_same_after_an_interrupt(config, load("digits"), stop_after, tmp_path)


def test_same_bits_of_event_frames(tmp_path):
    digits = load("digits")

    def moving(split):
        index = torch.arange(300)
        images = (split[index][0].squeeze(1) * 255).to(torch.uint8)
        return Split(images, split[index][1], MovingImages(T=3, size=8))

    frames = replace(digits, name="dvs-digits", train=moving(digits.train), test=moving(digits.test))
    config = replace(CONV, T=3, augment="dvs", interval=4, t_end=1.0)
    assert_same_after_an_interrupt(config, frames, 7, tmp_path)


def assert_same_after_an_interrupt(config, digits, stop_after, tmp_path):
    expected = Trainer(config, digits, tmp_path / "whole").fit()

    folder = tmp_path / "parts"
    first = Trainer(config, digits, folder)
    with pytest.raises(Interrupted):
        first.fit(lambda: first.iteration == stop_after)
    torch.manual_seed(1234)  # a new process would not have the old one's state
    second = Trainer(config, digits, folder)
    second.resume(load_checkpoint(folder / "checkpoint.pt"))
    assert second.iteration == stop_after
    result = second.fit()

    for name in ("checkpoint.pt", "best.pt"):
        a, b = (load_checkpoint(tmp_path / which / name) for which in ("whole", "parts"))
        assert same(*(untimed(s) if "progress" in s else s for s in (a, b)))
    assert (result.test_accuracy, result.test_loss) == (expected.test_accuracy, expected.test_loss)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_in_mid_epoch(start, esl, tmp_path, number):
    """From outside: stop a process in mid-epoch, resume it, and compare with a run that was left alone."""
    options = [
        "--data",
        "digits",
        "--batch-size",
        "16",
        "--hidden",
        "128",
        "--interval",
        "10",
        "--epochs",
        "6",
    ]
    run = tmp_path / "stopped"
    process = start("-m", "esl_sparse.cli", "train", *options, "--run-dir", run)
    _wait_for(run / "log.jsonl", process)
    process.send_signal(number)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 130, out
    assert f"esl-sparse train --resume {run}" in out
    progress = load_checkpoint(run / "checkpoint.pt")["progress"]
    assert progress["epoch"] < 6 and not (run / "result.json").exists()

    code, _, err = esl("train", "--resume", run, "--lr", 1)
    assert code and "leave out --lr" in err
    assert esl("train", "--resume", run)[0] == 0
    assert esl("train", *options, "--run-dir", tmp_path / "alone")[0] == 0
    a, b = (load_checkpoint(folder / "checkpoint.pt") for folder in (run, tmp_path / "alone"))
    assert same(untimed(a), untimed(b))
    a, b = (
        [
            {k: v for k, v in entry.items() if k not in ("seconds", "samples_per_second")}
            for entry in read_log(folder)
        ]
        for folder in (run, tmp_path / "alone")
    )
    assert a == b


def _wait_for(log, process):
    """Until the run has logged something, which is after its first 50 iterations."""
    deadline = time.monotonic() + 60
    while not (log.exists() and log.read_text()):
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()[0]
        time.sleep(0.01)


def test_bad_checkpoints_are_named(esl, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    code, _, err = esl("train", "--resume", run)
    assert code and "checkpoint.pt does not exist" in err
    checkpoint = run / "checkpoint.pt"
    checkpoint.write_bytes(b"PK\x03\x04 and then nothing")
    code, _, err = esl("train", "--resume", run)
    assert code and "truncated or is no checkpoint" in err
    torch.save({"weight": torch.zeros(1)}, checkpoint)
    code, _, err = esl("train", "--resume", run)
    assert code and "no checkpoint of esl_sparse" in err


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda s: s.pop("config"), "has no config"),
        (lambda s: s.update(config=3), "config does not fit"),
        (lambda s: s["config"].update(lr="high"), "config does not fit"),
        (lambda s: s["config"].update(hidden=(32,)), r"of another run: its hidden is \(32,\), not \(16,\)"),
        (lambda s: s.pop("progress"), "progress or random state does not fit: expected a progress"),
        (lambda s: s["progress"].pop("epoch"), "does not fit: expected the fields epoch"),
        (lambda s: s["progress"].update(epoch=2.0), "epoch: expected .*int.*got 2.0"),
        (lambda s: s["progress"].update(epoch=9), "expected epoch from 0 to 2, got 9"),
        (lambda s: s["progress"].update(step_in_epoch=-1), "expected step_in_epoch from 0 to 41, got -1"),
        (lambda s: s["progress"].update(r_s=[1]), "r_s: expected dict"),
        (lambda s: s["progress"].update(seconds="long"), "seconds: expected"),
        (lambda s: s["progress"]["sums"].update(loss=None), "loss: expected"),
        (lambda s: s["progress"]["sums"].update(more=1), "expected the fields loss"),
        (lambda s: s["progress"].update(weight_state=None), "weight_state: None after epoch 1"),
        (lambda s: s["progress"]["weight_state"].update(index=1.5), "index: expected"),
        (lambda s: s.pop("rng"), "progress or random state does not fit"),
        (lambda s: s.update(rng=torch.zeros(7, dtype=torch.uint8)), "progress or random state does not fit"),
        (lambda s: s.pop("augment_rng"), "progress or random state does not fit"),
        (lambda s: s.pop("optimizer"), "has no optimizer"),
        (lambda s: s["model"].update({"readout.bias": torch.zeros(3)}), "model does not fit: .*readout.bias"),
        (lambda s: s["rewirer"].update(iteration=None), "rewirer does not fit: .*expected an iteration"),
    ],
)
def test_a_checkpoint_that_does_not_fit_changes_nothing(unfit, damage, message):
    trainer, state, before = unfit
    damaged = copy.deepcopy(state)
    damage(damaged)
    torch.set_rng_state(before["rng"])
    with pytest.raises(CheckpointError, match=message) as error:
        trainer.resume(damaged)
    assert "\n" not in str(error.value)
    trainer.save()
    assert same(untimed(load_checkpoint(trainer.folder / "checkpoint.pt")), untimed(before))
    assert trainer.progress.epoch == 0


@pytest.fixture(scope="module")
def unfit(tmp_path_factory):
    """A new trainer, the state of one in the second epoch, and the state of the new one."""
    config = TrainConfig(data="digits", batch_size=32, interval=10, hidden=(16,), epochs=2, augment="dvs")
    folder, digits = tmp_path_factory.mktemp("unfit"), load("digits")
    first = Trainer(config, digits, folder)
    with pytest.raises(Interrupted):
        first.fit(lambda: first.iteration == 50)
    state = load_checkpoint(folder / "checkpoint.pt")
    trainer = Trainer(config, digits, folder)
    trainer.save()
    return trainer, state, load_checkpoint(folder / "checkpoint.pt")


@pytest.mark.parametrize("structure", ["evolve", "deep_r"])
def test_resume_command_names_the_file(esl, tmp_path, structure):
    run = tmp_path / "run"
    options = ["--data", "digits", "--hidden", 16, "--interval", 5, "--epochs", 1, "--structure", structure]
    assert esl("train", *options, "--run-dir", run)[0] == 0
    (run / "result.json").unlink()
    state = load_checkpoint(run / "checkpoint.pt")
    state["model"]["hidden.0.col_indices"][0] = -1
    save_checkpoint(run / "checkpoint.pt", state)
    code, _, err = esl("train", "--resume", run)
    assert (
        code and f"{run / 'checkpoint.pt'}: model does not fit: hidden.0: col_indices[0] = -1 is out" in err
    )
