from typing import NamedTuple

import numpy as np
import pytest
import torch

from esl_sparse import BlockLayout, PackedSpikes
from esl_sparse.ops._library import raw
from esl_sparse.ops.block_score import BlockScorer, LayerCall, op

from .. import oracle
from ..conftest import available

pytestmark = pytest.mark.usefixtures("poison")

NATIVE = [backend for backend in available() if backend.startswith("native")]


class Case(NamedTuple):
    rows: int
    cols: int
    block: tuple[int, int]
    lanes: tuple[tuple[int, int], ...] = ((2, 5),)  # (T, B) of each call
    rate: float = 0.2


CASES = {
    "one-channel": Case(1, 1, (1, 1), ((1, 1),), 1.0),
    "1x1": Case(5, 7, (1, 1), ((3, 30),)),
    "1x1-two-pieces": Case(100, 50, (1, 1), ((1, 65),)),
    "1x4": Case(9, 10, (1, 4)),
    "4x1": Case(10, 9, (4, 1), ((3, 7),)),
    "4x4": Case(64, 64, (4, 4), ((2, 64),)),
    "4x4-overhang": Case(67, 18, (4, 4), ((3, 21),)),
    "16x16": Case(130, 300, (16, 16), ((1, 70),)),
    "64x2": Case(129, 35, (64, 2)),
    "128x128": Case(300, 140, (128, 128), ((2, 1),)),
    "128x1": Case(129, 17, (128, 1)),
    "2x128": Case(3, 129, (2, 128)),
    "one-sample": Case(13, 18, (4, 4), ((9, 1),)),
    "many-lanes": Case(5, 6, (2, 2), ((3, 900),)),
    "128x2-many-lanes": Case(300, 5, (128, 2), ((3, 300),)),
    "no-samples": Case(9, 10, (4, 4), ((1, 0),)),
    "no-steps": Case(9, 10, (4, 4), ((0, 4),)),
    "silent": Case(12, 20, (4, 4), ((1, 40),), 0.0),
    "firing": Case(12, 20, (4, 4), ((3, 40),), 1.0),
    "three-calls": Case(70, 40, (4, 4), ((1, 40), (2, 33), (1, 1))),
    "three-calls-one-empty": Case(70, 40, (16, 1), ((1, 64), (2, 0), (4, 3))),
}
# form -> kind of each call in turn: planes of spikes and their scale, or (0, 1) for float rows
FORMS = {
    "packed": [(1, 1.0)],
    "scaled": [(1, 0.25), (1, 1.0)],
    "two-planes": [(2, 0.5)],
    "float": [(0, 1.0)],
    "mixed": [(1, 1.0), (0, 1.0), (2, 1.0)],
}


class Problem:
    """Random calls of a case, and their scores in float64 by numpy from the dense definition."""

    def __init__(self, case: Case, form: str = "packed", dtype: torch.dtype = torch.float32) -> None:
        rng = np.random.default_rng(0)
        self.layout = BlockLayout(case.rows, case.cols, *case.block)
        self.calls = []
        self.G = np.zeros((case.rows, case.cols))
        self.bound = np.zeros((case.rows, case.cols))
        for i, (T, B) in enumerate(case.lanes):
            planes, scale = FORMS[form][i % len(FORMS[form])]
            grad = torch.from_numpy(rng.standard_normal((T * B, case.rows))).to(dtype)
            if planes:
                fired = rng.random((T * B, case.cols)) < case.rate
                levels = rng.integers(1, 2**planes, fired.shape) * fired
                x = levels * scale
                words = torch.from_numpy(oracle.pack(levels.reshape(T, B, case.cols, 1, 1), planes))
                carrier = torch.zeros(1).expand(*words.shape[1:], 64)
                self.calls.append(LayerCall(PackedSpikes(carrier, words, T, B, scale), grad))
            else:
                rows = torch.from_numpy(rng.standard_normal((T * B, case.cols))).float()
                x = rows.double().numpy()
                self.calls.append(LayerCall(rows, grad))
            self.G += grad.double().numpy().T @ x
            self.bound += np.abs(grad.double().numpy()).T @ np.abs(x)

    def mean(self, values: np.ndarray) -> np.ndarray:
        lay = self.layout
        scores = np.empty((lay.row_blocks, lay.col_blocks))
        for r, c in np.ndindex(*scores.shape):
            scores[r, c] = values[r * lay.bm :, c * lay.bn :][: lay.bm, : lay.bn].mean()
        return scores

    def check(self, scores: torch.Tensor, tolerance: float = 1e-6) -> None:
        error = np.abs(scores.double().numpy() - self.mean(np.abs(self.G)))
        assert (error <= tolerance * self.mean(self.bound)).all(), error.max()


