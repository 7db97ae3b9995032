import pytest
import torch

from esl_sparse import PackedSpikes, _backends
from esl_sparse._backends import choose
from esl_sparse.ops._library import raw
from esl_sparse.ops.block_score import LayerCall

from ..ops.test_block_score import CASES, FORMS, Problem, arguments, scores_of, shifted
from .cases import on_another_stream

pytestmark = pytest.mark.gpu

BACKENDS = ("triton", "cuda", "reference")


def on_gpu(p: Problem) -> list[LayerCall]:
    calls = []
    for x, grad in p.calls:
        if isinstance(x, PackedSpikes):
            x = PackedSpikes(x.carrier.cuda(), x.words.cuda(), x.T, x.B, x.scale)
        else:
            x = x.cuda()
        calls.append(LayerCall(x, grad.cuda()))
    return calls


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("case", CASES)
def test_agrees_with_the_dense_gradient(untuned, case, form, backend):
    p = Problem(CASES[case], form)
    with _backends.use(backend):
        p.check(scores_of(on_gpu(p), p.layout).cpu())


@pytest.mark.parametrize("backend", BACKENDS[:2])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("case", ["4x4-overhang", "three-calls", "1x1-two-pieces"])
def test_narrow_gradients(untuned, case, dtype, backend):
    p = Problem(CASES[case], "packed", dtype)
    with _backends.use(backend):
        p.check(scores_of(on_gpu(p), p.layout).cpu())


def test_tuned():
    p = Problem(CASES["16x16"])
    with _backends.use("triton"):
        for _ in range(2):
            p.check(scores_of(on_gpu(p), p.layout).cpu())


@pytest.mark.parametrize("backend", BACKENDS[:2])
@pytest.mark.parametrize("form", ["packed", "float"])
def test_addresses_do_not_matter(untuned, form, backend):
    p = Problem(CASES["16x16"], form)
    with _backends.use(backend):
        p.check(scores_of([shifted(call) for call in on_gpu(p)], p.layout).cpu())


@pytest.mark.parametrize("backend", BACKENDS[:2])
def test_on_another_stream(untuned, backend):
    p = Problem(CASES["three-calls"])
    p.calls = on_gpu(p)
    with _backends.use(backend):
        expected = raw.block_score(*arguments(p), 0, p.layout.row_blocks)
        (found,) = on_another_stream(lambda: [raw.block_score(*arguments(p), 0, p.layout.row_blocks)])
    assert torch.equal(found, expected)


@pytest.mark.parametrize("backend", BACKENDS[:2])
def test_opcheck(untuned, backend):
    p = Problem(CASES["three-calls"])
    p.calls = on_gpu(p)
    with _backends.use(backend):
        torch.library.opcheck(raw.block_score.default, (*arguments(p), 1, 3))


def test_who_computes():
    assert choose("block_score", "cuda", torch.bfloat16) == "triton"
    assert choose("block_score", "cuda", torch.float64) == "reference"
