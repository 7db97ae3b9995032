import itertools
import math

import numpy as np
import pytest
import torch

from esl_sparse import _backends, arena
from esl_sparse.ops._library import raw
from esl_sparse.ops.select import TopK, largest, smallest
from esl_sparse.ops.select.reference import splitmix64

from ..conftest import available

pytestmark = pytest.mark.usefixtures("poison")

NATIVE = [backend for backend in available() if backend.startswith("native")]
SELECT = {"smallest": smallest, "largest": largest}


def tie_order(block_id: int, seed: int) -> int:
    """Splitmix64 of an id, as a signed number: written out for Python's integers."""
    mask = (1 << 64) - 1
    z = (block_id + seed) * 0x9E3779B97F4A7C15 & mask
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 & mask
    z = (z ^ z >> 27) * 0x94D049BB133111EB & mask
    z ^= z >> 31
    return z - (1 << 64) if z >> 63 else z


def ordered(name: str, score, ids, seed: int) -> list[int]:
    """All ids in the order in which they are chosen."""
    sign = 1 if name == "smallest" else -1
    pairs = zip(score.float().tolist(), ids.tolist(), strict=True)
    return [i for _, i in sorted(pairs, key=lambda pair: (sign * pair[0], tie_order(pair[1], seed)))]


def expected(name: str, score, ids, count: int, seed: int) -> set[int]:
    return set(ordered(name, score, ids, seed)[:count])


def scores(kind: str, n: int) -> torch.Tensor:
    """Scores with few or many ties, or with all that floats have."""
    special = [0.0, -0.0, math.inf, -math.inf, 1e-45, -1e-45, 3.4e38, -3.4e38, 1.0, -1.0]
    return {
        "equal": lambda: torch.full((n,), -2.5),
        "zeros": lambda: torch.where(torch.rand(n) < 0.5, 0.0, -0.0),
        "three": lambda: torch.randint(-1, 2, (n,)).float(),
        "normal": lambda: torch.randn(n),
        "close": lambda: 1 + torch.randint(50, (n,)) * 2.0**-23,
        "special": lambda: torch.tensor(special)[torch.randint(len(special), (n,))],
        "bits": lambda: torch.randint(-(2**31), 2**31, (n,)).int().view(torch.float32).nan_to_num(nan=0.5),
    }[kind]()


KINDS = ["equal", "zeros", "three", "normal", "close", "special", "bits"]


@pytest.mark.parametrize("name", SELECT)
def test_a_promise_of_finite_scores_changes_nothing(backend, name):
    score, ids = scores("special", 300), torch.randperm(300)
    for count in (0, 7, 300):
        promised = SELECT[name](score, ids, count, 3, finite=True)
        assert torch.equal(promised.sort().values, SELECT[name](score, ids, count, 3).sort().values)


@pytest.mark.parametrize("seed", [0, 1, 2**62 - 1, -3])
def test_hash_is_splitmix64(seed):
    ids = torch.tensor([0, 1, 2, 12345, 2**40 + 7])
    assert splitmix64(ids, seed).tolist() == [tie_order(i, seed) for i in ids.tolist()]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", SELECT)
