import itertools
from dataclasses import dataclass
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from esl_sparse import arena
from esl_sparse.functional import lif
from esl_sparse.ops._library import raw
from esl_sparse.ops.norm_lif import (
    GRADIENTS,
    Backward,
    Forward,
    affine,
    norm_lif_backward_op,
    norm_lif_op,
    panel_stats,
)

from .. import oracle
from ..conftest import available

pytestmark = pytest.mark.usefixtures("poison")

ALL = (1 << len(GRADIENTS)) - 1
NATIVE = [b for b in available() if b.startswith("native")]


@dataclass(frozen=True)
class Case:
    T: int
    B: int
    C: int
    H: int = 1
    W: int = 1
    norm: str = "train"  # train, eval, plain (train without gamma and beta), none
    norm2: str = ""  # of a second current; "": there is none
    planes: int = 0  # of the residual
    pool: int = 1
    v_reset: float | None = 0.0
    surrogate: str = "triangle"
    width: float = 1.0
    detach_reset: bool = False
    tau: float = 0.625
    rate: float = 0.5  # share of the residual's bits

    scale = 0.25
    v_threshold = 0.75


def panel(x, T, B, padding=np.nan):
    """``[T, B, C, H, W]`` -> panel, garbage in the padding lanes."""
    panels = np.moveaxis(oracle.to_panels(x.numpy()), 4, 1).copy()
    panels[oracle.padding_lanes(T, B)] = padding
    return torch.from_numpy(np.ascontiguousarray(np.moveaxis(panels, 1, 4)))


def rows(panels, T, B):
    return torch.from_numpy(oracle.from_panels(panels.numpy(), T, B))


