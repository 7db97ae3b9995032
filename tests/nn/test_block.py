"""SpikingBlock against the unfused chain in float64: outputs, every gradient, running statistics."""

import itertools

import pytest
import torch

import esl_sparse as esl

from .. import oracle
from .block_cases import Case, Truth, check, run, seed_of

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
