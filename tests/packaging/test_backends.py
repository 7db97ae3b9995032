"""Which implementation is chosen, and what an impossible request is told."""

import sys

import pytest
import torch

from esl_sparse import _backends, _native
from esl_sparse._backends import choose

F32, F16, BF16, F64 = torch.float32, torch.float16, torch.bfloat16, torch.float64


@pytest.fixture(params=[True, False], ids=["all", "nothing"])
def available(request, monkeypatch):
    """Whether native code, CUDA kernels and Triton load."""
    why = "" if request.param else "it is not there"
    monkeypatch.setattr(_native, "reason", lambda: why)
    monkeypatch.setattr(_native, "cuda_reason", lambda: why)
    monkeypatch.setattr(_backends, "triton_reason", lambda: why)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    choose.cache_clear()
    with _backends.use("auto"):
        yield request.param
    choose.cache_clear()


@pytest.mark.parametrize(
    ("op", "device", "dtype", "block", "expected"),
    [
        ("linear", "cpu", F32, (4, 4), "native"),
        ("linear", "cpu", BF16, (1, 1), "native"),
        ("linear", "cpu", F64, (4, 4), "reference"),
        ("linear", "cpu", F16, (4, 4), "reference"),
        ("linear", "cuda", F16, (16, 16), "triton"),
        ("linear", "cuda", BF16, torch.Size([16, 32]), "triton"),
        ("linear", "cuda", F32, (16, 8), "cuda"),
        ("linear", "cuda", F64, (16, 16), "reference"),
        ("linear", "meta", F32, (16, 16), "reference"),
        ("lif", "cpu", F32, None, "native"),
        ("lif", "cuda", F32, None, "triton"),
        ("norm_lif", "cuda", BF16, None, "triton"),
        ("pack", "cuda", F16, None, "triton"),
        ("pack", "cuda", F64, None, "reference"),
        ("transpose_index", "cuda", F32, None, "cuda"),
        ("block_score", "cuda", F32, None, "triton"),
        ("block_score", "meta", F32, None, "reference"),
        ("temporal", "cuda", F32, (1, 1), "cuda"),
        ("temporal", "cuda", F64, (1, 1), "reference"),
    ],
)
def test_automatic_choice_falls_back(available, op, device, dtype, block, expected) -> None:
    assert choose(op, device, dtype, block) == (expected if available else "reference")


@pytest.mark.parametrize(
    ("request_", "op", "device", "dtype", "block", "message"),
    [
        ("native", "linear", "cuda", F32, (4, 4), "not on cuda"),
        ("native", "linear", "cpu", F64, (4, 4), "not in torch.float64"),
        ("triton", "linear", "cpu", F32, (16, 16), "not on cpu"),
        ("triton", "linear", "cuda", F32, (16, 8), "got 16x8"),
        ("triton", "lif", "cpu", F32, None, "not on cpu"),
        ("triton", "lif", "cuda", F64, None, "not in torch.float64"),
        ("triton", "select", "cuda", F32, None, "select has no triton implementation"),
        ("cuda", "linear", "cpu", F32, (4, 4), "not on cpu; move the model"),
        ("cuda", "linear", "cuda", F64, (4, 4), "not in torch.float64"),
        ("magic", "linear", "cpu", F32, (4, 4), "expected one of auto, native, triton, cuda, reference"),
    ],
)
def test_impossible_request_raises(available, request_, op, device, dtype, block, message) -> None:
    with pytest.raises(ValueError, match=message):
        choose(op, device, dtype, block, request_)


@pytest.mark.parametrize(("request_", "device"), [("native", "cpu"), ("triton", "cuda"), ("cuda", "cuda")])
def test_request_for_what_is_missing_raises(available, request_, device) -> None:
    if available:
        assert choose("linear", device, F32, (16, 16), request_) == request_
    else:
        with pytest.raises(ValueError, match=f"{request_!r} was asked for.*it is not there"):
            choose("linear", device, F32, (16, 16), request_)


def test_process_wide_request(available) -> None:
    with _backends.use("reference"):
        assert choose("linear", "cpu", F32, (4, 4)) == "reference"
        with _backends.use("triton"), pytest.raises(ValueError, match="not on cpu"):
            choose("linear", "cpu", F32, (16, 16))
        with _backends.use("triton"):  # select has no Triton kernel that it could have meant
            assert choose("select", "cpu", F32) == ("native" if available else "reference")
        assert choose("linear", "cpu", F32, (4, 4)) == "reference"
    with pytest.raises(ValueError, match="'magic'"):
        _backends.set_backend("magic")


def test_interpreter_only_when_asked_for(available, monkeypatch) -> None:
    if not available:
        pytest.skip("needs Triton")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert choose("linear", "cpu", F32, (16, 16)) == "native"
    assert choose("linear", "cpu", F32, (16, 16), "triton") == "triton"
    assert choose("lif", "cpu", BF16, None, "triton") == "triton"
    with pytest.raises(ValueError, match="bfloat16"):
        choose("linear", "cpu", BF16, (16, 16), "triton")


