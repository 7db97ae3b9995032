from urllib.error import URLError

import pytest

from esl_sparse.data import download, search


def offline(url, timeout):
    raise URLError("no network")


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A machine with nothing on it and no network; the working folder is `<tmp>/home/work`."""
    work = tmp_path / "home/work"
    work.mkdir(parents=True)
    monkeypatch.chdir(work)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("ESL_SPARSE_DATA", raising=False)
    monkeypatch.setattr(download, "urlopen", offline)
    monkeypatch.setattr(search, "_ROOTS", [root for root in search._ROOTS if not root.is_absolute()])
    return tmp_path