class Problem:
    """Random inputs in float32 as [T, B, C, H, W], and float64 autograd through PyTorch's batch norm, the loop over
    time and PyTorch's pooling."""

    def __init__(self, case, seed):
        self.case = c = case
        generator = torch.Generator().manual_seed(seed)
        randn = partial(torch.randn, generator=generator)
        self.shape = (c.T, c.B, c.C, c.H, c.W)
        kinds = [c.norm, c.norm2] if c.norm2 else [c.norm]
        self.currents = [randn(self.shape) * 1.5 + 0.5 for _ in kinds]
        self.params = [
            (0.5 + torch.rand(c.C, generator=generator), randn(c.C) * 0.3)
            if kind in ("train", "eval")
            else (None, None)
            for kind in kinds
        ]
        self.stats = [self._statistics(k, x, randn) for k, x in zip(kinds, self.currents, strict=True)]
        self.levels = (torch.rand(c.planes, *self.shape, generator=generator) < c.rate).long()
        self.levels = sum((bit << p for p, bit in enumerate(self.levels)), torch.zeros(self.shape).long())
        self.cotangent = randn(c.T, c.B, c.C, c.H // c.pool, c.W // c.pool)
        self._autograd(kinds)

    def _statistics(self, kind, x, randn):
        C = self.case.C
        if kind == "eval":
            return randn(C) * 0.5, (randn(C) * 0.2).exp()
        if kind == "none":
            return None, None
        if not x.numel():
            return torch.zeros(C), torch.ones(C)
        x = x.double().transpose(0, 2).flatten(1)
        return x.mean(1), (x.var(1, correction=0) + 1e-5).rsqrt()

    def _autograd(self, kinds):
        c = self.case
        leaves = {"tau": torch.tensor(c.tau).double().requires_grad_()}
        total = 0
        for i, kind in enumerate(kinds):
            end = "2" if i else ""
            x = leaves["current" + end] = self.currents[i].double().requires_grad_()
            if kind == "none":
                total = total + x
                continue
            C = c.C
            ones_zeros = (torch.ones(C), torch.zeros(C))
            gamma, beta = ones_zeros if self.params[i][0] is None else self.params[i]
            gamma = leaves["gamma" + end] = gamma.double().requires_grad_()
            beta = leaves["beta" + end] = beta.double().requires_grad_()
            if kind == "eval":
                mean, rstd = (t.double() for t in self.stats[i])
                y = F.batch_norm(x.flatten(0, 1), mean, rstd**-2, gamma, beta, training=False, eps=0)
            else:
                y = F.batch_norm(x.flatten(0, 1), None, None, gamma, beta, training=True, eps=1e-5)
            total = total + y.view(x.shape)
        if c.planes:
            leaves["residual"] = (self.levels.double() * c.scale).requires_grad_()
            total = total + leaves["residual"]
        self.margin = torch.inf

        def derivative(d):
            edge = c.width / 2 if c.surrogate == "rectangle" else 0
            away = torch.cat([d.abs(), (d.abs() - edge).abs()]).detach()
            self.margin = min(self.margin, float(away.min()) if away.numel() else torch.inf)
            return oracle.SURROGATES[c.surrogate](d, c.width)

        v = torch.full(self.shape[1:], c.v_reset or 0.0).double()
        self.spikes, _ = oracle.lif(
            total, v, leaves["tau"], c.v_threshold, c.v_reset, derivative, c.detach_reset
        )
        pooled = F.avg_pool2d(self.spikes.flatten(0, 1), c.pool) if c.pool > 1 else self.spikes.flatten(0, 1)
        cotangent = self.cotangent.double().flatten(0, 1)
        grads = torch.autograd.grad(pooled, list(leaves.values()), cotangent, materialize_grads=True)
        self.grads = dict(zip(leaves, grads, strict=True))
        self.needs = sum(1 << i for i, name in enumerate(GRADIENTS) if name in self.grads)

    def forward_arguments(self, dtype=torch.float32):
        c, to = self.case, partial(_to, dtype=dtype)
        affines = [affine(*map(to, (*s, *p))) for s, p in zip(self.stats, self.params, strict=True)]
        panels = [panel(to(x), c.T, c.B) for x in self.currents]
        return Forward(
            panels[0],
            torch.tensor(c.tau, dtype=dtype),
            c.T,
            c.B,
            c.v_threshold,
            c.v_reset,
            *affines[0],
            *((panels[1], *affines[1]) if c.norm2 else (None, None, None)),
            torch.from_numpy(oracle.pack(self.levels.numpy(), c.planes)) if c.planes else None,
            c.scale,
        )

    def backward_arguments(self, words, dtype=torch.float32, needs=None):
        c, forward, to = self.case, self.forward_arguments(dtype), partial(_to, dtype=dtype)
        norms = [
            (*map(to, (*s, *p)), kind in ("train", "plain"))
            for s, p, kind in zip(self.stats, self.params, (c.norm, c.norm2), strict=False)
        ]
        return Backward(
            panel(to(self.cotangent), c.T, c.B, padding=0),
            words,
            forward.current,
            *forward[1:6],
            self.needs if needs is None else needs,
            *norms[0],
            forward.current2,
            *(norms[1] if c.norm2 else (None, None, None, None, False)),
            forward.residual,
            c.scale,
            c.pool,
            c.surrogate,
            c.width,
            c.detach_reset,
        )


def _to(x, dtype):
    return None if x is None else x.to(dtype)


def problem(case):
    """The first seed whose potentials keep a distance from the threshold: there float32 and float64 agree."""
    return next(p for seed in itertools.count() if (p := Problem(case, seed)).margin > 1e-5)


def check(case, dtype=torch.float32, tolerance=2e-5):
    p = problem(case)
    words = norm_lif_op(*p.forward_arguments(dtype))
    assert torch.equal(words, torch.from_numpy(oracle.pack(p.spikes.detach().numpy().astype(int), 1)))
    results = dict(zip(GRADIENTS, norm_lif_backward_op(*p.backward_arguments(words, dtype)), strict=True))
    for name, actual in results.items():
        if name not in p.grads:
            assert actual.shape == (0,), name
            continue
        assert actual.dtype == dtype
        if actual.dim() == 5:
            assert (
                actual.movedim(4, 1)[torch.from_numpy(oracle.padding_lanes(case.T, case.B))] == 0
            ).all(), name
            actual = rows(actual, case.T, case.B)
        expected = p.grads[name]
        scale = float(expected.abs().max()) if expected.numel() else 0.0
        torch.testing.assert_close(
            actual.double(),
            expected,
            rtol=10 * tolerance,
            atol=tolerance * max(scale, 1),
            msg=lambda m, name=name: f"{name}: {m}",
        )
    return p, words, results


BATCHES = [1, 5, 8, 12, 16, 20, 33]
STEPS = [1, 2, 3, 5, 10, 40]
SHAPES = [
    *(Case(T, B, 3, 3, 2) for T, B in itertools.product(STEPS[:4], BATCHES)),
    *(Case(T, B, 2) for T, B in ((10, 5), (10, 12), (40, 1), (40, 20), (33, 16), (32, 3))),
    Case(2, 5, 1),
    Case(3, 12, 17, 2, 3),
    Case(2, 20, 17),
    Case(2, 4, 70, 5, 7),  # several tiles of pixels
    Case(2, 12, 130, 1, 2),  # and of channels
    Case(3, 0, 2, 2, 1),
    Case(0, 3, 2, 2, 1),
]


@pytest.mark.parametrize("case", SHAPES, ids=str)
def test_shapes(backend, case):
    check(case)


@pytest.mark.parametrize("case", SHAPES[::3], ids=str)
def test_float64(case):
    check(case, torch.float64, 1e-10)


@pytest.mark.parametrize("detach_reset", [False, True])
@pytest.mark.parametrize("v_reset", [0.0, -0.5, None])
@pytest.mark.parametrize("surrogate,width", [*itertools.product(oracle.SURROGATES, [1.0, 0.5])])
def test_neurons(backend, surrogate, width, v_reset, detach_reset):
    check(
        Case(3, 5, 2, 2, 3, v_reset=v_reset, surrogate=surrogate, width=width, detach_reset=detach_reset),
    )


@pytest.mark.parametrize("norm2", ["", "train", "eval", "plain", "none"])
@pytest.mark.parametrize("norm", ["train", "eval", "plain", "none"])
@pytest.mark.parametrize("planes", [0, 1, 3])
def test_norms_and_second_currents(backend, norm, norm2, planes):
    for B, v_reset in ((5, 0.0), (12, None)):
        check(Case(3, B, 3, 2, 3, norm=norm, norm2=norm2, planes=planes, v_reset=v_reset))


@pytest.mark.parametrize("pool,H,W", [(2, 5, 4), (2, 4, 3), (3, 7, 3), (1, 5, 4)])
@pytest.mark.parametrize("norm", ["train", "none"])
def test_pooled_gradient(backend, norm, pool, H, W):
    for B in (5, 12):
        check(Case(2, B, 3, H, W, norm=norm, pool=pool))


@pytest.mark.parametrize("rate,beta", [(0.0, -1e3), (1.0, 1e3)])
def test_all_silent_and_all_firing(backend, rate, beta):
    case = Case(3, 5, 2, 2, 1, planes=1, rate=rate)
    p = Problem(case, 0)
    call = p.forward_arguments()
    words = norm_lif_op(*call._replace(b=call.b + beta))
    expected = np.full(p.shape, int(rate))
    assert torch.equal(words, torch.from_numpy(oracle.pack(expected, 1)))


@pytest.mark.parametrize(
    "norm2,planes", [("", 0), ("", 1), ("train", 1), ("eval", 0), ("eval", 1), ("none", 1)]
)
@pytest.mark.parametrize("norm", ["train", "eval", "none"])
def test_each_gradient_alone_has_the_same_bits(backend, norm, norm2, planes):
    p = problem(Case(3, 5, 3, 2, 3, norm=norm, norm2=norm2, planes=planes))
    words = norm_lif_op(*p.forward_arguments())
    everything = norm_lif_backward_op(*p.backward_arguments(words))
    bits = [i for i in range(len(GRADIENTS)) if p.needs >> i & 1]
    for asked in (*((i,) for i in bits), (), *itertools.combinations([i for i in bits if i in (0, 3, 6)], 2)):
        needs = sum(1 << i for i in asked)
        for i, actual in enumerate(norm_lif_backward_op(*p.backward_arguments(words, needs=needs))):
            assert torch.equal(actual, everything[i] if i in asked else torch.empty(0)), (asked, GRADIENTS[i])


@pytest.mark.parametrize("v_reset", [0.0, 0.25, None])
@pytest.mark.parametrize("surrogate", oracle.SURROGATES)
def test_equals_lif_without_norm(backend, surrogate, v_reset):
    """Bit for bit, spikes and gradients."""
    T, B, C = 4, 21, 3
    x, g = torch.randn(T, B, C).requires_grad_(), torch.randn(T, B, C)
    spikes, _ = lif(x, None, 0.4, v_reset=v_reset, surrogate=surrogate)
    (expected,) = torch.autograd.grad(spikes, x, g)
    current = panel(x.detach()[..., None, None], T, B)
    tau = torch.tensor(0.4)
    words = norm_lif_op(*Forward(current, tau, T, B, 1.0, v_reset))
    assert torch.equal(
        words, torch.from_numpy(oracle.pack(spikes.detach()[..., None, None].numpy().astype(int), 1))
    )
    call = Backward(
        panel(g[..., None, None], T, B, 0), words, current, tau, T, B, 1.0, v_reset, 1, surrogate=surrogate
    )
    assert torch.equal(rows(norm_lif_backward_op(*call)[0], T, B).view_as(x), expected)


def test_spikes_come_from_the_words(backend):
    """Backward is given spikes that the currents deny, and follows them."""
    T, B, C = 3, 5, 2
    x, g = torch.randn(T, B, C, 1, 1), torch.randn(T, B, C, 1, 1)
    spikes = (torch.rand(T, B, C, 1, 1) < 0.5).double()
    u, us, vs = torch.zeros(B, C, 1, 1).double(), [], [torch.zeros(B, C, 1, 1).double()]
    for t in range(T):
        u = 0.5 * vs[-1] + x[t].double()
        us.append(u)
        vs.append((1 - spikes[t]) * u)
    grad_v, expected = torch.zeros_like(u), torch.empty(x.shape).double()
    for t in reversed(range(T)):
        derivative = oracle.SURROGATES["atan"](us[t] - 1, 1.0)
        expected[t] = (g[t].double() - grad_v * us[t]) * derivative + grad_v * (1 - spikes[t])
        grad_v = 0.5 * expected[t]
    words = torch.from_numpy(oracle.pack(spikes.numpy().astype(int), 1))
    call = Backward(
        panel(g, T, B, 0), words, panel(x, T, B), torch.tensor(0.5), T, B, 1.0, 0.0, 1, surrogate="atan"
    )
    torch.testing.assert_close(
        rows(norm_lif_backward_op(*call)[0], T, B).double(), expected, rtol=1e-5, atol=1e-6
    )


def test_nan_and_infinity_stay_in_their_lane(backend):
    p = problem(Case(3, 5, 2, 2, 1, norm="eval"))
    call = p.forward_arguments()
    clean = norm_lif_op(*call)
    x = rows(call.current, 3, 5)
    x[1, 2, 0, 1, 0], x[0, 4, 1, 0, 0] = torch.nan, torch.inf
    current = panel(x, 3, 5)
    words = norm_lif_op(*call._replace(current=current))
    differing = [(g, h, w, c) for _, g, h, w, c in (words != clean).nonzero().tolist()]
    assert set(differing) <= {(0, 1, 0, 0), (0, 0, 0, 1)}
    back = p.backward_arguments(words, needs=1)
    grad = rows(norm_lif_backward_op(*back._replace(current=current, surrogate="atan"))[0], 3, 5)
    broken = {tuple(i[1:]) for i in grad.isnan().nonzero().tolist()}
    assert (2, 0, 1, 0) in broken and broken <= {(2, 0, 1, 0), (4, 1, 0, 0)}


def test_strides_do_not_matter(backend):
    p = problem(Case(3, 5, 3, 2, 3, norm2="eval", planes=3, pool=2))

    def strided(x):
        if not isinstance(x, torch.Tensor) or not x.dim():
            return x
        wide = torch.full((*x.shape[:-1], 2 * x.shape[-1]), -7, dtype=x.dtype)
        wide[..., ::2] = x
        return wide[..., ::2]

    call = p.forward_arguments()
    words = norm_lif_op(*call)
    assert torch.equal(norm_lif_op(*map(strided, call)), words)
    back = p.backward_arguments(words)
    for a, b in zip(norm_lif_backward_op(*map(strided, back)), norm_lif_backward_op(*back), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize("backend", NATIVE, indirect=True)
def test_bits_do_not_depend_on_the_thread_count(backend, threads, count):
    p = Problem(Case(3, 20, 70, 9, 8, norm2="eval", planes=1, pool=2), 0)
    words = norm_lif_op(*p.forward_arguments())
    expected = norm_lif_backward_op(*p.backward_arguments(words))
    current = p.forward_arguments().current
    stats = panel_stats(current, 3, 20)
    threads(count)
    assert torch.equal(norm_lif_op(*p.forward_arguments()), words)
    for a, b in zip(norm_lif_backward_op(*p.backward_arguments(words)), expected, strict=True):
        assert torch.equal(a, b)
    assert torch.equal(panel_stats(current, 3, 20), stats)


@pytest.mark.parametrize("backend", NATIVE, indirect=True)
def test_large_results_come_from_the_arena(backend):
    lent = arena.lent
    T, B, C, H, W = 4, 32, 64, 8, 8
    call = Forward(torch.randn(2, H, W, C, 64), torch.tensor(0.5), T, B, 1.0, 0.0)
    words = norm_lif_op(*call)
    grads = norm_lif_backward_op(*Backward(torch.randn(2, H, W, C, 64), words, *call[:6], 1))
    assert arena.lent == lent + 1
    del grads
    assert arena.lent == lent


# Statistics


@pytest.mark.parametrize("T,B", [(1, 1), (1, 7), (2, 5), (3, 8), (4, 20), (5, 33), (2, 64)])
@pytest.mark.parametrize("C,H,W", [(1, 1, 1), (3, 2, 3), (70, 5, 7)])
@pytest.mark.parametrize("centre,spread", [(0, 1), (1000, 1), (-1e6, 1), (3, 1e-3)])
def test_panel_stats(backend, T, B, C, H, W, centre, spread):
    x = torch.randn(T, B, C, H, W) * spread + centre
    mean, variance = panel_stats(panel(x, T, B), T, B)
    flat = x.double().transpose(0, 2).flatten(1)
    torch.testing.assert_close(mean, flat.mean(1), rtol=1e-12, atol=3e-7 * spread)
    torch.testing.assert_close(variance, flat.var(1, correction=0), rtol=2e-6, atol=0)


def test_panel_stats_of_an_outlier(backend):
    """One huge value first does not blur the variance of the rest."""
    x = torch.randn(2, 5, 2, 4, 5)
    x[0, 0, 0, 0, 0] = 1e4
    _, variance = panel_stats(panel(x, 2, 5), 2, 5)
    torch.testing.assert_close(
        variance, x.double().transpose(0, 2).flatten(1).var(1, correction=0), rtol=1e-6, atol=0
    )


def test_panel_stats_of_nothing_and_of_nan(backend):
    assert panel_stats(torch.empty(0, 2, 3, 4, 64), 3, 0).isnan().all()
    assert panel_stats(torch.empty(1, 0, 3, 4, 64), 3, 5).isnan().all()
    x = torch.randn(2, 5, 3, 2, 2)
    x[1, 3, 1, 0, 1] = torch.nan
    assert panel_stats(panel(x, 2, 5), 2, 5).isnan().any(0).tolist() == [False, True, False]


def test_affine():
    mean, rstd, gamma, beta = torch.randn(4, 7)
    x = torch.randn(7)
    for g, b in itertools.product((gamma, None), (beta, None)):
        scale, shift = affine(mean, rstd, g, b)
        expected = (x - mean) * rstd * (1 if g is None else g) + (0 if b is None else b)
        torch.testing.assert_close(scale * x + shift, expected)
    assert affine(None, None, gamma, beta) == (None, None)


# Contracts


def test_opcheck(backend):
    p = problem(Case(2, 5, 2, 2, 3, norm2="eval", planes=1))
    words = norm_lif_op(*p.forward_arguments())
    torch.library.opcheck(raw.norm_lif.default, tuple(p.forward_arguments()))
    torch.library.opcheck(
        raw.norm_lif.default, tuple(p.forward_arguments()._replace(current2=None, residual=None))
    )
    for needs in (p.needs, 0b0101_0010):
        torch.library.opcheck(raw.norm_lif_backward.default, tuple(p.backward_arguments(words, needs=needs)))
    torch.library.opcheck(raw.panel_stats.default, (p.forward_arguments().current, 2, 5))


@pytest.mark.parametrize(
    "change,error,message",
    [
        (
            {"current": torch.zeros(1, 2, 3, 2, 64).bfloat16()},
            TypeError,
            "current: expected float32.*got .*bfloat16",
        ),
        (
            {"current": torch.zeros(2, 2, 3, 2, 64)},
            ValueError,
            r"current: expected shape \[1, H, W, C, 64\], got \(2,",
        ),
        (
            {"current": torch.zeros(2, 3)},
            ValueError,
            r"current: expected shape \[1, H, W, C, 64\], got \(2, 3\)",
        ),
        (
            {"current2": torch.zeros(1, 2, 3, 1, 64)},
            ValueError,
            r"current2: expected shape .*got \(1, 2, 3, 1, 64\)",
        ),
        ({"a": torch.zeros(3)}, ValueError, r"a: expected shape \(2,\), got \(3,\)"),
        ({"a": None}, ValueError, "a and b: expected both or neither"),
        ({"b2": torch.zeros(2)}, ValueError, "a2 and b2: expected both or neither"),
        ({"b": torch.zeros(2).double()}, TypeError, "b: expected torch.float32, got torch.float64"),
        ({"b": torch.zeros(2, device="meta")}, ValueError, "b: expected on current's device cpu, got meta"),
        (
            {"residual": torch.zeros(1, 2, 3, 2, 64)},
            TypeError,
            "residual: expected torch.int64, got torch.float32",
        ),
        ({"tau": torch.zeros(2)}, ValueError, r"tau: expected a 0-dim tensor, got shape \(2,\)"),
    ],
)
def test_wrong_forward_arguments(change, error, message):
    call = Problem(Case(2, 5, 2, 2, 3), 0).forward_arguments()
    with pytest.raises(error, match=message):
        norm_lif_op(*call._replace(**change))


@pytest.mark.parametrize(
    "change,error,message",
    [
        (
            {"grad": torch.zeros(1, 2, 3, 2, 64), "pool": 2},
            ValueError,
            r"grad: expected shape \(1, 1, 1, 2, 64\)",
        ),
        (
            {"words": torch.zeros(1, 1, 2, 3, 3).long()},
            ValueError,
            r"words: expected shape \(1, 1, 2, 3, 2\)",
        ),
        ({"pool": 0}, ValueError, "pool: expected at least 1, got 0"),
        ({"mean": None}, ValueError, "mean and rstd: expected both or neither"),
        ({"mean": None, "rstd": None}, ValueError, "batch_stats: expected False without mean and rstd"),
        ({"needs": 8}, ValueError, "needs: asks for the gradient of current2, but there is no such input"),
        ({"surrogate": "step"}, ValueError, "surrogate: expected one of .*'step'"),
        ({"width": 0.0}, ValueError, "width: expected a positive number, got 0.0"),
    ],
)
def test_wrong_backward_arguments(change, error, message):
    p = Problem(Case(2, 5, 2, 2, 3), 0)
    call = p.backward_arguments(norm_lif_op(*p.forward_arguments()))
    with pytest.raises(error, match=message):
        norm_lif_backward_op(*call._replace(**change))
