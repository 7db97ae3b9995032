"""Each rule against its NumPy oracle on single weights, and what it means on blocks."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from esl_sparse.rewire import GROW_RULES, PRUNE_RULES, AbsentBlocks, ActiveBlocks, EverActive
from esl_sparse.topology import BlockLayout, BlockTopology, random_absent_ids

from . import oracle

NO_IDS = torch.empty(0, dtype=torch.int64)


def active(weights, ids=None, seed=3):
    """Single weights as a rule sees them."""
    ids = torch.arange(len(weights)) if ids is None else ids
    layout = BlockLayout(1, 1 + int(ids.max()), 1, 1)
    return ActiveBlocks("fc", layout, ids, weights.view(-1, 1, 1), None, None, seed, torch.default_generator)


def overhanging(values_of_overhang):
    """A full 5x7 weight in 4x4 blocks; entries outside the weight hold what is given."""
    layout = BlockLayout(5, 7, 4, 4)
    topology = BlockTopology.from_block_ids(torch.arange(4), layout)
    valid = topology.valid()
    torch.manual_seed(1)
    values = torch.randn(4, 4, 4).masked_fill(~valid, values_of_overhang)
    return ActiveBlocks("fc", layout, torch.arange(4), values, None, valid, 0, torch.default_generator)


WEIGHTS = {
    "normal": lambda n: torch.randn(n),
    "mostly positive": lambda n: torch.randn(n) + 1.5,
    "all negative": lambda n: -torch.rand(n) - 0.1,
    "some zeros": lambda n: torch.randn(n) * (torch.rand(n) < 0.8),
    "mostly zeros": lambda n: torch.randn(n) * (torch.rand(n) < 0.1),
    "all zero": lambda n: torch.zeros(n),
    "ties": lambda n: torch.randint(-3, 4, (n,)).float(),
    "tiny and huge": lambda n: torch.randn(n) * 10.0 ** torch.randint(-40, 38, (n,)),
}


@pytest.mark.parametrize("count", [0, 1, 2, 33, 100, 199, 200])
@pytest.mark.parametrize("kind", WEIGHTS)
@pytest.mark.parametrize("rule", ["magnitude", "set"])
def test_prune_chooses_what_the_oracle_chooses(rule, kind, count):
    ids = torch.randperm(1000)[:200].sort().values
    weights = WEIGHTS[kind](200)
    positions = PRUNE_RULES[rule](active(weights, ids), count)
    assert positions.shape == (count,)
    expected = oracle.PRUNE[rule](ids.numpy(), weights.numpy(), count, 3)
    assert set(ids[positions].tolist()) == expected
    assert len(expected) == count


@pytest.mark.parametrize("count", [1, 2, 33, 100, 200])
@pytest.mark.parametrize("kind", WEIGHTS)
def test_set_itop_chooses_what_the_oracle_chooses(kind, count):
    ids = torch.randperm(1000)[:200].sort().values
    weights = WEIGHTS[kind](200)
    positions = PRUNE_RULES["set_itop"].rule(active(weights, ids), count)
    assert set(ids[positions].tolist()) == oracle.set_itop(ids.numpy(), weights.numpy(), count, 3)


@pytest.mark.parametrize("fraction", [0.05, 0.3, 0.6])
def test_set_itop_has_the_defect_of_its_source(fraction):
    """About half of all weights go, whatever was asked for: that is why it is for replication only."""
    blocks = active(torch.randn(4000))
    assert 0.45 < len(PRUNE_RULES["set_itop"].rule(blocks, round(4000 * fraction))) / 4000 < 0.55


@pytest.mark.parametrize("count", [0, 1, 50, 210, 350])
@pytest.mark.parametrize("kind", WEIGHTS)
def test_global_magnitude_has_one_threshold(kind, count):
    """The ids of the layers overlap: a tie is broken by the place in the model."""
    sizes, layers, offset = (200, 100, 50), [], 0
    every_id, every_weight = [], []
    for size in sizes:
        ids = torch.randperm(300)[:size].sort().values
        weights = WEIGHTS[kind](size)
        blocks = active(weights, ids)
        layers.append(blocks)
        every_id.append(ids.numpy() + offset)
        every_weight.append(weights.numpy())
        offset += blocks.layout.blocks
    chosen = PRUNE_RULES["global_magnitude"].rule(layers, count)
    starts = np.cumsum([0, *[blocks.layout.blocks for blocks in layers]])
    got = {
        int(blocks.ids[p]) + start
        for blocks, positions, start in zip(layers, chosen, starts, strict=False)
        for p in positions.tolist()
    }
    expected = oracle.smallest(np.concatenate(every_id), abs(np.concatenate(every_weight)), count, 3)
    assert got == expected and sum(map(len, chosen)) == count


@pytest.mark.parametrize("kind", WEIGHTS)
def test_global_magnitude_of_one_layer_is_magnitude(kind):
    blocks = active(WEIGHTS[kind](200))
    (across,) = PRUNE_RULES["global_magnitude"].rule([blocks], 70)
    assert set(across.tolist()) == set(PRUNE_RULES["magnitude"](blocks, 70).tolist())


@pytest.mark.parametrize("rule", ["magnitude", "set"])
def test_permuting_the_weights_permutes_the_choice(rule):
    ids, weights, order = torch.arange(200), WEIGHTS["ties"](200), torch.randperm(200)
    chosen = ids[PRUNE_RULES[rule](active(weights, ids), 77)]
    permuted = ids[order][PRUNE_RULES[rule](active(weights[order], ids[order]), 77)]
    assert set(chosen.tolist()) == set(permuted.tolist())


def test_set_takes_the_same_fraction_of_each_sign():
    weights = torch.cat([torch.arange(1.0, 31), -torch.arange(1.0, 11)])  # 30 positive, 10 negative
    pruned = weights[PRUNE_RULES["set"](active(weights), 8)]
    assert sorted(pruned.tolist()) == [-2, -1, 1, 2, 3, 4, 5, 6]


def test_a_block_counts_by_its_mean_and_the_sign_of_its_sum():
    values = torch.zeros(4, 2, 2)
    values[0] = 0.5
    values[1] = torch.tensor([[-2.0, 0.1], [0.1, 0.1]])  # sum < 0, mean of |w| .575
    values[2] = -0.3
    values[3] = torch.tensor([[1.0, -1.0], [0.0, 0.0]])  # sum 0, mean of |w| .5: not a zero block
    blocks = replace(active(torch.zeros(4)), values=values, layout=BlockLayout(2, 8, 2, 2))
    assert PRUNE_RULES["magnitude"](blocks, 1).tolist() == [2]
    assert set(PRUNE_RULES["set"](blocks, 2).tolist()) <= {0, 2, 3}
    assert 2 in PRUNE_RULES["set"](blocks, 2)  # one of two goes from the negatives: the weaker


@pytest.mark.parametrize("garbage", [0.0, 1e30, -1e30])
def test_overhang_counts_in_no_score(garbage):
    blocks = overhanging(garbage)
    inside = [blocks.values[i][blocks.valid[i]] for i in range(4)]
    means = torch.stack([x.abs().mean() for x in inside])
    assert torch.allclose(blocks.mean(blocks.values.abs()), means)
    assert torch.allclose(blocks.sum(blocks.values), torch.stack([x.sum() for x in inside]))
    assert PRUNE_RULES["magnitude"](blocks, 1).item() == means.argmin()


def test_edge_blocks_are_not_pruned_for_being_small():
    blocks = overhanging(0.0)
    blocks = replace(blocks, values=torch.where(blocks.valid, 1.0, 0.0))
    assert torch.equal(blocks.mean(blocks.values), torch.ones(4))


def test_half_precision_weights_are_scored_in_float32():
    blocks = replace(active(torch.zeros(2)), values=torch.full((2, 128, 128), 1.01, dtype=torch.bfloat16))
    blocks = replace(blocks, layout=BlockLayout(128, 256, 128, 128))
    assert blocks.mean(blocks.values).dtype == torch.float32
    assert torch.equal(blocks.mean(blocks.values), blocks.values[:, 0, 0].float())


# Growth. The random choice is compared by drawing the same ranks among the oracle's candidates.


def places(total, active_ids, ever_ids, seed):
    record = EverActive.of(ever_ids, total)
    generator = torch.Generator().manual_seed(seed)
    return AbsentBlocks("fc", BlockLayout(1, total, 1, 1), active_ids, record, seed, generator)


def draw(candidates, count, generator):
    ranks = random_absent_ids(NO_IDS, len(candidates), int(count), generator)
    return candidates[ranks.numpy()].tolist()


def random_places(total=500, n=80, ever=200, seed=0):
    every = torch.randperm(total)
    return places(total, every[:n].sort().values, every[:ever].sort().values, seed)


@pytest.mark.parametrize("count", [0, 1, 60, 420])
def test_random_grows_any_absent_place(count):
    absent = random_places()
    chosen = GROW_RULES["random"](absent, count)
    candidates = oracle.absent(absent.active, 500)
    assert chosen.tolist() == draw(candidates, count, torch.Generator().manual_seed(0))


@pytest.mark.parametrize("ever", [80, 200, 480])
@pytest.mark.parametrize("count", [0, 1, 20, 60, 420])
def test_random_unfired_grows_never_active_places_first(ever, count):
    absent = random_places(ever=ever)
    chosen = GROW_RULES["random_unfired"](absent, count).tolist()
    generator = torch.Generator().manual_seed(0)
    candidates = oracle.absent(absent.active, 500)
    fired = absent.ever_active.contains(torch.from_numpy(candidates)).numpy()
    expected = draw(candidates[~fired], min(count, (~fired).sum()), generator)
    expected += draw(candidates[fired], count - len(expected), generator)
    assert chosen == expected and len(set(chosen)) == count


def test_growth_is_even():
    absent, times = random_places(), torch.zeros(500)
    for _ in range(400):
        times[GROW_RULES["random"](absent, 105)] += 1
    candidates = oracle.absent(absent.active, 500)
    assert times.sum() == 400 * 105 == times[candidates].sum()
    assert abs(times[candidates] - 100).max() < 45  # five standard deviations


def test_largest_breaks_ties_by_hash():
    absent = random_places()
    ids = torch.from_numpy(oracle.absent(absent.active, 500))
    score = torch.randint(3, (len(ids),)).float()
    chosen = absent.largest(score, ids, 150)
    assert set(chosen.tolist()) == oracle.smallest(ids.numpy(), -score.numpy(), 150, absent.seed)
    assert absent.contains(ids).all() and not absent.contains(absent.active).any()
    assert absent.count == len(ids)
    assert np.array_equal(absent.random(absent.count), ids)
