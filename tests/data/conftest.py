from urllib.error import URLError

import pytest

from esl_sparse.data import download


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
    return tmp_path
