"""SpikingBlock against the unfused chain in float64: outputs, every gradient, running statistics."""

import itertools

import pytest
import torch
from torch.nn import functional as F

import esl_sparse as esl
from esl_sparse.functional import pack

from .. import oracle
from .block_cases import Case, Truth, block_entries, check, compare, run, seed_of

pytestmark = pytest.mark.usefixtures("poison")

NORMS = [
    Case(norm=norm, momentum=momentum)
    for norm, momentum in (
        ("train", 0.1),
        ("train", None),
        ("train", 1.0),
        ("eval", 0.1),
        ("plain", 0.1),
        ("plain eval", 0.1),
        ("batch", 0.1),
        ("batch eval", 0.1),
        ("untracked", 0.1),
        ("untracked eval", 0.1),
        ("none", 0.1),
    )
]
CONVOLUTIONS = [
    Case(bias=False),
    Case(stride=2),
    Case(kernel=1, padding=0),
    Case(kernel=5, padding=2, H=7),
    Case(padding=0, dilation=2),
    Case(padding="same", kernel=3),
    Case(C=6, rows=8, groups=2),
    Case(C=4, rows=8, groups=4, block_size=(1, 1)),
    *(
        Case(padding_mode=mode, x=x)
        for mode in ("circular", "reflect", "replicate")
        for x in ("packed", "real")
    ),
    Case(C=1, rows=1, bias=False),
    Case(density=0.05),
    Case(density=1.0, block_size=(4, 4)),
    Case(C=9, rows=17, block_size=(8, 4), H=3, W=3),
    Case(H=3, W=3, padding=0),  # to a single pixel
]
LINEAR = [
    Case(linear=True, C=20, rows=9, x=x, norm=norm)
    for x, norm in itertools.product(("packed", "real", "static", "levels"), ("train", "none"))
] + [Case(linear=True, C=20, rows=9, shortcut="conv norm", residual="packed")]
INPUTS = [
    Case(x=x) for x in ("packed", "spikes", "levels", "packed levels", "real", "static", "static spikes")
]
BATCHES = [
    Case(T=T, B=B, C=3, rows=4, H=4, W=3, x=x)
    for (T, B), x in itertools.product(
        ((1, 1), (4, 1), (5, 3), (3, 8), (5, 24), (9, 8), (2, 64), (3, 33), (2, 130)), ("packed", "static")
    )
]
RESIDUALS = [
    *(Case(residual=r, norm=n) for r in ("packed", "levels", "real") for n in ("train", "eval", "none")),
    *(Case(residual="own", rows=5, x=x) for x in ("packed", "spikes", "packed levels", "real", "static")),
    *(
        Case(stride=2, shortcut=s, residual=r, norm=n)
        for s, r, n in (
            ("conv", "packed", "train"),
            ("conv norm", "packed", "train"),
            ("conv norm", "packed", "eval"),
            ("conv norm", "packed", "none"),
            ("conv norm", "real", "train"),
            ("conv norm", "levels", "batch"),
            ("conv norm", "own", "train"),
        )
    ),
    Case(shortcut="conv norm", residual="own", x="static", B=8),
    Case(shortcut="conv", residual="own", x="real", pool="AvgPool2d 2"),
]
POOLS = [
    *(
        Case(pool=f"AvgPool2d {pool}", H=H, W=W)
        for pool, (H, W) in itertools.product(("2", "3", "2 2 0"), ((6, 4), (7, 5)))
    ),
    *(Case(pool=f"AvgPool2d {pool}") for pool in ("1", "3 2", "2 1", "3 2 1")),
    *(Case(pool=f"torch.AvgPool2d {pool}") for pool in ("2", "4", "5 5 1")),
    *(Case(pool=f"{library}MaxPool2d {pool}") for library in ("", "torch.") for pool in ("2", "3 2 1", "4")),
    Case(pool="AvgPool2d 2", residual="packed", x="levels"),
    Case(pool="MaxPool2d 2", shortcut="conv norm", residual="packed"),
]
NEURONS = [
    Case(surrogate=surrogate, width=width, v_reset=v_reset, detach_reset=detach, learn_tau=True)
    for (surrogate, width), (v_reset, detach) in zip(
        itertools.product(oracle.SURROGATES, (1.0, 0.5)),
        itertools.cycle(itertools.product((0.0, None, -0.25), (False, True))),
        strict=False,
    )
] + [
    Case(v_threshold=0.5, tau=0.9, v_reset=None),
    Case(tau=1.0, v_reset=0.25, detach_reset=True, pool="AvgPool2d 2"),
    Case(learn_tau=True, x="static", shortcut="conv norm", residual="own"),
]


