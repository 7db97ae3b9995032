import pytest
import torch

from esl_sparse import BlockTopology, _backends
from esl_sparse._backends import choose
from esl_sparse.functional import linear, linear_packed

from ..ops.linear_cases import CASES, DTYPES, Case, Problem, assert_close, check
from ..ops.test_linear import VARIANTS
from .cases import assert_streams_and_graphs_change_nothing

pytestmark = pytest.mark.gpu

NARROW = ("float16", "bfloat16", "autocast")
# Blocks that Triton takes; CUDA C++ takes the others.
LARGE = [name for name, case in CASES.items() if min(case.block) >= 16]


@pytest.mark.parametrize(
    "case,dtype,kind,form",
    [
        *(("16x16-two-steps", dtype, *variant) for dtype in DTYPES for variant in VARIANTS),
        *((case, "bfloat16", kind, form) for case in LARGE for kind, form in (VARIANTS[2], VARIANTS[-1])),
        *((case, "float32", *variant) for case in CASES if case not in LARGE for variant in VARIANTS),
    ],
)
def test_agrees_with_the_oracle(untuned, case, dtype, kind, form):
    check(CASES[case], kind, form, dtype, "cuda")


@pytest.mark.parametrize(
    "case,kind,form,dtype",
    [
        *((case, *variant, "float32") for case in CASES for variant in VARIANTS),
        *((case, *VARIANTS[i % len(VARIANTS)], dtype) for dtype in NARROW for i, case in enumerate(CASES)),
    ],
)
def test_cuda_kernels_agree_with_the_oracle(case, kind, form, dtype):
    with _backends.use("cuda"):
        check(CASES[case], kind, form, dtype, "cuda")


@pytest.mark.parametrize("kind", ["binary", "float"])
@pytest.mark.parametrize("block", [(1, 1), (4, 4), (16, 16)])
def test_streams_and_graphs(block, kind):
    p = Problem(Case(300, 270, block, T=3, B=40, density=0.2), kind, "float32", "cuda")
    spikes = p.packed() if p.planes else None

    def everything():
        if spikes is None:
            y, source, grad = linear(p.x, p.values, p.bias, p.topology), p.x, p.grad
        else:
            y, source = linear_packed(spikes, p.values, p.bias, p.topology), spikes.carrier
            grad = p.grad.view(3, 40, 300)
        return y.detach(), *torch.autograd.grad(y, (source, p.values, p.bias), grad)

    with _backends.use("cuda"):
        assert_streams_and_graphs_change_nothing(everything)


def test_who_computes():
    assert choose("linear", "cuda", torch.bfloat16, (16, 16)) == "triton"
    assert choose("linear", "cuda", torch.bfloat16, (8, 16)) == "cuda"
    assert choose("linear", "cuda", torch.float64, (16, 16)) == "reference"


@pytest.mark.parametrize("index", range(4))
@pytest.mark.parametrize("kind,form", [("binary", "panels"), ("float", "rows")])
@pytest.mark.parametrize("block", [(16, 16), (64, 32), (128, 128)])
def test_every_configuration(monkeypatch, block, kind, form, index):
    kernels = pytest.importorskip("esl_sparse.ops.linear.triton_kernels")
    for name in ("forward", "grad_input", "grad_values"):
        tuned = getattr(kernels, name)
        monkeypatch.setattr(tuned, "configs", tuned.configs[index : index + 1])
    check(Case(300, 270, block, T=3, B=90, density=0.4), kind, form, "bfloat16", "cuda")


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("kind,form", [("binary", "panels"), ("float", "rows")])
def test_tuned(kind, form, dtype):
    check(Case(800, 784, (16, 16), T=4, B=128, density=0.1), kind, form, dtype, "cuda")


def test_float32_is_not_tf32(untuned):
    """TF32 would err by 1e-3 where float32 errs by 1e-7; torch's switch allows it."""
    case = Case(256, 256, (32, 32), B=128)
    check(case, "float", "rows", "float32", "cuda")
    before = torch.backends.cuda.matmul.fp32_precision
    torch.backends.cuda.matmul.fp32_precision = "tf32"
    try:
        with pytest.raises(AssertionError, match="y: error"):
            check(case, "float", "rows", "float32", "cuda")
    finally:
        torch.backends.cuda.matmul.fp32_precision = before


def test_the_same_bits_every_time(untuned):
    p = Problem(Case(512, 512, (16, 16), B=1000, density=0.2), "binary", "bfloat16", "cuda")

    def everything():
        y = linear(p.x, p.values, p.bias, p.topology, p.planes)
        return y, *torch.autograd.grad(y, (p.x, p.values, p.bias), p.grad)

    for a, b in zip(everything(), everything(), strict=True):
        assert torch.equal(a, b)


def test_more_elements_than_int32_counts(untuned):
    """Only the last row of x is not zero: a wrapped address would miss it."""
    if torch.cuda.mem_get_info()[0] < 20 * 2**30:
        pytest.skip("needs 20 GB of free GPU memory")
    p = Problem(Case(16, 2048, (16, 16), B=1, density=1.0), "float", "bfloat16", "cuda")
    N = 2**20 + 3
    x = torch.zeros(N, 2048, dtype=torch.bfloat16, device="cuda")
    x[-1] = p.x.detach()
    x.requires_grad_()
    y = linear(x, p.values, p.bias, p.topology)
    grad = torch.zeros_like(y)
    grad[-1] = p.grad
    grad_x, grad_values, grad_bias = torch.autograd.grad(y, (x, p.values, p.bias), grad)
    results = {"y": y[-1:], "x.grad": grad_x[-1:], "values.grad": grad_values, "bias.grad": grad_bias}
    for name, actual in results.items():
        assert_close(name, actual, *p.expected()[name], p.tolerance)
    assert not grad_x[:-1].any()


def test_another_device_than_the_current_one(untuned):
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    check(CASES["16x16-two-steps"], "binary", "panels", "bfloat16", "cuda:1")


def test_tensors_must_be_on_one_device():
    p = Problem(CASES["16x16"], "float", "float32", "cuda")
    with pytest.raises(ValueError, match=r"cuda.*cpu"):
        linear(p.x.cpu(), p.values, p.bias, p.topology)
    with pytest.raises(ValueError, match=r"cuda.*cpu"):
        linear(
            p.x, p.values, p.bias, BlockTopology.from_block_ids(torch.from_numpy(p.ids), p.topology.layout)
        )
