import numpy as np
import pytest
import torch

from esl_sparse.rewire.sorted_ids import contains_sorted, merge_sorted


@pytest.mark.parametrize("n, k", [(0, 0), (0, 5), (5, 0), (40, 17)])
def test_merge_and_contains(n, k):
    every = torch.randperm(100)
    ids, more = every[:n].sort().values, every[n : n + k].sort().values
    merged, from_more = merge_sorted(ids, more)
    assert np.array_equal(merged, np.union1d(ids, more))
    assert torch.equal(merged[from_more], more)
    assert np.array_equal(contains_sorted(ids, every), np.isin(every, ids))
