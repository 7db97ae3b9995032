"""Ids, counts and reaches that 32 bits do not hold, of few blocks: nothing of that size is ever made."""

import pytest
import torch
from torch import nn

import esl_sparse as esl
from esl_sparse import BlockLayout, BlockTopology, _native
from esl_sparse.ops.conv2d import Geometry
from esl_sparse.ops.select import largest, smallest
from esl_sparse.ops.select.topk import TopK
from esl_sparse.rewire import EverActive
from esl_sparse.rewire.sorted_ids import contains_sorted, merge_sorted
from esl_sparse.topology import check_block_ids, check_layout, random_absent_ids

TOTALS = (2**31 - 1, 2**31, 2**40, 2**62)


def ends(total):
    """Ids at both ends of the range and around those of 32 bits."""
    near = [0, 1, 2**31 - 1, 2**31, 2**32 - 1, 2**32, total // 2, total - 2, total - 1]
    return torch.tensor(sorted({i for i in near if i < total}))


@pytest.mark.parametrize(
    "layout",
    [
        BlockLayout(2**20, 2**20, 1, 1),
        BlockLayout(2**22, 2**23 - 3, 4, 8),  # overhangs
        BlockLayout(2**18, 9 * 2**19, 1, 1, groups=4, taps=9),
    ],
    ids=str,
)
def test_a_topology_of_2_to_the_40_places(layout):
    assert layout.blocks >= 2**40
    ids = ends(layout.blocks)
    topology = BlockTopology.from_block_ids(ids, layout)
    assert torch.equal(topology.block_ids(), ids)
    places = [divmod(i, layout.col_blocks) for i in ids.tolist()]
    assert list(zip(topology.row_indices().tolist(), topology.col_indices.tolist(), strict=True)) == places
    by_column = sorted(range(len(places)), key=lambda p: places[p][::-1])
    assert topology.block_offsets_t.tolist() == by_column
    assert topology.row_indices_t.tolist() == [places[p][0] for p in by_column]
    narrow = layout.cols // layout.taps % layout.bn or layout.bn
    in_last = [narrow if c % (layout.col_blocks // layout.taps) == layout.col_blocks // layout.taps - 1 else layout.bn
               for _, c in places]  # fmt: skip
    assert topology.nnz == layout.bm * sum(in_last)
    assert topology.density == topology.nnz / (layout.rows * layout.cols)


@pytest.mark.parametrize("total", TOTALS)
def test_absent_ids(total):
    active = ends(total)
    drawn = random_absent_ids(active, total, 1000, torch.Generator().manual_seed(1))
    assert len(drawn) == 1000 and bool((drawn[1:] > drawn[:-1]).all())
    assert drawn[0] >= 0 and drawn[-1] < total and not torch.isin(drawn, active).any()
    assert abs(float(drawn.double().mean()) / total - 0.5) < 0.05  # 5 standard deviations


def test_sets_of_neighbours_far_out():
    """A float64 would not tell them apart."""
    first = 2**62 - 10
    active = torch.arange(first, 2**62, 2)
    assert contains_sorted(active, torch.arange(first, 2**62)).tolist() == [True, False] * 5
    merged, from_more = merge_sorted(active, active + 1)
    assert torch.equal(merged, torch.arange(first, 2**62)) and from_more.tolist() == [False, True] * 5


@pytest.mark.parametrize("total", TOTALS)
def test_ever_active(total):
    ids = ends(total)
    record = EverActive.of(ids[::2], total).including(ids)
    assert not record.is_bitmap and record.size == len(ids)
    assert record.contains(ids).all()
    absent = random_absent_ids(ids, total, 50, torch.Generator().manual_seed(2))
    assert not record.contains(absent).any()
    never = record.random_never_active(100, torch.Generator().manual_seed(3))
    assert not torch.isin(never, ids).any() and bool((never[1:] > never[:-1]).all()) and never[-1] < total
    again = EverActive.from_state_dict(record.state_dict(), total)
    assert torch.equal(again.including(absent).data.long(), torch.cat([ids, absent]).sort().values)


@pytest.mark.parametrize("first", [2**31 - 5, 2**40, 2**62])
def test_ids_that_are_selected(first):
    score = torch.tensor([3.0, 1.0, 2.0, 1.0, 5.0, 4.0])
    ids = first + torch.tensor([4, 0, 2, 1, 5, 3])
    assert ids[smallest(score, ids, 2, 0)].sort().values.tolist() == [first, first + 1]
    assert ids[largest(score, ids, 2, 0)].sort().values.tolist() == [first + 3, first + 5]
    best = TopK(2, 0)
    for start in (0, 3):
        best.push(score[start : start + 3], first + start)
    assert best.result()[0].tolist() == [first + 4, first + 5]


def test_more_blocks_than_an_index_holds():
    with pytest.raises(ValueError, match=f"at most {2**31 - 1} active blocks, got {2**31}"):
        check_block_ids(torch.empty(2**31, dtype=torch.int64, device="meta"), BlockLayout(2**20, 2**20, 1, 1))
    with pytest.raises(ValueError, match="fewer than 2147483647 rows and columns of blocks"):
        check_layout(BlockLayout(1, 2**31, 1, 1))
    with pytest.raises(ValueError, match=f"got {2**33}; use larger blocks or a lower density"):
        esl.nn.SparseLinear(2**17, 2**17, density=0.5, block_size=1)
    with pytest.raises(ValueError, match="fewer than 2147483647 rows and columns of blocks"):
        esl.nn.SparseLinear(2**32, 1, density=0.5, block_size=1)


def test_sparsify_refuses_what_an_index_cannot_hold():
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(2**17, 2**17, bias=False, device="meta"))
    before = [*model.children(), *model.parameters()]
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with pytest.raises(ValueError, match="use larger blocks or a lower density"):
        esl.sparsify(model, density=0.5, block_size=1, distribution="uniform", optimizer=optimizer)
    after = [*model.children(), *optimizer.param_groups[0]["params"]]
    assert all(a is b for a, b in zip(after, before, strict=True))


@pytest.mark.skipif(not _native.available(), reason="needs the compiled kernels")
@pytest.mark.parametrize("packed", [False, True])
def test_taps_too_far_apart(packed):
    """Native kernels count the words between a pixel's taps in 32 bits."""
    from esl_sparse.ops.conv2d.native import _check_reach

    near = Geometry.of((2, 2**20), (2, 1))
    _check_reach(near, 2**11 - 1)
    with pytest.raises(ValueError, match=r"reach over 2147483647 .* these reach over 2147485696"):
        _check_reach(near, 2**11)
    conv = esl.nn.SparseConv2d(1, 1, 3, padding=2**29, dilation=2**29, density=1.0, block_size=1)
    x = torch.ones(1, 1, 1, 1, 1)
    with pytest.raises(ValueError, match="expected taps that reach over"):
        conv(esl.functional.pack(x, "binary") if packed else x)
