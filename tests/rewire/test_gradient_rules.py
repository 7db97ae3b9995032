"""Growth by gradient and by momentum, against NumPy oracles that hold the dense gradient."""

from dataclasses import replace

import numpy as np
import pytest
import torch

import esl_sparse as esl
import esl_sparse.rewire.grow
from esl_sparse.rewire import GradientRule

from . import oracle
from .models import by_id, everything, same

IN, OUT = 37, 29


def layer(density=0.2, block_size=1, seed=0, **options):
    torch.manual_seed(seed)
    return esl.nn.SparseLinear(IN, OUT, density=density, block_size=block_size, **options)


def spikes(*shape, rate=0.3):
    return torch.bernoulli(torch.full((*shape, IN), rate))


def dense_gradient(x, grad):
    """``[rows, cols]`` of all calls, in float64."""
    pairs = zip(x, grad, strict=True) if isinstance(x, list) else [(x, grad)]
    return sum(g.double().reshape(-1, OUT).numpy().T @ a.double().reshape(-1, IN).numpy() for a, g in pairs)


def backward(module, x, grad):
    module(x).backward(grad)


def choices(module, run, *, steps=1, grow="gradient", prune="magnitude", optimizer=None, **options):
    """Train ``steps`` steps by ``run(step)``; what was there before the only update, and after it."""
    optimizer = optimizer or torch.optim.SGD(module.parameters(), 0.01)
    rewirer = esl.Rewirer(
        module,
        optimizer,
        prune=prune,
        grow=grow,
        alpha=0.3,
        schedule="constant",
        interval=steps,
        t_end=3 * steps,
        **options,
    )
    for step in range(steps):
        optimizer.zero_grad()
        run(step)
        optimizer.step()
        before = by_id(module, module.values)
        report = rewirer.step()
    return before, set(by_id(module, module.values)), report.layers[0]


def expected(before, gradient, seed=0):
    """The set that stays and grows, by the definition: prune smallest |w|, grow largest |gradient|."""
    ids, weights = np.array(list(before)), torch.stack(list(before.values())).flatten().numpy()
    count = round(0.3 * len(ids))
    stays = set(ids.tolist()) - oracle.magnitude(ids, weights, count, seed)
    absent = np.setdiff1d(np.arange(IN * OUT), np.array(sorted(stays)))
    return stays | oracle.smallest(absent, -abs(gradient).ravel()[absent], count, seed)


@pytest.mark.parametrize("kind", ["spikes", "levels", "real", "three dimensions", "packed"])
@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_gradient_grows_what_the_dense_gradient_says(kind, backend):
    module = layer()
    x = {
        "spikes": lambda: spikes(50),
        "levels": lambda: spikes(50) * torch.randint(1, 4, (50, IN)) / 4,
        "real": lambda: torch.randn(50, IN),
        "three dimensions": lambda: spikes(4, 13),
        "packed": lambda: spikes(4, 13),
    }[kind]()
    grad = torch.randn(*x.shape[:-1], OUT)
    with esl._backends.use(backend):
        given = esl.functional.pack(x) if kind == "packed" else x
        before, after, said = choices(module, lambda _: backward(module, given, grad))
    assert after == expected(before, dense_gradient(x, grad))
    assert said.note == "" and len(after) == len(before)


@pytest.mark.parametrize("several", [None, True, False])
@pytest.mark.parametrize("grow", ["gradient", "momentum"])
def test_kept_until_the_step_is_complete_or_scored_at_once(several, grow):
    """Unknown or several calls a step are kept; a single one is scored inside the backward. The choice is the same."""
    module = layer(block_size=(2, 4))
    x, grad = data(4, 40)

    def run(step):
        for watch in esl_watches():
            watch.several = several
        backward(module, x[step], grad[step])

    rewirers = []

    def esl_watches():
        return rewirers[0]._watches.values()

    optimizer = torch.optim.SGD(module.parameters(), 0.01)
    rewirers.append(esl.Rewirer(module, optimizer, prune="magnitude", grow=grow, interval=4, t_end=12))
    for step in range(4):
        run(step)
        optimizer.step()
        report = rewirers[0].step()
    assert report.layers[0].note == ""
    chosen = set(by_id(module, module.values))
    assert CHOSEN.setdefault(grow, chosen) == chosen


CHOSEN: dict[str, set[int]] = {}  # by the first of the ways that was tried


