"""What the README and the pages of docs/ say to type works, and what they show is so."""

import importlib
import inspect
import re
import shlex
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from torch import nn

import esl_sparse as esl

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
README = ROOT / "README.md"

if not README.exists():  # an installed package is tested without the checkout's files
    pytest.skip("no README here", allow_module_level=True)

PAGES = [README, ROOT / "CONTRIBUTING.md", *sorted(DOCS.rglob("*.md"))]
PEERS = ("spikingjelly", "snntorch", "norse", "nir")


def blocks(page: Path, language: str) -> list[str]:
    """The fenced blocks of a language; "" for those that name none."""
    fenced = re.findall(r"^```(\S*)\n(.*?)^```$", page.read_text(), re.DOTALL | re.MULTILINE)
    return [code for name, code in fenced if name == language]


def named(page: Path) -> str:
    return str(page.relative_to(ROOT))


# ---- Python


def a_model_and_batches():
    model = esl.nn.SparseLinear(64, 48, block_size=4)
    return {"model": model, "loader": [(torch.randn(8, 64), torch.randint(48, (8,)))] * 5}


# What a page takes as given: "your model", "your loader".
GIVEN = {
    "docs/rewiring.md": a_model_and_batches,
    "docs/distributed.md": lambda: {"torch": torch, "esl": esl, "model": nn.Sequential(nn.Linear(32, 32))},
}


@pytest.fixture
def registries():
    before = dict(esl.PRUNE_RULES), dict(esl.GROW_RULES)
    yield
    for registry, rules in zip((esl.PRUNE_RULES, esl.GROW_RULES), before, strict=True):
        registry.clear()
        registry.update(rules)


@pytest.fixture
def one_rank(tmp_path):
    """A process group of this process alone."""
    store = torch.distributed.FileStore(str(tmp_path / "store"), 1)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("page", [page for page in PAGES if "```python" in page.read_text()], ids=named)
def test_python_runs(page, registries, tmp_path, monkeypatch, request):
    """From top to bottom: a later block uses what an earlier one imports."""
    codes = blocks(page, "python")
    assert len(codes) == page.read_text().count("```python")
    if missing := [
        peer
        for peer in PEERS
        if find_spec(peer) is None and re.search(rf"import {peer}|from {peer}", str(codes))
    ]:
        pytest.skip(f"{missing[0]} is not installed")
    if page.name == "distributed.md":
        request.getfixturevalue("one_rank")
    monkeypatch.chdir(tmp_path)
    names = GIVEN.get(named(page), dict)()
    for code in codes:
        exec(compile(code, named(page), "exec"), names)
    if page.name == "rewiring.md":
        assert names["rewirer"].iteration == names["deep_r"].iteration == len(names["loader"])


def test_the_three_lines_train():
    (diff,) = blocks(README, "diff")
    model = nn.Sequential(nn.Linear(20, 30), esl.nn.LIF(), nn.Linear(30, 10))
    loader = [(torch.bernoulli(torch.full((2, 4, 20), 0.3)), torch.randint(10, (4,))) for _ in range(3)]
    names = {"torch": torch, "esl": esl, "model": model, "loader": loader, "criterion": esl.nn.TETLoss()}
    exec("".join(line[2:] + "\n" for line in diff.splitlines()), names)
    assert isinstance(model[0], esl.nn.SparseLinear)
    assert names["rewirer"].iteration == 3


def test_a_rule_takes_at_most_ten_lines():
    rule = next(code for code in blocks(DOCS / "adding-a-rule.md", "python") if "GROW_RULES.register" in code)
    assert len(rule[rule.index("@esl.GROW_RULES") :].strip().splitlines()) <= 10


def test_all_rules_are_described():
    text = (DOCS / "rewiring.md").read_text()
    for name in [*esl.PRUNE_RULES, *esl.GROW_RULES, *esl.rewire.REDISTRIBUTIONS]:
        assert f"`{name}`" in text or f'"{name}"' in text


# ---- commands


def commands(page: Path) -> list[list[str]]:
    """Each line of a block of shell, and each `inline command`, as the shell splits it."""
    shell = "\n".join(blocks(page, "") + blocks(page, "sh")).replace("\\\n", " ").splitlines()
    inline = re.findall(
        r"`((?:esl-sparse|python -m|make|torchrun) [^`]+)`", page.read_text().replace("\n", " ")
    )
    return [words for line in shell + inline if (words := shlex.split(line, comments=True))]