@pytest.mark.parametrize(
    "case", NORMS + CONVOLUTIONS + LINEAR + INPUTS + BATCHES + RESIDUALS + POOLS + NEURONS, ids=str
)
def test_agrees_with_the_chain(case):
    assert check(case).is_fused


@pytest.mark.parametrize("case", [Case(), *RESIDUALS[::4], *POOLS[::5], *LINEAR[::4], INPUTS[5]], ids=str)
def test_every_implementation(backend, case):
    check(case)


# The other ways through a block


WAYS = [
    Case(),
    Case(x="real", padding_mode="circular"),
    Case(x="static", B=8, bias=False),
    Case(x="static", B=24, T=5),
    Case(linear=True, C=20, rows=9),
    Case(linear=True, C=20, rows=9, x="static"),
    Case(stride=2, shortcut="conv norm", residual="packed", norm="eval"),
    Case(shortcut="conv", residual="own", x="static", pool="MaxPool2d 2"),
    Case(residual="own", rows=5, pool="AvgPool2d 2"),
    Case(residual="levels", norm="none", x="levels"),
    Case(H=3, W=3, padding=0, residual="packed"),  # maps of one pixel, whose packed spikes show no size
]


@pytest.mark.filterwarnings("ignore:Full backward hook")  # inputs are no tensors
@pytest.mark.parametrize("case", WAYS, ids=str)
@pytest.mark.parametrize("kind", ["forward", "forward_pre", "full_backward"])
def test_hooks_on_the_convolutions_see_the_currents(case, kind):
    calls = []

    def watch(block):
        for layer in [block.conv, *(block.shortcut or [])[:1]]:
            getattr(layer, f"register_{kind}_hook")(lambda *args: calls.append(args))
        return block

    block = check(case, prepare=watch)
    assert block.is_fused and len(calls) == (2 if case.shortcut else 1)
    if kind == "forward" and not case.linear and "packed" in case.x:
        panels = calls[0][2]
        assert panels.shape[-1] == 64 and panels.requires_grad


@pytest.mark.parametrize("where", ["norm", "lif", "pool", "shortcut.1"])
def test_hooks_on_other_parts_are_called(where):
    seen = []

    def watch(block):
        block.get_submodule(where).register_forward_hook(lambda *_: seen.append(where))
        return block

    block = check(Case(shortcut="conv norm", residual="packed", pool="AvgPool2d 2"), prepare=watch)
    assert seen == [where] and block.is_fused == (where == "pool")


@pytest.mark.parametrize("case", WAYS, ids=str)
def test_a_surrogate_given_as_a_function(case):
    def replace(block):
        block.lif.surrogate = lambda d: torch.clamp(1 - d.abs(), min=0)
        return block

    assert not check(case, prepare=replace).is_fused


@pytest.mark.parametrize("case", WAYS, ids=str)
def test_dense_layers(case):
    """The block of torch's own layers; its values are those of the sparse one."""
    seed = seed_of(case)
    sparse = case.block(seed)

    def densify(block):
        esl.densify(block)
        return block

    y, grads, block = run(case, seed, densify)
    assert not block.is_fused
    for name in ("conv", "shortcut.0"):
        if f"{name}.weight" in grads:
            grads[f"{name}.values"] = block_entries(grads.pop(f"{name}.weight"), sparse.get_submodule(name))
    compare(Truth(case, seed), y, grads, block)


