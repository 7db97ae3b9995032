"""Norse's neurons, which hand their state on, with our layers."""

import copy

import pytest
import torch
from torch import nn

import esl_sparse as esl

norse = pytest.importorskip("norse.torch", reason="Norse is not installed")


def network():
    return norse.SequentialState(
        nn.Conv2d(1, 8, 3, padding=1),
        norse.LIFCell(norse.LIFParameters(v_th=torch.tensor(0.2), alpha=torch.tensor(20.0))),
        nn.AvgPool2d(2),
        nn.Flatten(),
        nn.Linear(8 * 3 * 3, 24),
        norse.LIFCell(norse.LIFParameters(v_th=torch.tensor(0.1), alpha=torch.tensor(20.0))),
        nn.Linear(24, 5),
        norse.LICell(),
    )


def over_time(model, x):
    """Frames ``[T, N, 1, 6, 6]`` to the last potentials ``[N, 5]``; the state goes from step to step."""
    state = None
    for frame in x:
        y, state = model(frame, state)
    return y


@pytest.fixture
def problem():
    torch.manual_seed(0)
    return network(), torch.rand(12, 40, 1, 6, 6), torch.randint(5, (40,))


def test_the_sparse_network_is_the_same_map(problem):
    model, x, _ = problem
    report = esl.sparsify(model, 0.5, distribution="uniform", block_size=2)
    assert [layer.kind for layer in report.layers if layer.converted] == ["Conv2d", "Linear", "Linear"]
    dense = copy.deepcopy(model)
    esl.densify(dense)
    y = over_time(model, x)
    assert y.abs().max() > 0
    torch.testing.assert_close(y, over_time(dense, x), rtol=1e-4, atol=1e-5)


def test_it_trains_and_rewires(problem):
    model, x, y = problem
    esl.sparsify(model, 0.5, distribution="uniform", block_size=2)
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    rewirer = esl.Rewirer(model, optimizer, grow="momentum", interval=5, t_end=30)
    losses, updates = [], 0
    for _ in range(40):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(10 * over_time(model, x), y)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        updates += rewirer.step() is not None
    assert losses[-1] < 0.9 * losses[0] and updates >= 4