def all_commands(*start: str) -> list[list[str]]:
    found = {tuple(c) for page in PAGES for c in commands(page) if c[: len(start)] == list(start)}
    return [list(c) for c in sorted(found)]


def joined(words: list[str]) -> str:
    return " ".join(words)


def command_lines() -> list[list[str]]:
    """What follows `esl-sparse`, however it is started."""
    started = [c[c.index("esl_sparse") :] for c in all_commands("torchrun")]
    return [c[1:] for c in all_commands("esl-sparse") + started]


@pytest.mark.parametrize("arguments", command_lines(), ids=joined)
def test_command_line_parses(arguments, tmp_path, monkeypatch):
    """All but running it; folders of runs that are named exist."""
    pytest.importorskip("click", reason="needs the extra [train]")
    from esl_sparse.experiments.commands import cli

    arguments = [word for word in arguments if word != "..."]
    monkeypatch.chdir(tmp_path)
    for word in arguments:
        if word.startswith("runs/"):
            Path(word).mkdir(parents=True, exist_ok=True)
    group = cli.make_context("esl-sparse", arguments[:1], resilient_parsing=True)
    _, command, _ = cli.resolve_command(group, arguments[:1])
    command.make_context(arguments[0], arguments[1:], parent=group)


def benchmark_lines() -> list[list[str]]:
    return [c[3:] for c in all_commands("python", "-m", "benchmarks.run") if c[3] != "NAME"]


@pytest.mark.parametrize("arguments", benchmark_lines(), ids=joined)
def test_benchmark_exists(arguments):
    pytest.importorskip("psutil", reason="needs the extra [bench]")
    from benchmarks.run import parse

    parse(arguments)


def test_modules_and_targets_exist():
    for _, _, module, *_ in all_commands("python", "-m"):
        assert find_spec(module), module
    makefile = (ROOT / "Makefile").read_text()
    for _, target, *_ in all_commands("make"):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
    assert len(command_lines()) >= 20 and len(benchmark_lines()) >= 15  # the patterns above still find them


# ---- figures, links, the site


def test_tables_agree_with_the_stored_results():
    from benchmarks.tables import PAGE, filled

    page = PAGE.read_text()
    assert page.count("<!-- table: ") == page.count("<!-- end -->") >= 4
    assert filled(page) == page, "run python -m benchmarks.tables"
    assert filled("<!-- table: conv -->\n<!-- end -->").count("\n|") >= 5  # it would notice an empty one


def test_files_that_are_linked_exist():
    for page in PAGES:
        for target in re.findall(r"\]\((?!https?:)([^)#\s]+)", page.read_text()):
            assert (page.parent / target).exists(), f"{named(page)}: {target}"


def test_files_are_read_as_security_promises():
    code = "\n".join(path.read_text() for path in (ROOT / "esl_sparse").rglob("*.py"))
    loads = re.findall(r"\b(?:torch|np)\.load\(.*", code)
    assert len(loads) >= 3
    assert all("weights_only=True" in load or "allow_pickle=False" in load for load in loads)
    assert not re.search(
        r"pickle\.loads?\(|\bexec\(|(?<![.\w])eval\(|\byaml\b|extractall|allow_pickle=True", code
    )


PUBLIC = ("", ".nn", ".functional", ".rewire", ".models", ".data", ".convert", ".export")


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    pytest.importorskip("mkdocs", reason="needs the extra [docs]")
    pytest.importorskip("mkdocstrings_handlers.python", reason="needs the extra [docs]")
    pytest.importorskip("material", reason="needs the extra [docs]")
    out = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(out)]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert done.returncode == 0, done.stdout
    return out


def test_every_public_name_is_in_the_api_pages(site):
    html = "".join(page.read_text() for page in (site / "api").rglob("index.html"))
    parts = re.split(r'<h\d id="(esl_sparse[\w.]*)"', html)
    shown = {
        name for name, text in zip(parts[1::2], parts[2::2], strict=True) if "<p>" in text
    }  # with a docstring
    modules = [importlib.import_module("esl_sparse" + name) for name in PUBLIC]
    for module in modules:
        for name in module.__all__:
            value = getattr(module, name)
            if inspect.ismodule(value) or name == "__version__":
                continue
            homes = {f"{m.__name__}.{name}" for m in modules if getattr(m, name, None) is value}
            homes.add(f"{getattr(value, '__module__', '')}.{name}")  # where a submodule has the same name
            assert shown & homes, f"{module.__name__}.{name}"
