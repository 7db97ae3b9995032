"""The rules on single weights in NumPy, written from their definitions; without esl_sparse."""

import numpy as np

_MASK = (1 << 64) - 1


def tie_order(block_id, seed):
    """splitmix64 of a block id as a signed 64-bit integer."""
    z = (block_id + seed) * 0x9E3779B97F4A7C15 & _MASK
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 & _MASK
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB & _MASK
    z ^= z >> 31
    return z - (1 << 64) if z >> 63 else z


def smallest(ids, score, count, seed):
    """Ids of the ``count`` smallest scores; equal scores in the order of their hash."""
    ranked = sorted(zip(score.astype(np.float32), (tie_order(int(i), seed) for i in ids), ids, strict=True))
    return {int(i) for _, _, i in ranked[:count]}


def magnitude(ids, weights, count, seed):
    return smallest(ids, abs(weights), count, seed)


def set_per_sign(ids, weights, count, seed):
    """Zeros first; then from positives and negatives in proportion, by largest remainder."""
    zeros, positive, negative = weights == 0, weights > 0, weights < 0
    chosen = smallest(ids[zeros], weights[zeros], min(count, zeros.sum()), seed)
    rest = count - len(chosen)
    if rest:
        share = rest * positive.sum() / (positive.sum() + negative.sum())
        from_positive = int(np.floor(share + 0.5))
        chosen |= smallest(ids[positive], weights[positive], from_positive, seed)
        chosen |= smallest(ids[negative], -weights[negative], rest - from_positive, seed)
    return chosen


def set_itop(ids, weights, count, seed):
    """ITOP's: thresholds at half of count from either end, the negative one from the wrong end; zeros go."""
    half = -(-count // 2)
    positive, negative = weights > 0, weights < 0
    chosen = {int(i) for i in ids[weights == 0]}
    chosen |= smallest(ids[positive], weights[positive], min(half, positive.sum()), seed)
    kept = max(0, min(half, negative.sum()) - 1)
    return chosen | smallest(ids[negative], -weights[negative], negative.sum() - kept, seed)


PRUNE = {"magnitude": magnitude, "set": set_per_sign, "set_itop": set_itop}


def absent(active, total):
    return np.setdiff1d(np.arange(total), active)


def apportion(count, weights, most):
    """``count`` in proportion to ``weights``, at most ``most`` each: largest remainder, again without the full."""
    given = np.zeros(len(weights), dtype=int)
    open_ = np.ones(len(weights), dtype=bool)
    while (left := count - given.sum()) > 0:
        open_ &= given < most
        w = np.where(open_, weights, 0.0)
        if w.sum() == 0:
            w = np.where(given < most, most - given, 0).astype(float)
        exact = left * w / w.sum()
        full = (exact >= most - given) & (w > 0)
        if full.any():
            given[full] = most[full]
            continue
        part = np.floor(exact).astype(int)
        order = sorted(range(len(w)), key=lambda i: -(exact[i] - part[i]))
        for i in order[: left - part.sum()]:
            part[i] += 1
        given += part
    return given
