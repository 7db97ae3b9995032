import importlib

import pytest
import torch


@pytest.fixture(autouse=True)
def _gpu():
    if not torch.cuda.is_available():
        pytest.skip("torch sees no GPU")


def tuned():
    """The kernels that are tuned at their first launch, by op."""
    pytest.importorskip("triton")
    found = {}
    for op in ("linear", "conv2d", "block_score"):
        kernels = importlib.import_module(f"esl_sparse.ops.{op}.triton_kernels")
        found[op] = [each for each in vars(kernels).values() if hasattr(each, "configs")]
    return found


@pytest.fixture
def untuned(monkeypatch):
    """Take each kernel's first configuration: a test of results need not time the others."""
    for kernels in tuned().values():
        for kernel in kernels:
            monkeypatch.setattr(kernel, "configs", kernel.configs[:1])
