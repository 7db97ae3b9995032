import pytest
import torch

from esl_sparse.rewire import EverActive


def random_ids(total, count):
    return torch.randperm(total)[:count].sort().values


@pytest.mark.parametrize("total", [1, 7, 8, 9, 100, 1003])
@pytest.mark.parametrize("share", [0, 0.03, 0.5, 1])
def test_agrees_with_a_set_of_ids(total, share):
    first, more = random_ids(total, int(total * share)), random_ids(total, total // 3)
    record = EverActive.of(first, total)
    both = record.including(more)
    expected = set(first.tolist()) | set(more.tolist())
    assert (record.size, both.size) == (len(first), len(expected))
    assert both.share == len(expected) / total
    assert set(both.contains(torch.arange(total)).nonzero().flatten().tolist()) == expected
    never = both.random_never_active(total - len(expected))
    assert never.tolist() == [i for i in range(total) if i not in expected]


def test_is_the_smaller_of_bitmap_and_list():
    total = 3200  # a bitmap of 400 bytes, ids of 4 bytes
    assert not EverActive.of(random_ids(total, 100), total).is_bitmap
    assert EverActive.of(random_ids(total, 101), total).is_bitmap
    assert EverActive.of(random_ids(total, 100), total).including(torch.arange(1000)).nbytes == 400
    assert EverActive.of(torch.arange(10), 2**31 - 1).nbytes == 40
    assert EverActive.of(torch.arange(10), 2**31).nbytes == 80


def test_adding_leaves_the_old_record_alone():
    for size in (10, 500):
        record = EverActive.of(torch.arange(size), 1000)
        before = record.data.clone()
        record.including(torch.arange(1000))
        assert torch.equal(record.data, before) and record.size == size


@pytest.mark.parametrize("size", [40, 700])
def test_never_active_places_are_drawn_evenly(size):
    total, draws = 1000, 400
    record = EverActive.of(random_ids(total, size), total)
    times = torch.zeros(total)
    for _ in range(draws):
        chosen = record.random_never_active((total - size) // 4)
        assert (chosen.diff() > 0).all()
        times[chosen] += 1
    places = torch.arange(total)
    assert times[record.contains(places)].sum() == 0
    assert abs(times[~record.contains(places)] - draws / 4).max() < 45  # five standard deviations


def test_chunks_of_the_bitmap_join(monkeypatch):
    monkeypatch.setattr("esl_sparse.rewire.ever_active._CHUNK", 8)
    record = EverActive.of(torch.cat([torch.arange(100), torch.arange(300, 700)]), 1003)
    never = [*range(100, 300), *range(700, 1003)]
    assert record.random_never_active(503).tolist() == never
    assert set(record.random_never_active(3).tolist()) <= set(never)
    assert EverActive.from_state_dict(record.state_dict(), 1003).size == 500


@pytest.mark.parametrize("size", [3, 90])
def test_state_round_trip(size):
    record = EverActive.of(random_ids(100, size), 100)
    loaded = EverActive.from_state_dict(record.state_dict(), 100)
    assert torch.equal(loaded.data, record.data) and loaded.size == size


def set_entry(index, value):
    def damage(state):
        state["data"] = state["data"].clone()
        state["data"][index] = value

    return damage


@pytest.mark.parametrize(
    "size, damage, message",
    [
        (3, lambda s: s.update(total=101), "expected 100 places, got 101"),
        (3, lambda s: s.update(size=4), "expected 4 ids"),
        (3, lambda s: s.update(data=[1, 2, 3]), "tensor"),
        (3, lambda s: s.update(data=s["data"].float()), "float32"),
        (3, set_entry(0, -1), "not sorted"),
        (3, set_entry(2, 100), "not sorted"),
        (3, set_entry(1, 0), "not sorted"),
        (90, lambda s: s.update(data=s["data"][:-1]), "expected 13 bytes"),
        (90, lambda s: s.update(size=89), "add up"),
        (90, set_entry(-1, 0), "add up"),
    ],
)
def test_a_damaged_state_is_refused(size, damage, message):
    state = EverActive.of(torch.arange(size), 100).state_dict()
    damage(state)
    with pytest.raises(ValueError, match=message):
        EverActive.from_state_dict(state, 100)
