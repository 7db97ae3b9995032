"""The code in docs/rewiring.md runs."""

import re
from pathlib import Path

import pytest
import torch

import esl_sparse as esl

TEXT = (Path(__file__).parents[2] / "docs" / "rewiring.md").read_text()
CODE = re.findall(r"```python\n(.*?)```", TEXT, re.S)


@pytest.fixture
def registries():
    before = dict(esl.PRUNE_RULES), dict(esl.GROW_RULES)
    yield
    for registry, rules in zip((esl.PRUNE_RULES, esl.GROW_RULES), before, strict=True):
        registry.clear()
        registry.update(rules)


def test_every_example_runs(registries):
    names = {"model": esl.nn.SparseLinear(64, 48, block_size=4)}
    names["loader"] = [(torch.randn(8, 64), torch.randint(48, (8,)))] * 5
    for code in CODE:
        exec(compile(code, "docs/rewiring.md", "exec"), names)
    assert names["rewirer"].iteration == names["deep_r"].iteration == len(names["loader"])


def test_a_rule_takes_at_most_ten_lines():
    rule = next(code for code in CODE if "GROW_RULES.register" in code)
    body = rule[rule.index("@esl.GROW_RULES") :]
    assert len(body.strip().splitlines()) <= 10


def test_all_rules_are_described():
    for name in [*esl.PRUNE_RULES, *esl.GROW_RULES, *esl.rewire.REDISTRIBUTIONS]:
        assert f"`{name}`" in TEXT or f'"{name}"' in TEXT
