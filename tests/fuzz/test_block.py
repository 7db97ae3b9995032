"""Spiking blocks of drawn sizes, parts and inputs against the unfused chain of torch's layers in float64."""

from __future__ import annotations

from hypothesis import assume
from hypothesis import strategies as st

from ..nn import block_cases
from . import draws
from .profiles import fuzz

NORMS = ["train", "train", "eval", "plain", "batch", "batch eval", "none"]
INPUTS = ["packed", "spikes", "levels", "packed levels", "real", "static", "static spikes"]
THRESHOLD = 0.75  # no surrogate drawn here has an edge that a potential of 0 stands on


@st.composite
def cases(draw) -> block_cases.Case:
    linear, groups = draw(st.booleans()), draw(st.integers(1, 3))
    residual = draw(st.sampled_from(["", "", "packed", "levels", "real", "own"]))
    shortcut = draw(st.sampled_from(["", "conv", "conv norm"])) if residual else ""
    groups = 1 if linear else groups
    channels = groups * draw(st.integers(1, 9 // groups))
    rows = groups * draw(st.integers(1, 9 // groups))
    rows = channels if residual == "own" and not shortcut else rows
    half, dilation = draw(st.integers(0, 2)), draw(st.integers(1, 2))
    keeps_size = bool(residual)  # where something else is added, or as "same" does
    return block_cases.Case(
        T=draw(st.integers(1, 4)),
        B=draw(st.integers(1, 10)),
        C=channels,
        rows=rows,
        H=1 if linear else draw(st.integers(1, 6)),
        W=1 if linear else draw(st.integers(1, 6)),
        linear=linear,
        kernel=2 * half + 1 if keeps_size else draw(st.integers(1, 4)),
        stride=draw(st.integers(1, 2)) if shortcut or not keeps_size else 1,
        padding=half * dilation if keeps_size else draw(st.integers(0, 2)),
        dilation=dilation,
        groups=groups,
        bias=draw(st.booleans()),
        block_size=draw(draws.blocks),
        density=draw(draws.densities),
        norm=draw(st.sampled_from(NORMS)),
        momentum=draw(st.sampled_from([0.1, None])),
        # Errors grow by eps ** -0.5 in channels without weights, whose variance is 0.
        eps=draw(st.sampled_from([1e-2, 1e-1])),
        x=draw(st.sampled_from(INPUTS)),
        residual=residual,
        shortcut=shortcut,
        pool="" if linear else draw(st.sampled_from(["", "", "AvgPool2d 2", "AvgPool2d 3", "MaxPool2d 2 1"])),
        tau=draw(st.sampled_from([0.25, 0.5, 0.9, 1.0])),
        learn_tau=draw(st.booleans()),
        v_threshold=THRESHOLD,
        v_reset=draw(st.sampled_from([0.0, None, -0.25])),
        surrogate=draw(st.sampled_from(sorted(block_cases.oracle.SURROGATES))),
        width=draw(st.sampled_from([1.0, 2.0])),
        detach_reset=draw(st.booleans()),
    )


@fuzz(60, cases())
def test_spiking_block(case):
    try:
        seed = next((seed for seed in range(8) if block_cases.Truth(case, seed).margin > 1e-4), None)
    except (RuntimeError, ValueError):  # a kernel or a window larger than the map, a norm of a single pixel
        assume(False)
    assume(seed is not None)
    block_cases.compare(block_cases.Truth(case, seed), *block_cases.run(case, seed))
