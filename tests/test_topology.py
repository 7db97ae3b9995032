import re

import numpy as np
import pytest
import torch

import esl_sparse as esl
from esl_sparse import BlockLayout, BlockTopology
from esl_sparse.topology import (
    check_index,
    index_from_block_ids,
    random_absent_ids,
    resolve_block_size,
    transpose_index,
)

from . import oracle


@pytest.mark.parametrize(
    "given,rows,cols,device,block",
    [
        ("auto", 100, 100, "cpu", (4, 4)),
        ("auto", 100, 100, "cuda", (16, 16)),
        ("auto", 3, 1, "cpu", (4, 1)),
        ("auto", 9, 2, "cuda", (16, 2)),
        (8, 100, 100, "cpu", (8, 8)),
        ((2, 64), 100, 33, "cpu", (2, 64)),
        ([128, 1], 65, 5, "cpu", (128, 1)),
        (128, 64, 65, "cpu", (64, 128)),
        (16, 1, 1, "cpu", (1, 1)),
    ],
)
def test_resolve_block_size(given, rows, cols, device, block):
    assert resolve_block_size(given, rows, cols, device) == block


@pytest.mark.parametrize(
    "given,error",
    [
        (3, ValueError),
        (0, ValueError),
        (-4, ValueError),
        (256, ValueError),
        ((4, 6), ValueError),
        ("big", TypeError),
        (4.0, TypeError),
        (True, TypeError),
        ((4, 4.0), TypeError),
        ((4, True), TypeError),
        ((4, 4, 4), TypeError),
        (None, TypeError),
    ],
)
def test_a_bad_block_size(given, error):
    with pytest.raises(error, match=r"block_size: expected .*got " + re.escape(repr(given))):
        resolve_block_size(given, 64, 64, "cpu")


LAYOUTS = {
    "square": BlockLayout(8, 8, 4, 4),
    "overhang": BlockLayout(13, 18, 4, 8),
    "one": BlockLayout(1, 1, 1, 1),
    "single entries": BlockLayout(5, 7, 1, 1),
    "grouped convolution": BlockLayout(12, 27, 4, 2, groups=2, taps=9),
    "depthwise convolution": BlockLayout(6, 9, 1, 1, groups=6, taps=9),
}


def cells(layout):
    """Block id of every weight, ``[rows, cols]``, straight from the description of the format."""
    rows_per_group, cols_per_tap = layout.rows // layout.groups, layout.cols // layout.taps
    row = np.array(
        [
            r // rows_per_group * -(-rows_per_group // layout.bm) + r % rows_per_group // layout.bm
            for r in range(layout.rows)
        ]
    )
    col = np.array(
        [
            c // cols_per_tap * -(-cols_per_tap // layout.bn) + c % cols_per_tap // layout.bn
            for c in range(layout.cols)
        ]
    )
    return row[:, None] * (col.max() + 1) + col


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS.keys())
def test_layout(layout):
    ids = cells(layout)
    assert layout.blocks == ids.max() + 1 == len(np.unique(ids))
    weights = np.bincount(ids.ravel())  # per block
    assert layout.overhangs == bool((weights < layout.bm * layout.bn).any())
    every = BlockTopology.from_block_ids(torch.arange(layout.blocks), layout)
    np.testing.assert_array_equal(every.valid().sum((1, 2)), weights)
    assert every.nnz == layout.rows * layout.cols
    assert every.density == 1.0
    odd = BlockTopology.from_block_ids(torch.arange(1, layout.blocks, 2), layout)
    assert odd.nnz == weights[1::2].sum()
    assert odd.density == pytest.approx(weights[1::2].sum() / weights.sum())


def test_valid_entries_come_first():
    layout = BlockLayout(5, 6, 4, 4)
    corner = BlockTopology.from_block_ids(torch.tensor([3]), layout)
    expected = torch.zeros(1, 4, 4, dtype=torch.bool)
    expected[:, :1, :2] = True
    assert torch.equal(corner.valid(), expected)


