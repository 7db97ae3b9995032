import math
import warnings

import pytest

from esl_sparse.rewire import SCHEDULES
from esl_sparse.rewire.schedule import UpdateSchedule


def schedule(name="cosine", alpha=0.5, interval=10, t_end=100, t_start=0):
    return UpdateSchedule(SCHEDULES[name], alpha, interval, t_end, t_start)


def test_updates_every_interval_from_the_first_to_t_end():
    s = schedule(interval=10, t_end=45)
    assert [t for t in range(200) if s.due(t)] == [10, 20, 30, 40]
    assert schedule(interval=10, t_end=40).due(40)


def test_t_start():
    s = UpdateSchedule(SCHEDULES["cosine"], 0.5, 10, 100, 35)
    assert [t for t in range(200) if s.due(t)] == [40, 50, 60, 70, 80, 90, 100]
    assert s.updates == 7 and UpdateSchedule(SCHEDULES["cosine"], 0.5, 10, 100, 40).updates == 7
    assert [s.next(t) for t in (0, 39, 40, 99, 100)] == [40, 40, 50, 100, None]
    assert s.fraction(40) == schedule().fraction(40)  # the decay counts from iteration 0 all the same


@pytest.mark.filterwarnings("ignore:t_end")
def test_next_and_updates_say_what_due_says():
    for interval, t_end, t_start in [(1, 7, 0), (3, 20, 5), (7, 21, 21), (5, 30, 0), (4, 40, 13)]:
        s = UpdateSchedule(SCHEDULES["linear"], 0.5, interval, t_end, t_start)
        due = [t for t in range(60) if s.due(t)]
        assert s.updates == len(due)
        for t in range(60):
            assert s.next(t) == next((later for later in due if later > t), None)


@pytest.mark.parametrize("t", [1, 30, 50, 100])
def test_fractions(t):
    assert schedule("cosine").fraction(t) == pytest.approx(0.25 * (1 + math.cos(math.pi * t / 100)))
    assert schedule("constant").fraction(t) == 0.5
    assert schedule("linear").fraction(t) == pytest.approx(0.5 * (1 - t / 100))
    assert schedule("exponential").fraction(t) == pytest.approx(0.5 * 100 ** (-t / 100))


def test_warns_when_connections_hardly_evolve():
    with pytest.warns(UserWarning, match="t_end=25 leaves 2 updates at interval=10"):
        schedule(t_end=25)
    with pytest.warns(UserWarning, match="t_end=45 leaves 2 updates from t_start=21 at interval=10"):
        UpdateSchedule(SCHEDULES["cosine"], 0.5, 10, 45, 21)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        schedule(t_end=30)


@pytest.mark.parametrize(
    "options, error, message",
    [
        ({"alpha": 1.1}, ValueError, "alpha: expected a fraction"),
        ({"interval": 0}, ValueError, "interval: expected at least 1, got 0"),
        ({"t_start": -1}, ValueError, "t_start: expected at least 0, got -1"),
        ({"t_end": 1e4}, TypeError, "t_end: expected a number of iterations"),
    ],
)
def test_wrong_arguments(options, error, message):
    with pytest.raises(error, match=message):
        schedule(**options)


def test_a_decay_of_ones_own_is_checked():
    s = UpdateSchedule(lambda alpha, progress: alpha + progress, 0.5, 10, 100)
    assert s.fraction(10) == 0.6
    with pytest.raises(ValueError, match=r"iteration 60, got 1\.1"):
        s.fraction(60)
