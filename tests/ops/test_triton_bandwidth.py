"""Triton's memory-bound kernels without a GPU: interpreted against the oracle, and compiled ahead of time."""

import importlib
import itertools
import os
import re
from typing import NamedTuple

import pytest
import torch

from esl_sparse.ops.lif import triton as lif
from esl_sparse.ops.norm_lif import triton as norm_lif
from esl_sparse.ops.norm_lif.op import Backward, Forward
from esl_sparse.ops.pack import triton as pack
from esl_sparse.ops.pool import triton as pool
from esl_sparse.ops.pool.window import Window
from esl_sparse.packed import Lanes

from .triton_builds import CHIPS, capture, check_usage, interpret

pytest.importorskip("triton")
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("this process interprets", allow_module_level=True)

FILES = ["test_lif.py", "test_norm_lif.py", "test_panel_stats.py", "test_pool.py", "test_pack.py"]
# A few of each: every kernel, words that steps share, more steps than registers hold.
SOME = (
    "test_lif and (test_agrees and 1.0-0.25-False or test_many_steps and 17-True or test_narrow_types and 25-dtype0)"
    " or test_norm_lif and (test_neurons and 1.0-None-False or test_pooled_gradient and train-2-5-4"
    " or test_shapes and (3-16-3 or 3-30-2 or 12-60-2 or 40-1-2) or test_norms and 3-train-eval)"
    " or test_panel_stats and (nothing or 1000-1-3-2-3-5-33)"
    " or test_pool and shape0 and (test_max_pool and dtype1 and ceil_mode or test_avg_pool and dtype0 and padding)"
    " or test_pool and test_global_average and shape0-3"
    " or test_pack and (test_words and (shape11 or shape16) and 3-0.25 or gradients and shape16 or 100-1e-30)"
)


@pytest.mark.parametrize(
    "files,selection",
    [
        pytest.param(FILES, SOME, id="some"),
        *(pytest.param([file], "not threads", id=file, marks=pytest.mark.slow) for file in FILES),
    ],
)
def test_interpreted(files, selection):
    """The tests of the ops once more."""
    interpret(*files, "-k", selection)


def test_maps_that_32_bits_do_not_count():
    """The result is small enough, what it is read from is not."""
    words = torch.empty(1, 2**16, 2**8, 2**8, 1, dtype=torch.int64, device="meta")
    for run in (pool.avg_pool, pool.max_pool):
        options = (3,) if run is pool.avg_pool else ()
        with pytest.raises(ValueError, match=r"less than 2\*\*31 words on a GPU, got 4294967296"):
            run(words, *options, Window.of(2, None, 0))


class Build(NamedTuple):
    chip: str
    kernel: str
    dtype: str
    T: int = 4
    B: int = 32
    currents: int = 1
    pool: int = 1
    planes: int = 0


def panels(build, *shape):
    return torch.zeros(Lanes(build.T, build.B).groups, *shape, 64, dtype=getattr(torch, build.dtype))


