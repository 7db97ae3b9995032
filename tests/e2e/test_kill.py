"""A run killed with SIGKILL, at any moment and more than once, ends in the same bits as one left alone.

One server process imports everything once; each run is a process forked from it.
"""

import multiprocessing
import os
import random
import signal
import time

import pytest
import torch

from esl_sparse import checkpoint, cli
from esl_sparse.checkpoint import load_checkpoint
from esl_sparse.data import load
from esl_sparse.experiments.config import TrainConfig
from esl_sparse.experiments.log import read_log
from esl_sparse.experiments.train import Trainer

from .test_resume import same, untimed

# 41 iterations an epoch. Updates every 30: the windows of "momentum" are 11 to 30, 41 to 60 (across the first
# epoch's end), 71 to 90 (across the second's).
SMALL = {
    "data": "digits",
    "batch_size": 32,
    "hidden": (32,),
    "block_size": (2, 2),
    "epochs": 3,
    "interval": 30,
}
RUNS = {
    "random_unfired": {"grow": "random_unfired"},
    "momentum": {"grow": "momentum", "t_end": 1.0},
    "redistributing": {
        "hidden": (48, 32),
        "grow": "momentum",
        "redistribute": "momentum",
        "interval": 20,  # a window opens before the first step, when layers still have their first size
        "t_end": 1.0,
        "optimizer": "sgd",
        "lr": 0.05,
    },
    "deep_r": {"structure": "deep_r", "block_size": (1, 1), "lr": 0.02, "t_end": 1.0},
    "convnet": {"model": "convnet", "channels": (4, 8), "density": 0.3, "augment": "cifar", "t_end": 1.0},
}
SAVE_EVERY = 7  # iterations; 41, 60 and 90 are no multiples