def test_environment(run) -> None:
    code = "from esl_sparse._backends import choose; import torch; print(choose('lif', 'cpu', torch.float32))"
    assert run(sys.executable, "-c", code, ESL_SPARSE_BACKEND="reference").stdout == "reference\n"
    done = run(sys.executable, "-c", code, ESL_SPARSE_BACKEND="magic", check=False)
    assert done.returncode != 0
    assert "ValueError: ESL_SPARSE_BACKEND='magic': expected one of auto" in done.stdout


@pytest.fixture
def fresh():
    """What is remembered of this machine is asked again."""
    for cached in (choose, _native.cuda_reason, _backends.triton_reason):
        cached.cache_clear()
    yield
    for cached in (choose, _native.cuda_reason, _backends.triton_reason):
        cached.cache_clear()


@pytest.mark.parametrize(
    ("info", "capability", "why"),
    [
        ("80, 90", (8, 0), ""),
        ("80, 90", (12, 0), ""),
        ("native", (7, 5), ""),
        ("75, 80", (7, 5), ""),
        ("90, 80", (8, 6), ""),
        ("75, 90", (12, 0), ""),
        (
            "75, 90",
            (8, 6),
            r"compute capabilities 75, 90, and this GPU has 8\.6; rebuild with ESL_SPARSE_CUDA_ARCHS=86",
        ),
        ("86, 90", (8, 0), r"this GPU has 8\.0"),
        ("90a", (9, 0), ""),
        ("90a", (10, 0), r"compute capabilities 90a, and this GPU has 10\.0"),
        ("80, 90", (7, 5), r"this GPU has 7\.5; rebuild with ESL_SPARSE_CUDA_ARCHS=75"),
        ("no: nvcc was not found at build time", (8, 0), r"without CUDA kernels \(nvcc was not found"),
    ],
)
def test_who_can_run_cuda_kernels(fresh, monkeypatch, info, capability, why) -> None:
    monkeypatch.setattr(_native, "reason", lambda: "")
    monkeypatch.setattr(_native, "build_info", lambda: {"cuda": info})
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert choose("transpose_index", "cuda", F32) == ("reference" if why else "cuda")
    if why:
        with pytest.raises(ValueError, match=why):
            choose("transpose_index", "cuda", F32, request="cuda")
    if capability < (8, 0):
        with pytest.raises(ValueError, match="Triton"):
            choose("linear", "cuda", F32, (16, 16), "triton")


def test_one_of_two_gpus_is_enough(fresh, monkeypatch) -> None:
    """What runs on the other one raises there; kernels are not left out for the sake of a display."""
    monkeypatch.setattr(_native, "reason", lambda: "")
    monkeypatch.setattr(_native, "build_info", lambda: {"cuda": "80, 90"})
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    for old in (0, 1):
        monkeypatch.setattr(
            torch.cuda, "get_device_capability", lambda i, old=old: (7, 5) if i == old else (9, 0)
        )
        _native.cuda_reason.cache_clear()
        _backends.triton_reason.cache_clear()
        assert (_native.cuda_reason(), _backends.triton_reason()) == ("", "")


def test_no_cuda_kernels_on_rocm(fresh, monkeypatch) -> None:
    monkeypatch.setattr(_native, "reason", lambda: "")
    monkeypatch.setattr(_native, "build_info", lambda: {"cuda": "80, 90"})
    monkeypatch.setattr(torch.version, "hip", "7.0")
    with pytest.raises(ValueError, match="built for ROCm"):
        choose("transpose_index", "cuda", F32, request="cuda")


def test_small_blocks_on_rocm(fresh, monkeypatch) -> None:
    monkeypatch.setattr(torch.version, "hip", "7.0")
    with pytest.raises(
        ValueError, match=r"linear on ROCm: blocks of 4x16 have no kernel there; use a block_size of 16"
    ):
        choose("linear", "cuda", F32, (4, 16))
    assert choose("linear", "cuda", F32, (4, 16), "reference") == "reference"
    assert choose("linear", "cuda", F64, (4, 16)) == "reference"
    assert choose("select", "cuda", F32) == "reference"


def test_report() -> None:
    report = _backends.backends()
    assert report.native == _native.available()
    assert report.choices["linear, cpu, float64, blocks 4x4"] == "reference"
    assert report.choices["temporal, cuda, float32"] == ("reference" if report.cuda_why else "cuda")
    text = str(report)
    assert report.version in text
    assert "Triton" in text
    assert "select: waits to learn whether a score is NaN" in text
    assert ("for " in text) == (not report.cuda_why)
    with _backends.use("native"):
        assert "native (ESL_SPARSE_BACKEND" in str(_backends.backends())