def scores_of(calls, layout):
    strips = list(BlockScorer(calls, layout).strips())
    assert [first for first, _ in strips] == list(np.cumsum([0, *(len(s) for _, s in strips)])[:-1])
    scores = torch.cat([s for _, s in strips])
    assert scores.dtype == torch.float32
    assert scores.shape == (layout.row_blocks, layout.col_blocks)
    return scores


def arguments(p):
    """Those of the raw op, but for the block rows."""
    x = [x.words if isinstance(x, PackedSpikes) else x for x, _ in p.calls]
    T, B, scale = ([*each] for each in zip(*(op._lanes(x) for x, _ in p.calls), strict=True))
    return x, [grad for _, grad in p.calls], T, B, scale, *p.layout[:4]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("case", CASES)
def test_agrees_with_the_dense_gradient(backend, case, form):
    p = Problem(CASES[case], form)
    p.check(scores_of(p.calls, p.layout))


@pytest.mark.parametrize(
    "backend,dtype",
    [
        (backend, dtype)
        for backend in available()
        for dtype in (torch.bfloat16, torch.float16, torch.float64)
        # The interpreter multiplies bfloat16 wrongly.
        if backend == "reference" or dtype == (torch.float16 if backend == "triton" else torch.bfloat16)
    ],
    indirect=["backend"],
)
@pytest.mark.parametrize("form", ["packed", "mixed"])
@pytest.mark.parametrize("case", ["4x4-overhang", "three-calls", "1x1-two-pieces", "no-samples"])
def test_other_gradients(backend, case, form, dtype):
    p = Problem(CASES[case], form, dtype)
    p.check(scores_of(p.calls, p.layout))


def test_gradients_of_different_types(backend):
    p = Problem(CASES["three-calls"])
    narrow = torch.float16 if backend == "triton" else torch.bfloat16
    wide = LayerCall(p.calls[0].x, p.calls[0].grad.to(narrow))
    same = LayerCall(p.calls[0].x, wide.grad.float())
    torch.testing.assert_close(
        scores_of([wide, *p.calls[1:]], p.layout), scores_of([same, *p.calls[1:]], p.layout)
    )


@pytest.mark.parametrize("strip_bytes", [1, 4 * 64 * 40])
@pytest.mark.parametrize("form", ["packed", "float"])
@pytest.mark.parametrize("case", ["1x1-two-pieces", "16x16", "64x2", "128x128", "4x4-overhang"])
def test_strips(backend, case, form, strip_bytes):
    """However high a strip is, scores are the same; none is higher than its memory allows."""
    p = Problem(CASES[case], form)
    strips = [s for _, s in BlockScorer(p.calls, p.layout, strip_bytes).strips()]
    height = max(64, p.layout.bm) // p.layout.bm
    if strip_bytes == 1:
        assert {len(s) for s in strips[:-1]} <= {height}
        assert len(strips[-1]) <= height
    p.check(torch.cat(strips))


@pytest.mark.parametrize("case", ["1x1-two-pieces", "4x4-overhang", "64x2", "128x1"])
def test_any_block_rows(backend, case):
    """The raw op gives the block rows that it is asked for, also those that a strip would not start or end with."""
    p = Problem(CASES[case])
    whole = scores_of(p.calls, p.layout)
    for first in range(p.layout.row_blocks):
        for count in {1, 3, p.layout.row_blocks - first}:
            if first + count <= p.layout.row_blocks:
                some = raw.block_score(*arguments(p), first, count)
                size = float(p.bound.max())  # what a sum's rounding goes with
                torch.testing.assert_close(some, whole[first : first + count], rtol=1e-6, atol=1e-7 * size)


def test_a_strip_is_the_caller_s_own(backend):
    p = Problem(CASES["16x16"])
    scorer = BlockScorer(p.calls, p.layout)
    for _ in range(2):
        for _, scores in scorer.strips():
            p.check(scores) if len(scores) == p.layout.row_blocks else None
            scores.fill_(torch.nan)


@pytest.mark.parametrize("rate", [0.3, 0.8])
@pytest.mark.parametrize("backend", NATIVE, indirect=True)
def test_events_serve_what_fires_rarely(backend, monkeypatch, rate):
    served = []
    run = op.native.block_score
    monkeypatch.setattr(op.native, "block_score", lambda *a: served.append(1) or run(*a))
    p = Problem(CASES["16x16"]._replace(rate=rate))
    p.check(scores_of(p.calls, p.layout))
    assert bool(served) == (rate < 0.5)


