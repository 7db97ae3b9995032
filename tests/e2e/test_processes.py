"""``torchrun -m esl_sparse train``: one run on several processes."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from esl_sparse.checkpoint import load_checkpoint
from esl_sparse.experiments.log import read_log
from esl_sparse.experiments.processes import Processes

CHECKOUT = Path(__file__).parents[2]
SMALL = (
    "train --data digits --hidden 32 --block-size 2x2 --interval 5 --batch-size 48 --lr 0.003 --optimizer sgd"
)


def torchrun(n, *arguments):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    return subprocess.Popen(
        [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--nproc-per-node",
            str(n),
            "--master-port",
            str(port),
            "-m",
            "esl_sparse",
            *map(str, arguments),
        ],
        cwd=CHECKOUT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,  # all of it can be killed at once
    )


@pytest.fixture
def started():
    running = []

    def start(*arguments):
        running.append(torchrun(*arguments))
        return running[-1]

    yield start
    for process in running:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def test_topology_of_one_process(esl, started, tmp_path):
    """The same samples in each batch and the same updates, whatever the number of processes."""
    one, two = tmp_path / "one", tmp_path / "two"
    options = [*SMALL.split(), "--epochs", "1", "--grow", "random"]
    process = started(2, *options, "--run-dir", two)
    code, _, _ = esl(*options, "--run-dir", one)
    printed, _ = process.communicate(timeout=240)
    assert code == 0 and process.returncode == 0, printed
    assert printed.count("Run folder:") == 1
    states = [load_checkpoint(folder / "checkpoint.pt")["model"] for folder in (one, two)]
    for name, value in states[0].items():
        if "indices" in name:
            assert torch.equal(states[1][name], value), name
        else:
            torch.testing.assert_close(states[1][name], value, rtol=1e-2, atol=1e-3)
    logs = [read_log(folder, "epoch")[0] for folder in (one, two)]
    assert logs[1]["iteration"] == logs[0]["iteration"] and logs[1]["updates"] == logs[0]["updates"] > 2
    for key in ("train_loss", "val_loss"):
        assert logs[1][key] == pytest.approx(logs[0][key], rel=1e-2)
    results = [json.loads((folder / "result.json").read_text()) for folder in (one, two)]
    assert results[1]["test_accuracy"] == pytest.approx(results[0]["test_accuracy"], abs=0.02)


def test_a_lost_process_ends_the_run_and_the_checkpoint_goes_on(esl, started, tmp_path):
    run = tmp_path / "run"
    options = [*SMALL.split(), "--epochs", "400", "--grow", "momentum", "--run-dir", run]
    process = started(2, *options)
    for _ in range(600):
        if (run / "checkpoint.pt").exists():
            break
        assert process.poll() is None, process.stdout.read()
        time.sleep(0.1)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    ranks = {_rank(pid): int(pid) for pid in children}
    os.kill(ranks[1], signal.SIGKILL)
    printed, _ = process.communicate(timeout=120)
    assert process.returncode != 0
    assert re.search(r"rank 0 of 2 has lost another process|Signal 9 \(SIGKILL\)", printed), printed
    epoch = load_checkpoint(run / "checkpoint.pt")["progress"]["epoch"]
    assert 1 <= epoch < 400

    # One process goes on, and stops where it is told to.
    code, _, err = esl("train", "--resume", run, "--epochs", 1)
    assert code == 2 and "leave out --epochs" in err
    process = subprocess.Popen(
        [sys.executable, "-m", "esl_sparse", "train", "--resume", str(run)],
        cwd=CHECKOUT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        for _ in range(600):
            if load_checkpoint(run / "checkpoint.pt")["progress"]["epoch"] > epoch:
                break
            time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        printed, _ = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130 and "Interrupted after iteration" in printed
    assert load_checkpoint(run / "checkpoint.pt")["progress"]["epoch"] > epoch


def _rank(pid):
    environment = Path(f"/proc/{pid}/environ").read_text().split("\0")
    return int(next(entry for entry in environment if entry.startswith("RANK=")).removeprefix("RANK="))


@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_shares_make_up_the_batch(size):
    for n in (1, 2, 3, 7, 64):
        index = torch.randperm(100)[:n]
        shares = [Processes(rank, size).share(index) for rank in range(size)]
        seen = torch.cat([own for own, weight in shares if weight])
        assert seen.sort().values.equal(index.sort().values)
        # The average over processes of weighted means is the mean over the batch.
        mean = sum(weight * own.double().mean() for own, weight in shares) / size
        assert mean.item() == pytest.approx(index.double().mean().item())
        assert all(len(own) for own, _ in shares)


def test_cuda_that_is_not_there(esl, tmp_path):
    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    code, _, err = esl("train", "--data", "digits", "--device", "cuda", "--run-dir", tmp_path / "run")
    assert code == 2 and "torch sees no CUDA device" in err
