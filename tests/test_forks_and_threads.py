"""Layers in forked processes and in several Python threads at once."""

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from torch import nn

import esl_sparse as esl

ROOT = Path(__file__).parents[1]


def network(seed):
    generator = torch.Generator().manual_seed(seed)
    sparse = {"density": 0.3, "generator": generator}
    conv, linear = (
        esl.nn.SparseConv2d(3, 8, 3, padding=1, **sparse),
        esl.nn.SparseLinear(8 * 16, 10, **sparse),
    )
    block = esl.nn.SpikingBlock(conv, nn.BatchNorm2d(8), esl.nn.LIF(), esl.nn.AvgPool2d(2))

    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self.block, self.linear = block, linear

        def forward(self, x):
            return self.linear(self.block(x).unpack().flatten(2))

    return Network()


def step(model, seed):
    """Output, gradients and running statistics of one forward and backward pass."""
    generator = torch.Generator().manual_seed(seed)
    x = (torch.rand(4, 40, 3, 8, 8, generator=generator) < 0.3).float()
    y = model(x)
    grads = torch.autograd.grad(y.square().sum(), list(model.parameters()))
    return [y.detach(), *grads, *(b.clone() for b in model.buffers())]


def same(found, expected):
    return all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_each_python_thread_has_its_own_model(threads):
    """The arena and the caches are shared; kernels run without the GIL."""
    threads(2)
    expected = [step(network(i), i) for i in range(4)]
    wrong, errors = [], []

    def work(i):
        try:
            for _ in range(6):
                if not same(step(network(i), i), expected[i]):
                    wrong.append(i)
        except BaseException as error:
            errors.append(error)

    workers = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert errors == [] and wrong == []


def test_python_threads_share_a_model(threads):
    """In evaluation mode nothing is written but what a layer remembers of its input's kind."""
    threads(2)
    model = network(0).eval()
    binary = (torch.rand(4, 40, 3, 8, 8) < 0.3).float()
    inputs = [binary, binary * 0.5, torch.rand(4, 40, 3, 8, 8)]  # another kind each, so that they disagree
    with torch.no_grad():
        expected = [model(x) for x in inputs]
    wrong, errors = [], []

    def work(i):
        try:
            with torch.no_grad():
                for _ in range(8):
                    y = model(inputs[i])
                    if not torch.allclose(y, expected[i], rtol=1e-4, atol=1e-4):
                        wrong.append(i)
        except BaseException as error:
            errors.append(error)

    workers = [threading.Thread(target=work, args=(i % 3,)) for i in range(6)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert errors == [] and wrong == []


FORK = """
import os, signal, sys
import torch
from tests.test_forks_and_threads import network, same, step

torch.set_num_threads(2)
model = network(0)
expected = step(network(0), 5)
step(model, 1)  # this process has started OpenMP's threads
child = os.fork()
if not child:
    signal.alarm(30)  # a child that waits for its parent's threads would wait for ever
    torch.set_num_threads(1)
    os._exit(0 if same(step(network(0), 5), expected) else 1)
status = os.waitpid(child, 0)[1]
assert same(step(network(0), 5), expected), "the parent"
sys.exit(os.waitstatus_to_exitcode(status) % 256)
"""

LOADER = """
import torch
from torch.utils.data import DataLoader, Dataset
from tests.test_forks_and_threads import network, step

class Spikes(Dataset):
    def __len__(self):
        return 12

    def __getitem__(self, i):
        # A data set that encodes with layers of its own, in workers that are forked.
        return network(0)(torch.full((2, 1, 3, 8, 8), 0.1 * i)).detach()

if __name__ == "__main__":
    torch.set_num_threads(2)
    step(network(1), 1)
    own = torch.stack([Spikes()[i] for i in range(12)])
    loader = DataLoader(Spikes(), batch_size=3, num_workers=2, multiprocessing_context="fork", timeout=60)
    for _ in range(2):
        found = torch.cat(list(loader))
        assert torch.equal(found, own)
        step(network(1), 1)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("program", [FORK, LOADER], ids=["fork", "loader"])
def test_a_forked_process_runs_layers(program):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "2"}
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=200)
    if done.returncode == 256 - signal.SIGALRM:
        pytest.fail("the forked process hung")
    assert done.returncode == 0, done.stderr