def test_a_norm_that_is_no_batch_norm():
    block = Case().block()
    block.norm = torch.nn.GroupNorm(2, 6)
    x = (torch.rand(3, 5, 5, 6, 5) < 0.4).float()
    current = block.norm(block.conv(x).flatten(0, 1)).view(3, 5, 6, 6, 5)
    assert not block.is_fused and torch.equal(block(pack(x)), block.lif(current))


@pytest.mark.parametrize("static", [False, True])
def test_one_dimension(static):
    """Convolutions in one dimension are not fused."""
    block = esl.nn.SpikingBlock(
        esl.nn.SparseConv1d(4, 6, 3, density=0.5), torch.nn.BatchNorm1d(6), esl.nn.LIF()
    )
    x = torch.rand(5, 4, 8)
    steps = x.expand(3, *x.shape) if static else torch.rand(3, 5, 4, 8)
    dense = block.conv.to_dense()
    current = F.batch_norm(dense(steps.flatten(0, 1)), None, None, training=True).view(3, 5, 6, 6)
    assert not block.is_fused
    torch.testing.assert_close(block(steps), block.lif(current))


def test_parts_that_know_time_are_unwrapped():
    case = Case(shortcut="conv norm", residual="packed")
    plain = case.block()
    block = esl.nn.SpikingBlock(
        plain.conv,
        esl.nn.MergeTime(plain.norm),
        plain.lif,
        shortcut=torch.nn.Sequential(plain.shortcut[0], esl.nn.MergeTime(plain.shortcut[1])),
    )
    assert block.is_fused and list(block.state_dict())[:3] == list(plain.state_dict())[:3]
    arguments = case.arguments(case.inputs())
    assert torch.equal(block(*arguments).words, plain(*arguments).words)


def test_a_static_leaf_gets_its_gradient_step_by_step():
    """A leaf that happens to have stride 0 has a gradient of its own at each step."""
    block, image = Case().block(), torch.rand(5, 5, 6, 5)
    x, full = image.expand(3, *image.shape).requires_grad_(), image.repeat(3, 1, 1, 1, 1).requires_grad_()
    cotangent = torch.randn(3, 5, 6, 6, 5)
    for leaf in (x, full):
        block(leaf).unpack().backward(cotangent)
    torch.testing.assert_close(x.grad, full.grad)
    assert not torch.allclose(x.grad[0], x.grad[1])


def test_the_static_image_is_convolved_once():
    for block in (Case().block(), torch.nn.Sequential(Case().block())):
        if isinstance(block, torch.nn.Sequential):
            esl.densify(block)
            block = block[0]
        samples = []
        block.conv.register_forward_hook(lambda _, args, y, samples=samples: samples.append(args[0].shape))
        block(torch.rand(5, 5, 6, 5).expand(3, 5, 5, 6, 5))
        (shape,) = samples
        assert shape.numel() == 5 * 5 * 6 * 5


def test_all_silent_and_all_firing():
    for threshold, expected in ((1e9, 0), (-1e9, 1)):
        case = Case(v_threshold=threshold, x="static", pool="AvgPool2d 2")
        y, grads, _ = run(case, 0)
        assert (y == expected).all() and all((grad == 0).all() for grad in grads.values())


@pytest.mark.parametrize("shortcut", ["", "conv norm"])
@pytest.mark.parametrize("norm", ["train", "eval", "none"])
@pytest.mark.parametrize("x", ["packed", "real", "static"])
def test_batch_0(x, norm, shortcut):
    check(Case(B=0, x=x, norm=norm, shortcut=shortcut, residual="packed", pool="AvgPool2d 2"))


def test_overhang_holds_anything():
    case = Case(C=5, rows=6, block_size=(4, 4), density=0.9, shortcut="conv norm", residual="packed")

    def spoil(block):
        for layer in (block.conv, block.shortcut[0]):
            with torch.no_grad():
                layer.values[~layer.topology.valid()] = torch.nan
        return block

    check(case, prepare=spoil)
