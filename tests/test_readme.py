"""What the README says to type works."""

import re
from pathlib import Path

import pytest
import torch
from torch import nn

import esl_sparse as esl

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"

if not README.exists():  # an installed package is tested without the checkout's files
    pytest.skip("no README here", allow_module_level=True)


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README.read_text(), re.DOTALL)


def test_the_python_examples_run():
    names = {}
    for code in blocks("python"):  # read from top to bottom: a later one uses what an earlier one imports
        exec(code, names)


def test_the_three_lines_train():
    (diff,) = blocks("diff")
    model = nn.Sequential(nn.Linear(20, 30), esl.nn.LIF(), nn.Linear(30, 10))
    loader = [(torch.bernoulli(torch.full((2, 4, 20), 0.3)), torch.randint(10, (4,))) for _ in range(3)]
    names = {"torch": torch, "esl": esl, "model": model, "loader": loader, "criterion": esl.nn.TETLoss()}
    exec("".join(line[2:] + "\n" for line in diff.splitlines()), names)
    assert isinstance(model[0], esl.nn.SparseLinear)
    assert names["rewirer"].iteration == 3


def test_files_that_are_linked_exist():
    text = README.read_text()
    for page in [README, *(ROOT / "docs").glob("*.md")]:
        for target in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"
    assert "python -m benchmarks.plot" in text