def random_ids(layout, density=0.4, seed=0):
    return torch.from_numpy(np.flatnonzero(np.random.default_rng(seed).random(layout.blocks) < density))


@pytest.mark.parametrize("density", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS.keys())
def test_indices_in_row_and_column_order(layout, density):
    ids = random_ids(layout, density)
    topology = BlockTopology.from_block_ids(ids, layout)
    places = [divmod(i, layout.col_blocks) for i in ids.tolist()]
    crow, col = topology.crow_indices.tolist(), topology.col_indices.tolist()
    assert [(r, c) for r in range(layout.row_blocks) for c in col[crow[r] : crow[r + 1]]] == places
    ccol, row_t, offset = (t.tolist() for t in list(topology.index_tensors())[2:])
    assert [(r, c) for c in range(layout.col_blocks) for r in row_t[ccol[c] : ccol[c + 1]]] == sorted(
        places, key=lambda place: place[::-1]
    )
    assert [places[p] for p in offset] == sorted(places, key=lambda place: place[::-1])
    assert torch.equal(topology.block_ids(), ids)
    assert topology.row_indices().tolist() == [r for r, _ in places]
    assert topology.nnzb == len(ids)
    assert {t.dtype for t in topology.index_tensors()} == {torch.int32}


def test_block_ids_may_exceed_int32():
    layout = BlockLayout(2**17, 2**17, 1, 1)
    ids = torch.tensor([0, 2**31 - 1, 2**31, 2**34 - 1])
    topology = BlockTopology.from_block_ids(ids, layout)
    assert torch.equal(topology.block_ids(), ids)
    assert topology.col_indices.tolist() == [0, 2**17 - 1, 0, 2**17 - 1]


@pytest.mark.parametrize("layout", [LAYOUTS["square"], LAYOUTS["overhang"], LAYOUTS["one"]])
def test_dense_and_back(layout):
    ids = random_ids(layout, 0.6)
    topology = BlockTopology.from_block_ids(ids, layout)
    values = torch.randn(len(ids), layout.bm, layout.bn)
    values[~topology.valid()] = torch.nan
    dense = topology.to_dense(values)
    np.testing.assert_array_equal(dense, oracle.dense(values.numpy(), ids, (layout.rows, layout.cols)))
    full = torch.randn(layout.rows, layout.cols)
    gathered = topology.gather_dense(full)
    np.testing.assert_array_equal(gathered, oracle.blocks(full.numpy(), ids, (layout.bm, layout.bn)))


def test_dense_of_another_shape():
    topology = BlockTopology.from_block_ids(torch.arange(2), BlockLayout(8, 8, 4, 4))
    with pytest.raises(ValueError, match=r"dense: expected shape \(8, 8\), got \(8, 7\)"):
        topology.gather_dense(torch.zeros(8, 7))


@pytest.mark.parametrize(
    "ids,error,message",
    [
        ([0, 1, 4], ValueError, r"block_ids\[2\] = 4 is outside \[0, 4\)"),
        ([-1, 1], ValueError, r"block_ids\[0\] = -1 is outside"),
        ([0, 2, 1], ValueError, r"block_ids\[2\] = 1 does not exceed block_ids\[1\] = 2"),
        ([0, 2, 2], ValueError, r"block_ids\[2\] = 2 does not exceed"),
        ([[0, 1]], TypeError, r"block_ids: expected int64 of one dimension, got torch.int64 \(1, 2\)"),
        ([0.0], TypeError, r"block_ids: expected int64 of one dimension, got torch.float32"),
    ],
)
def test_bad_block_ids(ids, error, message):
    with pytest.raises(error, match=message):
        BlockTopology.from_block_ids(torch.tensor(ids), BlockLayout(8, 8, 4, 4))


