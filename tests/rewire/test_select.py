import numpy as np
import pytest
import torch

from esl_sparse.rewire.select import contains_sorted, merge_sorted, smallest, splitmix64

from . import oracle


@pytest.mark.parametrize("seed", [0, 1, 2**62 - 1])
def test_hash_is_splitmix64(seed):
    ids = torch.tensor([0, 1, 2, 12345, 2**40 + 7])
    assert splitmix64(ids, seed).tolist() == [oracle.tie_order(i, seed) for i in ids.tolist()]


@pytest.mark.parametrize("count", [0, 1, 7, 50, 100])
@pytest.mark.parametrize("levels", [1, 3, 1000])
def test_smallest_chooses_what_the_oracle_chooses(count, levels):
    ids = torch.randperm(1000)[:100]
    score = torch.randint(levels, (100,)).float()
    chosen = smallest(score, ids, count, seed=5)
    assert chosen.shape == (count,)
    assert set(ids[chosen].tolist()) == oracle.smallest(ids.numpy(), score.numpy(), count, 5)


def test_permuting_the_input_permutes_the_choice():
    ids, score = torch.arange(200), torch.randint(3, (200,)).float()
    order = torch.randperm(200)
    chosen = ids[smallest(score, ids, 90, seed=1)]
    permuted = ids[order][smallest(score[order], ids[order], 90, seed=1)]
    assert set(chosen.tolist()) == set(permuted.tolist())


def test_seed_decides_ties_evenly():
    ids, score = torch.arange(400), torch.zeros(400)
    times = torch.zeros(400)
    for seed in range(400):
        times[smallest(score, ids, 100, seed)] += 1
    assert abs(times - 100).max() < 45  # five standard deviations of 400 draws with p = 1/4


def test_scores_are_compared_in_float32():
    score = torch.tensor([1.0, 1.0 + 1e-12, 0.5], dtype=torch.float64)
    ties = {int(smallest(score, torch.arange(3), 2, seed)[1]) for seed in range(20)}
    assert ties == {0, 1}


def test_nan_scores_are_refused():
    with pytest.raises(ValueError, match="2 of 3 are NaN"):
        smallest(torch.tensor([1.0, torch.nan, torch.nan]), torch.arange(3), 1, 0)


def test_infinite_scores_are_ordered():
    score = torch.tensor([torch.inf, -torch.inf, 0.0, torch.inf])
    assert set(smallest(score, torch.arange(4), 2, 0).tolist()) == {1, 2}


@pytest.mark.parametrize("n, k", [(0, 0), (0, 5), (5, 0), (40, 17)])
def test_merge_and_contains(n, k):
    every = torch.randperm(100)
    ids, more = every[:n].sort().values, every[n : n + k].sort().values
    merged, from_more = merge_sorted(ids, more)
    assert np.array_equal(merged, np.union1d(ids, more))
    assert torch.equal(merged[from_more], more)
    assert np.array_equal(contains_sorted(ids, every), np.isin(every, ids))