def loop(module, x, grad):
    for x_t, grad_t in zip(x, grad, strict=True):
        backward(module, x_t, grad_t)


def unrolled(module, x, grad):
    out = torch.stack([module(x_t) for x_t in x])
    out.backward(grad)


@pytest.mark.parametrize("way", [loop, unrolled])
@pytest.mark.parametrize("block_size", [1, (4, 4)])
def test_a_loop_over_time_chooses_what_one_call_chooses(way, block_size):
    x, grad = spikes(5, 11), torch.randn(5, 11, OUT)
    once, often = layer(block_size=block_size), layer(block_size=block_size)
    a = choices(once, lambda _: backward(once, x, grad))
    b = choices(often, lambda _: way(often, x, grad))
    assert a[1] == b[1] and b[2].note == ""


def test_a_shared_module_sums_its_calls():
    shared = esl.nn.SparseLinear(IN, IN, density=0.2, block_size=1)
    other = esl.nn.SparseLinear(IN, IN, density=0.2, block_size=1)
    other.load_state_dict(shared.state_dict())
    x, grad = spikes(30), torch.randn(30, IN)
    generator = lambda: torch.Generator().manual_seed(0)  # noqa: E731
    optimizer = torch.optim.SGD(shared.parameters(), 0.01)
    rewirer = esl.Rewirer(
        shared, optimizer, prune="magnitude", grow="gradient", interval=1, t_end=9, generator=generator()
    )
    y = shared(x)
    shared(y).backward(grad)
    g1, g2 = grad.double(), (grad.double() @ other.topology.to_dense(other.values).detach().double())
    gradient = (g1.T @ y.detach().double() + g2.T @ x.double()).numpy()
    optimizer.step()
    before = by_id(shared, shared.values)
    f = rewirer.schedule.fraction(1)
    rewirer.step()
    ids, weights = np.array(list(before)), torch.stack(list(before.values())).flatten().numpy()
    count = round(f * len(ids))
    stays = set(ids.tolist()) - oracle.magnitude(ids, weights, count, 0)
    absent = np.setdiff1d(np.arange(IN * IN), np.array(sorted(stays)))
    assert set(by_id(shared, shared.values)) == stays | oracle.smallest(
        absent, -abs(gradient).ravel()[absent], count, 0
    )


def ema(gradients, beta=0.9):
    average = 0
    for gradient in gradients:
        average = beta * average + (1 - beta) * gradient
    return average


def data(steps, *shape):
    torch.manual_seed(7)
    x = [spikes(*shape) for _ in range(steps)]
    return x, [torch.randn(*one.shape[:-1], OUT) for one in x]


EXACT = {name: replace(esl.GROW_RULES[name], exact=True) for name in ("momentum", "momentum_neuron")}


@pytest.mark.parametrize("steps", [1, 2, 7, 25])
def test_exact_momentum_grows_by_the_windowed_average(steps):
    module = layer()
    x, grad = data(steps, 40)
    before, after, _ = choices(
        module, lambda i: backward(module, x[i], grad[i]), steps=steps, grow=EXACT["momentum"]
    )
    window = [dense_gradient(a, g) for a, g in zip(x, grad, strict=True)][-20:]
    assert after == expected(before, ema(window))


@pytest.mark.parametrize("steps", [1, 7])
@pytest.mark.parametrize("at_once", [1, 100, 1 << 14])
def test_exact_momentum_neuron_shares_its_growth_over_neurons(steps, at_once, monkeypatch):
    monkeypatch.setattr(esl_sparse.rewire.grow, "_AT_ONCE", at_once)  # candidates ranked together
    module = layer()
    x, grad = data(steps, 40)
    before, after, said = choices(
        module, lambda i: backward(module, x[i], grad[i]), steps=steps, grow=EXACT["momentum_neuron"]
    )
    average = abs(ema([dense_gradient(a, g) for a, g in zip(x, grad, strict=True)]))
    ids, weights = np.array(list(before)), torch.stack(list(before.values())).flatten().numpy()
    count = round(0.3 * len(ids))
    stays = set(ids.tolist()) - oracle.magnitude(ids, weights, count, 0)
    absent = np.setdiff1d(np.arange(IN * OUT), np.array(sorted(stays)))
    row = absent // IN
    quota = oracle.apportion(count, average.mean(1), np.bincount(row, minlength=OUT))
    grown = set()
    for r in range(OUT):
        here = absent[row == r]
        grown |= oracle.smallest(here, -average.ravel()[here], quota[r], 0)
    assert after == stays | grown and len(grown) == count == said.pruned


