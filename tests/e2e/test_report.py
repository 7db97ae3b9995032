"""`esl-sparse report`: the console, the plots and the page."""

import json
import re
from html.parser import HTMLParser
from shutil import copytree, rmtree

import pytest

DIGITS = ("--data", "digits", "--batch-size", 64, "--hidden", "64-32", "--interval", 4, "--epochs", 2)
VOID = {"meta", "br"}


class Page(HTMLParser):
    """Fails on tags that are not balanced; gathers what the tests look at."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.ids, self.links, self.texts = [], [], [], [], []
        self.feed(text)
        self.close()
        assert not self.open
        self.text = " ".join(self.texts)

    def handle_starttag(self, tag, attributes):
        self.handle_startendtag(tag, attributes)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append(tag)
        for name, value in attributes:
            if name == "id":
                self.ids.append(value)
            if name in ("src", "href", "xlink:href"):
                self.links.append(value)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data.strip())


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    from esl_sparse import cli

    folder = tmp_path_factory.mktemp("runs")
    for structure in ("dense", "evolve"):
        run = ("--structure", structure, "--run-dir", folder / structure)
        assert cli.main(["train", *map(str, (*DIGITS, *run))]) == 0
    return folder


@pytest.fixture
def runs(trained, tmp_path):
    """A dense run, an evolving one under a hostile name, and one that an interrupt has stopped."""
    dense, evolve, stopped = tmp_path / "dense", tmp_path / "<b>&x", tmp_path / "stopped"
    copytree(trained / "dense", dense)
    for copy in (evolve, stopped):
        copytree(trained / "evolve", copy)
    (stopped / "result.json").unlink()
    lines = (stopped / "log.jsonl").read_text().splitlines(keepends=True)
    first = next(i for i, line in enumerate(lines) if '"epoch"' in line)
    (stopped / "log.jsonl").write_text("".join(lines[: first + 1]) + lines[-1][:20])
    return dense, evolve, stopped


def test_page(esl, runs, tmp_path):
    file = tmp_path / "new/page.html"
    (runs[0] / "plots/accuracy.png").unlink()
    code, out, err = esl("report", *runs, "--html", file)
    assert code == 0 and not err
    assert "digits-dense-seed0" in out and "digits-evolve-0.1-4x4-seed0" in out
    assert "stopped is unfinished, 1 of 2 epochs" in out and str(file) in out.replace("\n", "")
    assert (runs[0] / "plots/accuracy.png").exists()

    text = file.read_text()
    page = Page(text)
    assert text.startswith('<!DOCTYPE html>\n<html lang="en">')
    assert "script" not in page.tags and "link" not in page.tags and "b>&x" in page.text
    assert "<b>&x" not in text
    assert all(link.startswith("#") and link[1:] in page.ids for link in page.links)
    assert not re.search(r"https?://|url\((?!#)|@import", text)
    assert len(page.ids) == len(set(page.ids))
    for run in runs:
        assert page.texts.count(run.name) >= 4  # summary, key, settings, its own part
    for layer in ("hidden.0", "hidden.1", "readout", "lif.0", "lif.1"):
        assert page.texts.count(layer) == 3
    # validation; densities and rates of three runs, updates of two
    assert page.tags.count("svg") == text.count('role="img" aria-label="') == 4 + 3 + 3 + 2
    results = [json.loads((run / "result.json").read_text()) for run in runs[:2]]
    for result in results:
        assert f"{result['test_accuracy']:.2%}" in page.text and f"{result['active_weights']:,}" in page.text
    assert page.tags.count("mark") == 1 and "unfinished" in page.text


def test_page_of_one_run_lies_in_its_folder(esl, runs, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, _ = esl("report", "dense")
    assert code == 0 and "test accuracy" in out and "dense/report.html" in out
    first = (runs[0] / "report.html").read_text()
    assert "Settings that differ" not in Page(first).text
    assert esl("report", "dense")[0] == 0
    assert (runs[0] / "report.html").read_text() == first
    assert esl("report", "dense", "stopped")[0] == 0
    assert (tmp_path / "report.html").exists()


def test_runs_of_one_name_go_by_their_paths(esl, runs, tmp_path):
    for parent in ("a", "b"):
        copytree(runs[0], tmp_path / parent / "seed0")
    code, _, _ = esl("report", tmp_path / "a/seed0", tmp_path / "b/seed0", "--html", tmp_path / "page.html")
    page = Page((tmp_path / "page.html").read_text())
    assert code == 0 and {"a/seed0", "b/seed0", "None."} <= set(page.texts)


def test_run_before_its_first_epoch(esl, runs):
    stopped = runs[2]
    rmtree(stopped / "plots")
    events = [
        {"event": "step", "iteration": 50, "loss": 1.25, "accuracy": 0.5, "firing_rate": 0.1, "lr": 0.1}
    ]
    lines = (stopped / "log.jsonl").read_text().splitlines(keepends=True)[:2]
    for log in ("", *lines), ("", *lines, json.dumps(events[0]) + "\n"), ("",):
        (stopped / "log.jsonl").write_text("".join(log))
        code, out, _ = esl("report", stopped)
        assert code == 0 and "0 of 2 epochs" in out
        page = Page((stopped / "report.html").read_text())
        assert ("hidden.0" in page.text) == (len(log) > 1)
        assert ("iteration 50 with a loss of 1.25" in page.text) == (len(log) > 3)


@pytest.mark.parametrize(
    ("file", "content", "says"),
    [
        ("config.json", None, "holds no run: it has no config.json."),
        ("config.json", "{", "holds a run that cannot be read: "),
        ("config.json", '{"banana": 1}', "cannot be read: config: unknown settings banana."),
        ("config.json", '{"T": "x"}', "holds a run that cannot be read: "),
        ("result.json", "[]", "holds a run that cannot be read: "),
        ("log.jsonl", "{}\n", "holds a run that cannot be read: "),
    ],
)
def test_broken_folders_are_one_sentence(esl, runs, tmp_path, file, content, says):
    path = runs[0] / file
    path.unlink() if content is None else path.write_text(content)
    code, _, err = esl("report", *runs, "--html", tmp_path / "page.html")
    assert code == 1 and err.count("\n") == 1
    assert err.startswith(f"esl-sparse: {runs[0]} holds") and says in err
    assert not (tmp_path / "page.html").exists()
