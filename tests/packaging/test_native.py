"""esl_sparse._native: what it says where the extension, or an instruction set, is missing."""

import sys

import pytest
import torch

from esl_sparse import _native
from esl_sparse._version import __version__


def test_missing_extension(monkeypatch) -> None:
    monkeypatch.setattr(_native, "_load", lambda: "the kernels are gone")
    assert not _native.available()
    with pytest.raises(RuntimeError, match=r"the kernels are gone\. .*`pip install -e \.`"):
        _native.lib()


def test_import_does_not_load_it(run) -> None:
    run(sys.executable, "-c", "import sys, esl_sparse; assert 'esl_sparse._C' not in sys.modules")


native = pytest.mark.skipif(not _native.available(), reason=_native.reason())


@native
def test_build_info() -> None:
    info = _native.build_info()
    assert info["version"] == __version__
    assert set(_native.supported_isas()) <= set(info["isas"])


@native
def test_set_isa() -> None:
    before = _native.get_isa()
    for isa in _native.supported_isas():
        _native.set_isa(isa)
        assert _native.get_isa() == isa
    _native.set_isa(before)
    with pytest.raises(ValueError, match="'sse2': this build on this machine supports portable"):
        _native.set_isa("sse2")
    assert _native.get_isa() == before


@native
@pytest.mark.parametrize("isa", _native.supported_isas() if _native.available() else [])
def test_forced_isa(isa, run) -> None:
    code = "from esl_sparse import _native; print(_native.get_isa())"
    assert run(sys.executable, "-c", code, ESL_SPARSE_ISA=isa).stdout == f"{isa}\n"


@native
def test_forced_isa_unknown(run) -> None:
    code = "from esl_sparse import _native; _native.available()"
    done = run(sys.executable, "-c", code, ESL_SPARSE_ISA="mmx", check=False)
    assert done.returncode != 0
    assert "ValueError: ESL_SPARSE_ISA='mmx': this build on this machine supports portable" in done.stdout


@pytest.mark.skipif(bool(_native.cuda_reason()), reason=_native.cuda_reason())
@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine where no kernel can run")
@pytest.mark.parametrize(
    "name,args",
    [
        ("pack", (0, 0, 0, 1, 1, 1, 1, 1, 1.0, 0)),
        ("lif", (2, 3, 0, 3, 0, 0, (0, 1.0, True, 0.0), 0, 0)),
        ("transpose_index", (3, 3, 4, 0, 0, 0, 0, 0, 0)),
    ],
)
def test_a_failed_launch_names_op_and_error(name, args) -> None:
    run = getattr(_native.lib(), "cuda_lif_forward" if name == "lif" else f"cuda_{name}")
    with pytest.raises(RuntimeError, match=rf"^{name}: CUDA error cudaError\w+: \w+"):
        run(*args, 0)