# 3 x 4 blocks
@pytest.mark.parametrize(
    "crow,col,message",
    [
        ([0, 1, 2], [0, 1], r"crow_indices: expected 4 entries \(row blocks \+ 1\), got 3"),
        ([1, 1, 2, 2], [0, 1], r"crow_indices\[0\] = 1, expected 0"),
        ([0, 1, 2, 3], [0, 1], r"crow_indices\[3\] = 3, expected the number of blocks 2"),
        ([0, 2, 1, 2], [0, 1], r"crow_indices\[2\] = 1 is less than the entry before it"),
        ([0, 3, -1, 2], [0, 1], r"crow_indices\[2\] = -1 is less than"),
        ([0, 1, 2, 2], [0, 4], r"col_indices\[1\] = 4 is outside \[0, 4\)"),
        ([0, 1, 2, 2], [-1, 4], r"col_indices\[0\] = -1 is outside"),
        ([0, 1, 3, 3], [3, 1, 0], r"col_indices\[2\] = 0 does not exceed .* block row 1"),
        ([0, 1, 3, 3], [3, 1, 1], r"col_indices\[2\] = 1 does not exceed .* block row 1"),
        ([0, 9, 10, 13], [*range(4)] * 3 + [0], r"col_indices: 13 blocks, at most 12 possible"),
        ([[0, 1, 2, 2]], [0, 1], r"crow_indices: expected int32 or int64 of one dimension"),
        ([0, 1, 2, 2], [0.0, 1.0], r"col_indices: expected int32 or int64 .* torch.float32"),
    ],
)
@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_a_bad_index_is_named(crow, col, message, dtype):
    layout = BlockLayout(12, 16, 4, 4)
    crow, col = torch.tensor(crow, dtype=dtype), torch.tensor(col)
    with pytest.raises(ValueError, match=message):
        check_index(crow, col if col.is_floating_point() else col.to(dtype), layout)


def test_an_index_must_be_tensors():
    with pytest.raises(TypeError, match="crow_indices: expected a tensor, got list"):
        check_index([0, 0], torch.zeros(0, dtype=torch.int32), BlockLayout(4, 4, 4, 4))


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS.keys())
def test_a_good_index_passes(layout):
    for density in (0.0, 0.4, 1.0):
        check_index(*index_from_block_ids(random_ids(layout, density), layout), layout)


def test_assign_writes_in_place():
    layout = BlockLayout(13, 18, 4, 4)
    topology = BlockTopology.from_block_ids(torch.tensor([0, 3, 7]), layout)
    buffers = list(topology.index_tensors())
    topology.assign_(torch.tensor([1, 2, 19]))
    assert topology.block_ids().tolist() == [1, 2, 19]
    assert all(a is b for a, b in zip(buffers, topology.index_tensors(), strict=True))
    expected = transpose_index(topology.crow_indices, topology.col_indices, layout.col_blocks)
    for own, fresh in zip(buffers[2:], expected, strict=True):
        assert torch.equal(own, fresh)
    for bad, message in [
        ([1, 2], r"block_ids: expected 3 ids \(the layer's own count\), got 2"),
        ([1, 2, 20], r"block_ids\[2\] = 20 is outside"),
        ([2, 1, 3], r"block_ids\[1\] = 1 does not exceed"),
    ]:
        with pytest.raises(ValueError, match=message):
            topology.assign_(torch.tensor(bad))
        assert topology.block_ids().tolist() == [1, 2, 19]


@pytest.mark.parametrize("total", [1, 10, 1000])
@pytest.mark.parametrize("active", [0.0, 0.3, 0.9, 1.0])
@pytest.mark.parametrize("part", [0.0, 0.1, 0.5, 1.0])
def test_random_absent_ids(total, active, part):
    taken = torch.from_numpy(np.flatnonzero(np.random.default_rng(0).random(total) < active))
    count = int(part * (total - len(taken)))
    drawn = random_absent_ids(taken, total, count)
    assert drawn.dtype == torch.int64
    assert len(drawn) == count == len(drawn.unique())
    assert torch.equal(drawn, drawn.sort().values)
    assert not torch.isin(drawn, taken).any()
    assert ((drawn >= 0) & (drawn < total)).all()