@pytest.mark.parametrize("case", ["1x1-two-pieces", "128x128", "128x2-many-lanes", "three-calls", "firing"])
@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize("backend", NATIVE, indirect=True)
def test_bits_do_not_depend_on_the_thread_count(backend, threads, monkeypatch, case, count):
    monkeypatch.setattr(op, "_EVENT_RATE", 1.0)
    case = CASES[case]
    p = Problem(case._replace(cols=case.cols * 20, lanes=(*case.lanes, (1, 64))))
    expected = scores_of(p.calls, p.layout)
    threads(count)
    assert torch.equal(scores_of(p.calls, p.layout), expected)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_nan_and_infinity_propagate(backend, bad):
    """To the blocks that saw the bad gradient with a spike, and to no other row block."""
    p = Problem(CASES["4x4-overhang"]._replace(rate=0.4))
    ((spikes, grad),) = p.calls
    grad[7, 21] = bad
    scores = scores_of(p.calls, p.layout)
    others = torch.arange(p.layout.row_blocks) != 21 // 4
    assert scores[others].isfinite().all()
    fired = torch.nn.functional.pad(spikes.unpack().flatten(0, 1)[7], (0, 2)).view(-1, 4).any(1)
    assert fired.any()
    assert not scores[21 // 4][fired].isfinite().any()


def test_strides_do_not_matter(backend):
    p = Problem(CASES["three-calls"], "mixed")
    strided = []
    for x, grad in p.calls:
        if isinstance(x, PackedSpikes):
            words = x.words.repeat_interleave(2, -1)[..., ::2]
            x = PackedSpikes(x.carrier, words, x.T, x.B, x.scale)
        else:
            x = x.t().contiguous().t()
        strided.append(LayerCall(x, grad.t().contiguous().t()))
    assert torch.equal(scores_of(strided, p.layout), scores_of(p.calls, p.layout))


def shifted(call):
    """The same call at addresses that are no multiples of 16."""

    def moved(x):
        return torch.cat([x.new_zeros(1), x.flatten()])[1:].view(x.shape)

    x, grad = call
    if isinstance(x, PackedSpikes):
        return LayerCall(PackedSpikes(x.carrier, moved(x.words), x.T, x.B, x.scale), moved(grad))
    return LayerCall(moved(x), moved(grad))


@pytest.mark.parametrize("form", ["packed", "float"])
def test_addresses_do_not_matter(backend, form):
    p = Problem(CASES["16x16"], form)
    p.check(scores_of([shifted(call) for call in p.calls], p.layout))


@pytest.mark.parametrize("form", FORMS)
def test_opcheck(backend, form):
    p = Problem(CASES["three-calls"], form)
    torch.library.opcheck(raw.block_score.default, (*arguments(p), 1, 3))


def test_wrong_arguments():
    p = Problem(CASES["4x4-overhang"])
    ((x, grad),) = p.calls
    rows = torch.rand(63, 18)
    table = [
        ([], ValueError, r"calls: expected at least one"),
        ([(rows.int(), grad)], TypeError, r"calls\[0\].x: expected PackedSpikes or a floating.*int32"),
        ([(None, grad)], TypeError, r"calls\[0\].x: .* got NoneType"),
        ([(x, grad), (x, grad.int())], TypeError, r"calls\[1\].grad: expected a floating.*int32"),
        ([(rows[:, 1:], grad)], ValueError, r"calls\[0\].x: expected shape \[N, 18\], got \(63, 17\)"),
        ([(rows[1:], grad)], ValueError, r"calls\[0\].grad: expected shape \(62, 67\), got \(63, 67\)"),
        ([(x, grad[:, 1:])], ValueError, r"calls\[0\].grad: expected shape \(63, 67\), got \(63, 66\)"),
        ([(rows.to("meta"), grad)], ValueError, r"calls\[0\]: expected x and grad on cpu, got meta and cpu"),
    ]
    for calls, error, message in table:
        with pytest.raises(error, match=message):
            BlockScorer([LayerCall(*call) for call in calls], p.layout)
    with pytest.raises(ValueError, match="expected spikes of shape"):
        BlockScorer(p.calls, p.layout._replace(cols=17))
    for bad in ({"groups": 1, "taps": 9}, {"groups": 67}):
        with pytest.raises(ValueError, match="layout: expected that of a linear layer"):
            BlockScorer(p.calls, p.layout._replace(**bad))
