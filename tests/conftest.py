import os

import pytest
import torch

from esl_sparse import _backends, _native, arena

from . import emulation


def available() -> list[str]:
    """What this process can test; Triton decides when it is imported whether it interprets."""
    if os.environ.get("TRITON_INTERPRET") == "1":
        return ["triton"]
    if emulation.ENABLED:
        return ["cuda"]
    isas = _native.supported_isas() if _native.available() else []
    return ["reference", *(f"native-{isa}" for isa in isas)]


@pytest.fixture(params=available())
def backend(request, threads):
    """Runs the test once per implementation; native kernels once per instruction set of this machine."""
    threads(1)  # the problems are tiny; what a second thread changes has tests of its own
    if request.param == "cuda":
        with emulation.emulated():
            yield "cuda"
        return
    name, _, isa = request.param.partition("-")
    before = _native.get_isa() if isa else None
    if isa:
        _native.set_isa(isa)
    with _backends.use(name):
        yield name
    if before:
        _native.set_isa(before)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture
def poison(monkeypatch):
    """Uninitialised memory holds NaN (all ones in integers), so that reading any of it shows."""

    def poisoned(make):
        def wrapper(*args, **kwargs):
            tensor = make(*args, **kwargs)
            return tensor.fill_(torch.nan if tensor.is_floating_point() else -1) if tensor.numel() else tensor

        return wrapper

    for owner, name in ((torch, "empty"), (torch, "empty_like"), (torch.Tensor, "new_empty")):
        monkeypatch.setattr(owner, name, poisoned(getattr(owner, name)))
    monkeypatch.setattr(arena, "poison", True)


@pytest.fixture
def threads():
    """``threads(n)`` sets the thread count for this test."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)