def test_candidates_are_the_best_places_of_the_first_step_and_are_followed():
    module = layer()
    x, grad = data(6, 40)
    rule = GradientRule(esl.GROW_RULES["momentum"].rule, window=6, candidates=2.0)
    active = np.array(sorted(by_id(module, module.values)))
    before, after, _ = choices(module, lambda i: backward(module, x[i], grad[i]), steps=6, grow=rule)
    gradients = [dense_gradient(a, g) for a, g in zip(x, grad, strict=True)]
    count = round(0.3 * len(active))
    absent = np.setdiff1d(np.arange(IN * OUT), active)
    followed = oracle.smallest(absent, -abs(gradients[0]).ravel()[absent], 2 * count, 0)
    ids, weights = np.array(list(before)), torch.stack(list(before.values())).flatten().numpy()
    pruned = oracle.magnitude(ids, weights, count, 0)
    known = np.array(sorted(followed | pruned))
    grown = oracle.smallest(known, -abs(ema(gradients)).ravel()[known], count, 0)
    assert after == (set(ids.tolist()) - pruned) | grown


@pytest.mark.parametrize("grow", ["gradient", "momentum", "momentum_neuron"])
@pytest.mark.parametrize("block_size", [1, (4, 4), (2, 8)])
def test_at_density_1_an_update_is_the_identity(grow, block_size):
    module = layer(1.0, block_size)
    optimizer = torch.optim.Adam(module.parameters())
    rewirer = esl.Rewirer(module, optimizer, grow=grow, interval=3, t_end=9)
    for _ in range(3):
        backward(module, spikes(20), torch.randn(20, OUT))
        optimizer.step()
        before = everything(module, optimizer)
        report = rewirer.step()
    assert report.layers[0].grown == 0 and report.layers[0].pruned > 0
    assert same(before, everything(module, optimizer))


@pytest.mark.parametrize("block_size", [(4, 4), (2, 8), 16])
def test_blocks_grow_by_the_mean_of_their_gradient_inside_the_weight(block_size):
    module = layer(0.3, block_size)
    x, grad = spikes(50), torch.randn(50, OUT)
    before, after, _ = choices(module, lambda _: backward(module, x, grad))
    layout = module.topology.layout
    gradient, values = abs(dense_gradient(x, grad)), dict(before)
    ids = np.array(list(values))

    def part(i):
        r, c = divmod(int(i), layout.col_blocks)
        return slice(r * layout.bm, (r + 1) * layout.bm), slice(c * layout.bn, (c + 1) * layout.bn)

    weight = np.zeros((OUT, IN))
    for i, value in values.items():
        rows, cols = part(i)
        inside = weight[rows, cols]
        inside[:] = value[: inside.shape[0], : inside.shape[1]].numpy()
    count = round(0.3 * len(ids))
    size = np.array([abs(weight[part(i)]).mean() for i in ids])
    stays = set(ids.tolist()) - oracle.smallest(ids, size, count, 0)
    absent = np.setdiff1d(np.arange(layout.blocks), np.array(sorted(stays)))
    score = np.array([gradient[part(i)].mean() for i in absent])
    assert after == stays | oracle.smallest(absent, -score, count, 0)


@pytest.mark.parametrize("grow", esl.GROW_RULES)
@pytest.mark.parametrize("block_size", [1, (4, 4)])
def test_counts_do_not_drift_over_a_thousand_updates(grow, block_size):
    module = layer(0.3, block_size)
    optimizer = torch.optim.SGD(module.parameters(), 0.1)
    rewirer = esl.Rewirer(
        module, optimizer, grow=grow, interval=1, t_end=1000, alpha=0.2, schedule="constant", protect=1
    )
    count = module.topology.nnzb
    x, grad = spikes(8), torch.randn(8, OUT)
    for step in range(1000):
        if step % 10 == 0 or grow.startswith("random"):
            x, grad = spikes(8), torch.randn(8, OUT)
        backward(module, x, grad)
        optimizer.step()
        report = rewirer.step()
        assert module.topology.nnzb == len(module.values) == count and report.layers[0].note == ""
        optimizer.zero_grad()
    assert rewirer.iteration == 1000
