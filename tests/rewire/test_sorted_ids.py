import numpy as np
import pytest
import torch

from esl_sparse.rewire.rewiring import _move, _move_without_waiting
from esl_sparse.rewire.sorted_ids import contains_sorted, merge_sorted


@pytest.mark.parametrize("remote", [False, True])
@pytest.mark.parametrize("n, k", [(0, 0), (0, 5), (5, 0), (40, 17)])
def test_merge_and_contains(n, k, remote, monkeypatch):
    monkeypatch.setattr("esl_sparse.rewire.sorted_ids.is_remote", lambda tensor: remote)
    every = torch.randperm(100)
    ids, more = every[:n].sort().values, every[n : n + k].sort().values
    merged, from_more = merge_sorted(ids, more)
    assert np.array_equal(merged, np.union1d(ids, more))
    assert torch.equal(merged[from_more], more)
    assert np.array_equal(contains_sorted(ids, every), np.isin(every, ids))


@pytest.mark.parametrize("renew", [False, True])
@pytest.mark.parametrize(
    "n,gone,k", [(0, 0, 0), (0, 0, 5), (40, 0, 0), (40, 40, 0), (40, 12, 12), (40, 40, 40)]
)
def test_moves_without_waiting(n, gone, k, renew):
    """What a GPU does; some of the chosen blocks were there before and do not stay."""
    every = torch.randperm(100)
    ids = every[:n].sort().values
    stays = torch.ones(n, dtype=torch.bool)
    stays[torch.randperm(n)[:gone]] = False
    absent = every[~torch.isin(every, ids[stays])]
    chosen = absent[torch.randperm(len(absent))[:k]].sort().values
    regrown = int(np.isin(chosen, ids).sum())
    ours_all = _move_without_waiting(ids, stays, n - gone, chosen, renew, regrown)
    for ours, theirs in zip(ours_all, _move(ids, stays, chosen, renew), strict=True):
        assert ours.dtype == theirs.dtype
        assert torch.equal(ours, theirs)
