"""The workflows name what exists; only their own runs show that they work."""

import re
from pathlib import Path

import pytest

from .conftest import ROOT

yaml = pytest.importorskip("yaml")
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
PYPROJECT = (ROOT / "pyproject.toml").read_text() if (ROOT / "pyproject.toml").exists() else ""

if not WORKFLOWS:
    pytest.skip("needs the source tree", allow_module_level=True)


def commands(path: Path) -> str:
    jobs = yaml.safe_load(path.read_text())["jobs"].values()
    return "\n".join(step["run"] for job in jobs for step in job["steps"] if "run" in step)


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_paths_targets_and_extras_exist(path):
    text = commands(path)
    for file in re.findall(r"\btests/[\w/.]+", text):
        assert (ROOT / file).exists(), file
    for target in re.findall(r"\bmake (\w+)", text):
        assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE), target
    for extra in re.findall(r'"\.\[(\w+)\]"', text):
        assert re.search(rf"^{extra} = \[", PYPROJECT, re.MULTILINE), extra


def test_every_python_is_tested_and_built():
    matrix = yaml.safe_load((ROOT / ".github/workflows/test.yml").read_text())["jobs"]["linux"]["strategy"][
        "matrix"
    ]
    built = re.findall(r"\bcp3(\d+)-\*", PYPROJECT)
    assert matrix["python"] == [f"3.{minor}" for minor in built]
    (oldest,) = re.findall(r'requires-python = ">=([\d.]+)"', PYPROJECT)
    assert matrix["python"][0] == oldest
    (torch,) = re.findall(r'"torch>=([\d.]+)"', PYPROJECT)
    assert matrix["torch"][0].startswith(torch)