class Killer:
    """Kills its own process after so many iterations, or in so many-th write of a checkpoint at one of its steps."""

    def __init__(self, step, count):
        self.step, self.count = step, count
        if step == "writing":
            save = torch.save

            def half(state, file):
                save(state, file)
                file.truncate(file.tell() // 2)

            self.replace(torch, "save", save, half)
        elif step in ("syncing", "renaming", "renamed"):
            owner, name = checkpoint.os, "fsync" if step == "syncing" else "replace"
            function = getattr(owner, name)
            self.replace(owner, name, function, function if step == "renamed" else lambda *_: None)

    def replace(self, owner, name, function, last):
        def wrapper(*args):
            if self.count == 1:
                last(*args)
            self.hit()
            return function(*args)

        setattr(owner, name, wrapper)

    def hit(self):
        self.count -= 1
        if self.count == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    def after_iteration(self):
        if self.step == "iteration":
            self.hit()


def train(config, folder, step="never", count=0):
    """Train in `folder` from where it stands, with a checkpoint every few iterations, until killed."""
    torch.set_num_threads(1)
    trainer = Trainer(config, load("digits"), folder)
    if (folder / "checkpoint.pt").exists():
        trainer.resume(load_checkpoint(folder / "checkpoint.pt"))
    killer = Killer(step, count)

    def after_each_iteration():
        if trainer.iteration % SAVE_EVERY == 0:
            trainer.save()
        killer.after_iteration()
        return False

    trainer.fit(after_each_iteration)


def command(*arguments):
    torch.set_num_threads(1)
    raise SystemExit(cli.main([str(argument) for argument in arguments]))


@pytest.fixture(scope="module")
def fork():
    """Start a function in a process of its own."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        ["tests.e2e.test_kill", "esl_sparse.experiments.commands", "sklearn.datasets", "torch._dynamo"]
    )
    processes = []

    def start(function, *arguments):
        process = context.Process(target=function, args=arguments)
        processes.append(process)
        process.start()
        return process

    yield start
    for process in processes:
        process.kill()
        process.join()


def ends(process, code):
    process.join(120)
    assert process.exitcode == code


def assert_same_run(folder, expected):
    a, b = (load_checkpoint(run / "checkpoint.pt") for run in (folder, expected))
    assert a["progress"]["epoch"] == SMALL["epochs"]
    assert {"model", "optimizer", "scheduler", "rewirer", "rng"} <= a.keys()
    assert same(untimed(a), untimed(b))
    assert same(*(load_checkpoint(run / "best.pt") for run in (folder, expected)))


def kill_points(name):
    """The same ones every time: one in each step of writing, the others after a number of iterations."""
    generator = random.Random(name)
    steps = ["iteration", generator.choice(["writing", "syncing", "renaming", "renamed"]), "iteration"]
    return [
        (step, generator.randrange(1, 40) if step == "iteration" else generator.randrange(1, 6))
        for step in steps
    ]


@pytest.mark.parametrize("name", RUNS)
def test_killed_and_resumed_to_the_same_bits(fork, tmp_path, name):
    config = TrainConfig(**{**SMALL, **RUNS[name]})
    alone = fork(train, config, tmp_path / "alone")
    for step, count in kill_points(name):
        ends(fork(train, config, tmp_path / "killed", step, count), -signal.SIGKILL)
    ends(fork(train, config, tmp_path / "killed"), 0)
    ends(alone, 0)
    assert_same_run(tmp_path / "killed", tmp_path / "alone")
    if name == "redistributing":
        sizes = [
            len(v)
            for k, v in load_checkpoint(tmp_path / "alone/checkpoint.pt")["model"].items()
            if "values" in k
        ]
        torch.manual_seed(0)
        fresh = Trainer(config, load("digits"), tmp_path / "fresh").model
        assert sum(sizes) == sum(len(layer.values) for layer in fresh.hidden)
        assert sizes != [len(layer.values) for layer in fresh.hidden]  # blocks have moved between layers


@pytest.mark.parametrize(("step", "count"), [("writing", 4), ("syncing", 7), ("renaming", 4), ("renamed", 4)])
def test_killed_while_writing(fork, tmp_path, step, count):
    """The fourth checkpoint at each step of its write, in the middle of a momentum window; syncing is done twice."""
    config = TrainConfig(**{**SMALL, **RUNS["momentum"], "epochs": 2})
    ends(fork(train, config, tmp_path, step, count), -signal.SIGKILL)  # after iterations 7, 14, 21 and 28
    state = load_checkpoint(tmp_path / "checkpoint.pt")
    assert state["rewirer"]["iteration"] == (28 if step == "renamed" else 21)
    assert state["rewirer"]["watches"]["hidden.0"]["average"].any()
    left = [path.name for path in tmp_path.iterdir() if path.name != "checkpoint.pt"]
    assert len(left) == (0 if step == "renamed" else 1)
    if step == "writing":
        checkpoint_of_the_dead = tmp_path / left[0]
        with pytest.raises(checkpoint.CheckpointError, match="truncated"):
            load_checkpoint(checkpoint_of_the_dead)


def test_the_command_killed_from_outside(fork, tmp_path):
    """At moments of no one's choosing, resumed by `--resume`; its log is that of a run left alone."""
    options = ["--data", "digits", "--batch-size", 32, "--hidden", 32, "--interval", 10, "--grow", "momentum"]
    alone, run = tmp_path / "alone", tmp_path / "killed"
    whole = fork(command, "train", *options, "--epochs", SMALL["epochs"], "--run-dir", alone)
    arguments, generator = [*options, "--epochs", SMALL["epochs"], "--run-dir", run], random.Random(0)
    for file in (
        "config.json",
        "checkpoint.pt",
        "checkpoint.pt",
    ):  # before the first checkpoint, and after one
        process = fork(command, "train", *arguments)
        _wait_until_written(run / file, process)
        time.sleep(generator.uniform(0, 0.2))
        process.kill()
        process.join()
        if (run / "result.json").exists():
            break  # it was faster; the comparison holds all the same
        assert process.exitcode == -signal.SIGKILL
        arguments = ["--resume", run]
    else:
        ends(fork(command, "train", *arguments), 0)
    ends(whole, 0)
    assert_same_run(run, alone)
    a, b = (
        [
            {k: v for k, v in entry.items() if k not in ("seconds", "samples_per_second")}
            for entry in read_log(folder)
        ]
        for folder in (run, alone)
    )
    assert a == b


def _written(file):
    return file.stat().st_mtime_ns if file.exists() else None


def _wait_until_written(file, process):
    """Or until the run has ended: one that was killed after its last checkpoint has none left to write."""
    before, deadline = _written(file), time.monotonic() + 60
    while process.is_alive() and _written(file) == before:
        assert time.monotonic() < deadline
        time.sleep(0.005)