def test_chooses_what_sorting_chooses(backend, name, kind):
    for n in (0, 1, 64, 65, 300):
        score, ids = scores(kind, n), torch.arange(n).flip(0) * 2**41
        order = ordered(name, score, ids, seed=n)
        for count in sorted({0, 1, n // 3, n - 1, n} & {*range(n + 1)}):
            chosen = SELECT[name](score, ids, count, seed=n)
            assert (chosen.shape, chosen.dtype) == ((count,), torch.int64)
            assert set(ids[chosen].tolist()) == set(order[:count])


@pytest.mark.parametrize("name", SELECT)
def test_permuting_the_input_permutes_the_choice(backend, name):
    ids, score = torch.arange(500), torch.randint(3, (500,)).float()
    order = torch.randperm(500)
    chosen = ids[SELECT[name](score, ids, 190, seed=1)]
    permuted = ids[order][SELECT[name](score[order], ids[order], 190, seed=1)]
    assert set(chosen.tolist()) == set(permuted.tolist())


def test_seed_decides_ties_evenly(backend):
    ids, score = torch.arange(400), torch.zeros(400)
    times = torch.zeros(400)
    for seed in range(400):
        times[smallest(score, ids, 100, seed)] += 1
    assert abs(times - 100).max() < 45  # five standard deviations of 400 draws with p = 1/4


@pytest.mark.parametrize("kind", ["three", "normal", "equal"])
@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize("backend", NATIVE, indirect=True)
def test_the_choice_does_not_depend_on_the_thread_count(backend, threads, kind, count):
    score, ids = scores(kind, 100_003), torch.randperm(100_003)
    one = largest(score, ids, 30_000, 5)
    threads(count)
    assert torch.equal(largest(score, ids, 30_000, 5), one)
    with _backends.use("reference"):
        assert torch.equal(largest(score, ids, 30_000, 5).sort().values, one)


@pytest.mark.parametrize("backend", NATIVE, indirect=True)
def test_equal_ids_are_a_wrong_choice_but_no_crash(backend):
    chosen = smallest(torch.zeros(200), torch.zeros(200, dtype=torch.int64), 70, 0)
    assert len(set(chosen.tolist())) == 70


@pytest.mark.parametrize("backend", NATIVE, indirect=True)
def test_takes_no_memory_by_the_element(backend):
    score, ids = torch.randn(1 << 20), torch.arange(1 << 20)
    arena.release()
    before = arena.bytes
    largest(score, ids, 10, 0)
    assert arena.bytes - before < 1 << 16


def test_scores_are_compared_in_float32(backend):
    score = torch.tensor([1.0, 1.0 + 1e-12, 0.5], dtype=torch.float64)
    chosen = [set(smallest(score, torch.arange(3), 2, seed).tolist()) for seed in range(20)]
    assert {0, 2} in chosen
    assert {1, 2} in chosen


@pytest.mark.parametrize("layout", ["expanded", "strided", "bfloat16"])
def test_other_tensors(backend, layout):
    score, ids = torch.randn(100), torch.arange(100)
    if layout == "expanded":
        score = score[:1].expand(100)
    elif layout == "strided":
        score, ids = score.repeat_interleave(2)[::2], ids.repeat_interleave(2)[::2]
    else:
        score = score.bfloat16()
    assert set(ids[smallest(score, ids, 40, 3)].tolist()) == expected("smallest", score, ids, 40, 3)


@pytest.mark.parametrize("count", [0, 1, 3])
@pytest.mark.parametrize("name", SELECT)
def test_nan_scores_are_refused(backend, name, count):
    with pytest.raises(ValueError, match="2 of 3 are NaN"):
        SELECT[name](torch.tensor([1.0, torch.nan, -torch.nan]), torch.arange(3), count, 0)


def test_wrong_arguments():
    score, ids = torch.rand(5), torch.arange(5)
    table = [
        ((score.int(), ids, 1, 0), TypeError, "score: expected a floating-point tensor, got torch.int32"),
        ((score, ids.int(), 1, 0), TypeError, "ids: expected torch.int64, got torch.int32"),
        ((score, ids.to("meta"), 1, 0), ValueError, "ids: expected on score's device cpu, got meta"),
        ((score, ids[1:], 1, 0), ValueError, r"cannot choose 1 of scores \(5,\) and ids \(4,\)"),
        ((score, ids, 6, 0), ValueError, "largest: cannot choose 6 of scores"),
        ((score, ids, -1, 0), ValueError, "cannot choose -1"),
    ]
    for arguments, error, message in table:
        with pytest.raises(error, match=message):
            largest(*arguments)


def test_opcheck(backend):
    for score in (torch.randn(50), torch.zeros(50)):
        for count in (0, 7):
            torch.library.opcheck(raw.select.default, (score, torch.arange(50), count, 3, True))


# ---- TopK


def pieces(n: int, rng: np.random.Generator) -> list[slice]:
    """Cut 0..n at random, empty pieces among them, in random order."""
    cuts = [0, *sorted(rng.integers(0, n + 1, rng.integers(0, 12))), n]
    cut = [slice(int(a), int(b)) for a, b in itertools.pairwise(cuts)]
    return [cut[i] for i in rng.permutation(len(cut))]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("count", [0, 1, 7, 70, 1000])
def test_pushes_add_up_to_one_selection(backend, kind, count):
    rng = np.random.default_rng(count)
    for n in (0, 40, 300):
        score, first = scores(kind, n), 2**40
        ids = torch.arange(first, first + n)
        candidate = score.isfinite()
        m = min(count, int(candidate.sum()))
        want = expected("largest", score[candidate], ids[candidate], m, 11)
        top = TopK(count, 11)
        for piece in pieces(n, rng):
            top.push(score[piece].clone(), first + piece.start)
        found, its_scores = top.result()
        assert (found.dtype, its_scores.dtype) == (torch.int64, torch.float32)
        assert found.tolist() == sorted(want)
        assert torch.equal(its_scores, score[found - first])
        assert top.nonfinite == int((score == math.inf).sum())
        again, _ = top.result()
        assert torch.equal(again, found)


def test_pushing_goes_on_after_a_result(backend):
    score = scores("three", 600)
    top = TopK(100, 4)
    top.push(score[:350], 0)
    top.result()
    top.push(score[350:], 350)
    found, _ = top.result()
    assert set(found.tolist()) == expected("largest", score, torch.arange(600), 100, 4)


@pytest.mark.parametrize("count", [0, 2, 100])
def test_what_is_no_candidate(backend, count):
    top = TopK(count, 0)
    for first in (0, 10, 20):
        top.push(torch.tensor([torch.nan, 1.0, torch.inf, -torch.inf, 2.0 + first, -torch.nan]), first)
    assert top.nonfinite == 9
    found, its_scores = top.result()
    assert found.tolist() == {0: [], 2: [14, 24], 100: [1, 4, 11, 14, 21, 24]}[count]
    assert its_scores.tolist() == {0: [], 2: [12, 22], 100: [1, 2, 1, 12, 1, 22]}[count]


@pytest.mark.parametrize("kind", ["equal", "normal", "three"])
def test_memory_is_bounded(kind):
    count, push = 10_000, 4_000
    top = TopK(count, 0)
    for first in range(0, 200_000, push):
        top.push(scores(kind, push) + first * (kind == "normal"), first)
        assert top._ids.numel() <= 2 * count + push


def test_wrong_pushes():
    with pytest.raises(ValueError, match="count: expected at least 0, got -1"):
        TopK(-1, 0)
    for bad in (torch.zeros(3, dtype=torch.float64), torch.zeros(3, 1)):
        with pytest.raises(TypeError, match="scores: expected float32 of one dimension"):
            TopK(1, 0).push(bad, 0)