def launch(build, C=64, side=8):
    """A call that runs the kernel."""
    name, T, B = build.kernel, build.T, build.B
    half = -(-side // 2)
    dtype = getattr(torch, build.dtype)
    vector, tau = torch.zeros(C), torch.tensor(0.5)
    current = panels(build, side, side, C)
    words = torch.zeros(1, *current.shape[:4], dtype=torch.int64)
    second = panels(build, side, side, C) if build.currents == 2 else None
    of_second = vector if build.currents == 2 else None
    residual = words.expand(build.planes, -1, -1, -1, -1) if build.planes else None
    if name == "lif.forward":
        n = 2**10 * C
        lif.forward(torch.zeros(T, n, dtype=dtype), torch.zeros(1).expand(n), tau, 1.0, 0.0, False)
    elif name == "lif.backward":
        x = torch.zeros(T, 2**10 * C, dtype=dtype)
        v = torch.zeros(1).expand(2**10 * C)
        lif.backward(x, None, x, v, tau, 1.0, 0.0, "atan", 1.0, False, False, True)
    elif name == "norm_lif.forward":
        call = Forward(current, tau, T, B, 1.0, 0.0, vector, vector, second, of_second, of_second, residual)
        norm_lif.forward(call)
    elif name == "norm_lif.backward":
        grad = panels(build, side // build.pool, side // build.pool, C)
        norm, norm2 = (vector,) * 4, (of_second,) * 4
        needs = 0b00000111 | (0b111000 if build.currents == 2 else 0) | bool(build.planes) << 6
        norm_lif.backward(
            Backward(
                *(grad, words, current, tau, T, B, 1.0, 0.0, needs, *norm, True),
                *(second, *norm2, build.currents == 2, residual, 1.0, build.pool),
            )
        )
    elif name == "norm_lif.panel_stats":
        norm_lif.panel_stats(current, T, B)
    elif name == "pack.pack":
        pack.pack(torch.zeros(T, B, C, side, side, dtype=dtype), 1, 1.0)
    elif name == "pack.unpack":
        pack.unpack(words, T, B, 1.0, dtype)
    elif name == "pack.to_panels":
        pack.to_panels(torch.zeros(T, B, C, side, side, dtype=dtype))
    elif name == "pack.from_panels":
        pack.from_panels(current, T, B)
    elif name == "pool.avg_pool":
        pool.avg_pool(words, 3, Window.of(min(2, side), None, 0))
    elif name == "pool.max_pool":
        pool.max_pool(words, Window.of(min(2, side), None, 0))
    elif name == "pool.max_routes":
        pool.max_pool_backward(panels(build, half, half, C), words, Window.of(min(2, side), None, 0))
    elif name == "pool.backward":
        pool.avg_pool_backward(
            panels(build, half, half, C), (side, side), 4, Window.of(min(2, side), None, 0)
        )
    else:
        assert name == "pool.global_avg_pool"
        pool.global_avg_pool(words, T, B, 1.0, dtype)


WIDTHS = ("float32", "bfloat16")
SOME_BUILDS = [
    Build("sm_80", "lif.forward", "float32", T=10),
    Build("sm_90", "lif.backward", "bfloat16", T=5),
    Build("sm_90", "norm_lif.forward", "bfloat16", T=10),
    Build("sm_90", "norm_lif.backward", "float32", T=2),
    Build("sm_90", "pack.pack", "bfloat16"),
    Build("sm_86", "pool.backward", "bfloat16"),
]
OTHERS = (
    "norm_lif.panel_stats",
    *(f"pack.{name}" for name in ("pack", "unpack", "to_panels", "from_panels")),
    *(f"pool.{name}" for name in ("avg_pool", "max_pool", "max_routes", "backward", "global_avg_pool")),
)
NORM_LIF = ("norm_lif.forward", "norm_lif.backward")
ALL_BUILDS = [
    Build(*build)
    for build in [
        *itertools.product(CHIPS, ("lif.forward", "lif.backward"), WIDTHS, (1, 4, 5, 6, 10, 25)),
        *itertools.product(CHIPS, NORM_LIF, WIDTHS, (4, 10, 12), (8, 32, 64)),
        *itertools.product(CHIPS, NORM_LIF, WIDTHS, (10,), (32,), (1, 2), (2,), (3,)),
        *itertools.product(CHIPS, OTHERS, WIDTHS),
    ]
    if Build(*build) not in SOME_BUILDS
]

STACK = 32  # bytes of a thread that are a few scalars, not the potentials
BLOCKS = 4  # of threads on a processor at least: while one loads, others write
# Kernels that read panels or rows, and that write them. The others read and write words.
READ = {"forward", "backward", "panel_stats", "pack", "to_panels", "from_panels"}
WRITTEN = {"lif.forward", "lif.backward", "unpack", "to_panels", "from_panels", "pool.backward"}


@pytest.mark.parametrize("name", sorted({build.kernel for build in [*SOME_BUILDS, *ALL_BUILDS]}))
def test_compiles_where_every_size_is_1(name, monkeypatch):
    """Triton makes a constant of an argument that is 1, unless told not to; its interpreter never does."""
    build = Build("sm_80", name, "bfloat16", T=1, B=1)
    assert compiled_by(build, monkeypatch, C=1, side=1)


@pytest.mark.parametrize(
    "build",
    [*SOME_BUILDS, *(pytest.param(build, marks=pytest.mark.slow) for build in ALL_BUILDS)],
    ids=lambda build: "-".join(map(str, build)),
)
def test_compiles_ahead_of_time(build, monkeypatch, tmp_path):
    compiled, name = compiled_by(build, monkeypatch), build.kernel.split(".")[1]
    assert compiled
    for made in compiled:
        ptx = made.asm["ptx"]
        assert made.metadata.shared <= 48 * 1024  # what every chip has
        assert "fma" not in ptx
        check_usage(made, tmp_path, stack=STACK, blocks=BLOCKS)
        if {name, build.kernel} & READ:
            assert re.search(r"ld\.global\S*\.v[24]\.b32", ptx)
        if {name, build.kernel} & WRITTEN:
            assert re.search(r"st\.global\S*\.v[24]\.b32", ptx)


def compiled_by(build, monkeypatch, **sizes):
    """What a call's launch of the kernel compiles."""
    module, name = build.kernel.split(".")
    kernels = importlib.import_module(f"esl_sparse.ops.{module}.triton_kernels")
    kernel = getattr(kernels, name)
    for other in vars(kernels).values():  # what the call launches beside it
        if hasattr(other, "run") and other is not kernel:
            monkeypatch.setattr(other, "run", lambda *args, **options: None)
    compiled = capture(monkeypatch, build.chip, kernel)
    launch(build, **sizes)
    return compiled
