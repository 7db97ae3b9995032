import itertools

import numpy as np
import pytest
import torch

from esl_sparse import arena
from esl_sparse.functional import lif
from esl_sparse.ops._library import raw
from esl_sparse.ops.norm_lif import (
    GRADIENTS,
    RETURNED,
    Backward,
    Forward,
    affine,
    norm_lif_backward_op,
    norm_lif_op,
    panel_stats,
)

from .. import oracle
from ..conftest import available
from .norm_lif_cases import Case, Problem, backward, panel, problem, rows

pytestmark = pytest.mark.usefixtures("poison")

NATIVE = [b for b in available() if b.startswith("native")]


def on_device(call, device):
    return type(call)(*(t.to(device) if isinstance(t, torch.Tensor) else t for t in call))


def check(case, dtype=torch.float32, tolerance=2e-5, device="cpu"):
    p = problem(case)
    words = norm_lif_op(*on_device(p.forward_arguments(dtype), device))
    assert torch.equal(words.cpu(), torch.from_numpy(oracle.pack(p.spikes.detach().numpy().astype(int), 1)))
    call = on_device(p.backward_arguments(words, dtype), device)
    results = dict(zip(GRADIENTS, [t.cpu() for t in backward(call)], strict=True))
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
    Case(3, 30, 2, 1, 3),
    Case(12, 60, 2),
    Case(3, 0, 2, 2, 1),
    Case(0, 3, 2, 2, 1),
]


def sizes(case):
    return "-".join(map(str, (case.T, case.B, case.C, case.H, case.W)))


@pytest.mark.parametrize("case", SHAPES, ids=sizes)
def test_shapes(backend, case):
    check(case)


@pytest.mark.parametrize("case", SHAPES[::3], ids=sizes)
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


@pytest.mark.parametrize("backend", [b for b in available() if b == "triton"], indirect=True)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("case", [Case(3, 5, 3, 2, 3, norm2="eval", planes=1), Case(12, 64, 2)], ids=sizes)
def test_narrow_panels(backend, case, dtype):
    """What is computed from them is what float32 panels of the same numbers give."""
    check_narrow(case, dtype)


def check_narrow(case, dtype, device="cpu"):
    p = Problem(case, 0)

    def panels(call, dtype):
        return type(call)(
            *(
                t.to(dtype) if isinstance(t, torch.Tensor) and t.dim() == 5 and t.is_floating_point() else t
                for t in call
            )
        )

    wide, narrow = [
        panels(panels(on_device(p.forward_arguments(), device), dtype), d) for d in (torch.float32, dtype)
    ]
    words = norm_lif_op(*narrow)
    assert torch.equal(words, norm_lif_op(*wide))
    stats = panel_stats(narrow.current, case.T, case.B)
    assert torch.equal(stats, panel_stats(wide.current, case.T, case.B))
    call = on_device(p.backward_arguments(words), device)
    results = [backward(panels(panels(call, dtype), d)) for d in (dtype, torch.float32)]
    for name, actual, expected in zip(GRADIENTS, *results, strict=True):
        if not actual.numel():
            continue
        panel = "current" in name or name == "residual"
        assert actual.dtype == (dtype if panel else torch.float32), name
        tolerance = {} if panel else {"rtol": 1e-4, "atol": 1e-4}  # sums go another way
        torch.testing.assert_close(
            actual, expected.to(actual.dtype), **tolerance, msg=lambda m, name=name: f"{name}: {m}"
        )


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
    everything = backward(p.backward_arguments(words))
    bits = [i for i in range(len(GRADIENTS)) if p.needs >> i & 1]
    for asked in (*((i,) for i in bits), (), *itertools.combinations([i for i in bits if i in (0, 3, 6)], 2)):
        needs = sum(1 << i for i in asked)
        for i, actual in enumerate(backward(p.backward_arguments(words, needs=needs))):
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
    assert torch.equal(rows(backward(call)[0], T, B).view_as(x), expected)


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
    torch.testing.assert_close(rows(backward(call)[0], T, B).double(), expected, rtol=1e-5, atol=1e-6)


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
    grad = rows(backward(back._replace(current=current, surrogate="atan"))[0], 3, 5)
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
    views = Backward(*map(strided, back))
    returned, expected = norm_lif_backward_op(*views), backward(back)
    for name, b in zip(GRADIENTS, expected, strict=True):
        a = dict(zip(RETURNED, returned, strict=True)).get(name, getattr(views, name, None))
        assert torch.equal(a, b), name


@pytest.mark.parametrize("norm", ["train", "eval"])
def test_currents_stay_where_their_gradients_are_not_asked_for(backend, norm):
    p = problem(Case(3, 5, 3, 2, 3, norm=norm, norm2=norm))
    words = norm_lif_op(*p.forward_arguments())
    call, fresh = p.backward_arguments(words), p.forward_arguments()
    norm_lif_backward_op(*call._replace(needs=call.needs & ~(1 << 3)))
    assert torch.equal(rows(call.current2, 3, 5), rows(fresh.current2, 3, 5))
    assert not torch.equal(rows(call.current, 3, 5), rows(fresh.current, 3, 5))


@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize("backend", NATIVE, indirect=True)
def test_bits_do_not_depend_on_the_thread_count(backend, threads, count):
    p = Problem(Case(3, 20, 70, 9, 8, norm2="eval", planes=1, pool=2), 0)
    words = norm_lif_op(*p.forward_arguments())
    expected = backward(p.backward_arguments(words))
    current = p.forward_arguments().current
    stats = panel_stats(current, 3, 20)
    threads(count)
    assert torch.equal(norm_lif_op(*p.forward_arguments()), words)
    for a, b in zip(backward(p.backward_arguments(words)), expected, strict=True):
        assert torch.equal(a, b)
    assert torch.equal(panel_stats(current, 3, 20), stats)


@pytest.mark.parametrize("backend", NATIVE, indirect=True)
def test_large_results_come_from_the_arena(backend):
    lent = arena.lent
    T, B, C, H, W = 4, 32, 64, 8, 8
    call = Forward(torch.randn(2, H, W, C, 64), torch.tensor(0.5), T, B, 1.0, 0.0)
    words = norm_lif_op(*call)
    levels = torch.zeros(1, 2, H, W, C, dtype=torch.int64)
    grads = norm_lif_backward_op(
        *Backward(torch.randn(2, H, W, C, 64), words, *call[:6], 1 << 6, residual=levels)
    )
    assert arena.lent == lent + 1
    del grads
    assert arena.lent == lent


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
        torch.library.opcheck(raw.norm_lif_backward_.default, tuple(p.backward_arguments(words, needs=needs)))
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
