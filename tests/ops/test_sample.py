"""Different numbers by chance: every implementation draws those of the definition, and every set is equally likely."""

import itertools
import math
from collections import Counter

import pytest
import torch

from esl_sparse import _backends, _native
from esl_sparse.sampling import distinct, sample

pytestmark = pytest.mark.usefixtures("poison")

CPU = torch.device("cpu")


def by_definition(total, count, seed):
    """In Python's integers, one number after the other."""
    bits32, bits64 = (1 << 32) - 1, (1 << 64) - 1
    left = next(a for a in itertools.count(math.isqrt(total)) if a * a >= total)
    right = -(-total // left)
    keys = []
    for i in range(1, 13):
        z = (seed + i * 0x9E3779B97F4A7C15) & bits64
        z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 & bits64
        z = (z ^ z >> 27) * 0x94D049BB133111EB & bits64
        keys.append((z ^ z >> 31) >> 32)

    def mixed(h):
        h = (h ^ h >> 16) * 0x85EBCA6B & bits32
        h = (h ^ h >> 13) * 0xC2B2AE35 & bits32
        return h ^ h >> 16

    def permuted(x):
        sides, sizes = list(divmod(x, right)), (left, right)
        for k, key in enumerate(keys):
            ours = k % 2
            by = mixed(sides[1 - ours] ^ key) * sizes[ours] >> 32
            sides[ours] = (sides[ours] + by) % sizes[ours]
        x = sides[0] * right + sides[1]
        return x if x < total else permuted(x)

    return [permuted(i) for i in range(count)]


@pytest.mark.parametrize("backend", ["reference", "native", "auto"])
@pytest.mark.parametrize(
    "total, count",
    [(1, 1), (2, 2), (3, 3), (10, 4), (37, 37), (1000, 999), (2**31 + 5, 200), (10**12, 200), (2**62, 200)],
)
def test_agrees_with_the_definition(total, count, backend):
    if backend == "native" and not _native.available():
        pytest.skip(_native.reason())
    for seed in (0, 1, 2**62 - 1):
        with _backends.use(backend) if backend != "auto" else _backends.use(_backends._request):
            ours = sample(total, count, seed, CPU)
        assert ours.dtype == torch.int64
        assert ours.tolist() == by_definition(total, count, seed)
        assert len(set(ours.tolist())) == count and 0 <= int(ours.min()) <= int(ours.max()) < total


def test_threads_change_nothing():
    threads, drawn = torch.get_num_threads(), []
    for n in (1, 3):
        torch.set_num_threads(n)
        drawn.append(sample(10**6, 50_000, 5, CPU))
    torch.set_num_threads(threads)
    assert torch.equal(*drawn)


@pytest.mark.parametrize("total, count", [(2, 1), (3, 1), (3, 2), (5, 2), (6, 3), (7, 4)])
def test_sets_are_equally_likely(total, count):
    generator = torch.Generator().manual_seed(3)
    draws = 3000
    times = Counter(tuple(distinct(total, count, CPU, generator).tolist()) for _ in range(draws))
    sets = math.comb(total, count)
    assert len(times) == sets
    expected = draws / sets
    chi_square = sum((n - expected) ** 2 / expected for n in times.values())
    freedom = sets - 1
    # Wilson and Hilferty: exceeded about once in a thousand
    assert chi_square < freedom * (1 - 2 / (9 * freedom) + 3.09 * math.sqrt(2 / (9 * freedom))) ** 3


def test_numbers_of_a_draw_are_independent():
    """Pairs of neighbours, and the parts of the range, as in independent draws."""
    drawn = sample(2**40, 64_000, 9, CPU)
    cells = (drawn >> 37) * 8 + (drawn.roll(1) >> 37)
    times = torch.bincount(cells, minlength=64).double()
    assert float(((times - 1000) ** 2 / 1000).sum()) < 103.4  # 63 degrees of freedom: once in a thousand
    low = torch.bincount(drawn & 63, minlength=64).double()
    assert float(((low - 1000) ** 2 / 1000).sum()) < 103.4


def test_seeds_draw_differently():
    first, second = (distinct(10**6, 1000, CPU, torch.Generator().manual_seed(seed)) for seed in (0, 1))
    assert torch.isin(first, second).sum() < 10  # 1 expected


def test_draws_nothing_from_the_generator_for_nothing():
    generator = torch.Generator().manual_seed(0)
    before = generator.get_state()
    assert distinct(7, 0, CPU, generator).tolist() == distinct(0, 0, CPU, generator).tolist() == []
    assert torch.equal(generator.get_state(), before)


@pytest.mark.parametrize("total, count", [(3, 4), (3, -1), (2**62 + 1, 1)])
def test_refuses(total, count):
    with pytest.raises(ValueError, match="count: expected a number from 0 to total"):
        distinct(total, count, CPU)
