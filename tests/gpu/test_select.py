import pytest
import torch

from esl_sparse import BlockLayout, _backends
from esl_sparse.ops._library import raw
from esl_sparse.sampling import sample
from esl_sparse.topology import index_from_block_ids, transpose_index

from ..ops.test_select import KINDS, SELECT, scores
from .cases import assert_streams_and_graphs_change_nothing

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", SELECT)
def test_agrees_with_the_cpu(name, kind):
    for n in (0, 1, 64, 300, 100_003):
        score, ids = scores(kind, n), torch.randperm(n) * 2**30
        for count in {0, n // 3, n}:
            expected = SELECT[name](score, ids, count, seed=n)
            chosen = SELECT[name](score.cuda(), ids.cuda(), count, seed=n)
            assert torch.equal(chosen.cpu().sort().values, expected.sort().values)


def test_numbers_drawn_agree_with_the_cpu():
    for total, count in ((1, 1), (1000, 1000), (10**12, 5000), (2**62, 5000)):
        ours = sample(total, count, 7, torch.device("cuda"))
        assert torch.equal(ours.cpu(), sample(total, count, 7, torch.device("cpu")))


def test_nan_raises():
    score = torch.randn(5000, device="cuda")
    score[[7, 4000]] = torch.nan
    with pytest.raises(ValueError, match="score: 2 of 5000 are NaN"):
        SELECT["largest"](score, torch.arange(5000, device="cuda"), 10, 0)


@pytest.mark.parametrize("rows,cols,density", [(1, 1, 1.0), (37, 21, 0.3), (700, 900, 0.2), (5, 4000, 0.0)])
def test_the_column_index(rows, cols, density):
    ids = (torch.rand(rows * cols) < density).nonzero().squeeze(1)
    crow, col = index_from_block_ids(ids, BlockLayout(rows, cols, 1, 1))
    with _backends.use("cuda"):
        ours = transpose_index(crow.cuda(), col.cuda(), cols)
    for a, b in zip(ours, transpose_index(crow, col, cols), strict=True):
        assert torch.equal(a.cpu(), b)


def test_streams_and_graphs():
    score, ids = torch.randn(50_000, device="cuda"), torch.randperm(50_000, device="cuda")
    crow, col = index_from_block_ids(ids[:9000].sort().values, BlockLayout(250, 200, 1, 1))

    def everything():
        drawn = sample(10**9, 3000, 5, score.device)
        return raw.select(score, ids, 1000, 3, True), drawn, *transpose_index(crow, col, 200)

    with _backends.use("cuda"):
        assert_streams_and_graphs_change_nothing(everything)
