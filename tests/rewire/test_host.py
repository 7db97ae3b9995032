"""Work side by side: the numbers of several layers are read in one go."""

import pytest
import torch

import esl_sparse as esl
from esl_sparse.rewire import AsksFirst, host


def work(name, log, questions):
    total = 0
    for i in range(questions):
        log.append(f"{name}{i}")
        first, second = yield [torch.tensor(i), torch.tensor(float(ord(name)))]
        assert (first, second) == (i, ord(name))
        total += first
    return name, total


@pytest.mark.parametrize(
    "remote, order",
    [(False, ["a0", "a1", "b0", "d0", "d1", "d2"]), (True, ["a0", "b0", "d0", "a1", "d1", "d2"])],
)
def test_order_and_answers(remote, order, monkeypatch):
    """Elsewhere than on a GPU one comes after the other; there all ask before any is answered."""
    monkeypatch.setattr(host, "is_remote", lambda tensor: remote)
    readings, read, log = [], host.read, []

    def counted(scalars):
        readings.extend([len(scalars)] if scalars else [])
        return read(scalars)

    monkeypatch.setattr(host, "read", counted)
    works = {name: work(name, log, n) for name, n in {"a": 2, "b": 1, "c": 0, "d": 3}.items()}
    found = host.side_by_side(works)
    assert list(found.items()) == [("a", ("a", 1)), ("b", ("b", 0)), ("c", ("c", 0)), ("d", ("d", 3))]
    assert log == order
    assert readings == ([6, 4, 2] if remote else [2] * 6)


def test_what_fails_is_not_swallowed(monkeypatch):
    monkeypatch.setattr(host, "is_remote", lambda tensor: True)

    def fails():
        yield [torch.tensor(1)]
        raise ValueError("mine")

    with pytest.raises(ValueError, match="mine"):
        host.side_by_side({"a": work("a", [], 1), "b": fails()})


def test_after_a_failure_nothing_is_held(monkeypatch):
    monkeypatch.setattr(host, "is_remote", lambda tensor: True)
    waiting = work("a", [], 2)

    def fails():
        raise ValueError
        yield

    with pytest.raises(ValueError):
        host.side_by_side({"a": waiting, "b": fails()})
    assert waiting.gi_frame is None


def test_a_rule_that_does_not_ask():
    blocks = type("Blocks", (), {"name": "mine"})
    with pytest.raises(TypeError, match="expected the rule in AsksFirst to be a generator, got Tensor"):
        AsksFirst(lambda blocks, count: torch.arange(count))(blocks, 3)


def test_a_rule_of_ones_own():
    asked = []

    @AsksFirst
    def strongest(blocks, count):
        (largest,) = yield [blocks.values.abs().max()]
        asked.append(largest)
        return blocks.smallest(-blocks.mean(blocks.values.abs()), count)

    torch.manual_seed(0)
    layer = esl.nn.SparseLinear(32, 24, density=0.2, block_size=1)
    optimizer = torch.optim.SGD(layer.parameters(), 0.0)
    rewirer = esl.Rewirer(layer, optimizer, prune=strongest, grow="random", interval=1, t_end=4)
    before = layer.values.detach().abs().flatten()
    layer(torch.randn(4, 32)).sum().backward()
    optimizer.step()
    report = rewirer.step()
    assert asked == [pytest.approx(before.max().item())]
    kept = before.sort().values[: before.numel() - report.layers[0].pruned]
    after = layer.values.detach().abs().flatten()
    assert set(kept.tolist()) <= set(after.tolist())