def test_random_absent_ids_are_uniform():
    taken = torch.tensor([0, 4, 5, 11])
    for count in (1, 4):  # both ways of drawing
        times = torch.zeros(12)
        for _ in range(4000):
            times[random_absent_ids(taken, 12, count)] += 1
        assert not times[taken].any()
        absent = times[[1, 2, 3, 6, 7, 8, 9, 10]]
        expected = 4000 * count / 8
        chi_square = ((absent - expected) ** 2 / expected).sum()
        assert chi_square < 24.3  # 7 degrees of freedom: exceeded once in a thousand


def test_random_absent_ids_of_a_huge_weight():
    taken = torch.arange(0, 10**12, 10**10)
    drawn = random_absent_ids(taken, 10**12, 1000)  # a permutation of 10**12 ids would not fit
    assert len(drawn.unique()) == 1000
    assert drawn.max() > 2**32
    assert not torch.isin(drawn, taken).any()


def test_random_absent_ids_follow_the_generator():
    def draw(seed):
        return random_absent_ids(torch.tensor([3]), 1000, 20, torch.Generator().manual_seed(seed))

    assert torch.equal(draw(1), draw(1))
    assert not torch.equal(draw(1), draw(2))
    with pytest.raises(ValueError, match=r"count: expected 0 to 2 \(absent places\), got 3"):
        random_absent_ids(torch.tensor([1]), 3, 3)


@pytest.mark.parametrize(
    "rows, cols, density", [(1, 1, 1.0), (7, 300, 0.1), (300, 7, 0.5), (40, 50, 0.0), (700, 600, 0.3)]
)
def test_the_column_index_of_every_backend(backend, poison, threads, rows, cols, density):
    """Against a stable sort in NumPy; 126,000 blocks give each of four threads a share."""
    dense = np.random.default_rng(0).random((rows, cols)) < density
    row, col = dense.nonzero()
    crow = np.concatenate([[0], dense.sum(1).cumsum()])
    order = np.argsort(col, kind="stable")
    for n in (1, 4):
        threads(n)
        ccol, row_t, offset_t = transpose_index(torch.tensor(crow).int(), torch.tensor(col).int(), cols)
        assert [t.dtype for t in (ccol, row_t, offset_t)] == [torch.int32] * 3
        np.testing.assert_array_equal(ccol, np.concatenate([[0], dense.sum(0).cumsum()]))
        np.testing.assert_array_equal(offset_t, order)
        np.testing.assert_array_equal(row_t, row[order])


@pytest.mark.parametrize("field", BlockTopology._fields[1:])
@pytest.mark.parametrize(
    "spoil",
    [
        lambda index: index.long(),
        lambda index: index[:-1],
        lambda index: torch.stack([index, index], 1)[:, 0],
        lambda index: index.to("meta"),
    ],
)
def test_arrays_that_kernels_cannot_read_are_refused(field, spoil):
    topology = BlockTopology.from_block_ids(torch.arange(6), BlockLayout(6, 8, 2, 2))
    wrong = topology._replace(**{field: spoil(getattr(topology, field))})
    with pytest.raises(ValueError, match=r"topology: expected (contiguous|on)"):
        esl.functional.linear(torch.ones(3, 8), torch.ones(6, 2, 2), None, wrong)


@pytest.mark.parametrize(
    "layout, message",
    [
        (BlockLayout(0, 8, 1, 1), "rows to be an int of 1 at least, got 0"),
        (BlockLayout(8, 8.0, 1, 1), "cols to be an int of 1 at least, got 8.0"),
        (BlockLayout(8, 8, 3, 1), "powers of two up to 128"),
        (BlockLayout(8, 8, 1, 256), "powers of two up to 128"),
        (BlockLayout(7, 8, 1, 1, groups=2), "rows in whole groups"),
        (BlockLayout(2**40, 8, 1, 1), "fewer than 2147483647 rows"),
    ],
)
def test_layouts_that_cannot_be(layout, message):
    with pytest.raises(ValueError, match=message):
        BlockTopology.from_block_ids(torch.arange(0), layout)
