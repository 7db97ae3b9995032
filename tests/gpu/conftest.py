import pytest
import torch


@pytest.fixture(autouse=True)
def _gpu():
    if not torch.cuda.is_available():
        pytest.skip("torch sees no GPU")


@pytest.fixture
def untuned(monkeypatch):
    """Take each kernel's first configuration: a test of results need not time the others."""
    kernels = pytest.importorskip("esl_sparse.ops.linear.triton_kernels")
    for name in ("forward", "grad_input", "grad_values"):
        tuned = getattr(kernels, name)
        monkeypatch.setattr(tuned, "configs", tuned.configs[:1])
    return kernels
