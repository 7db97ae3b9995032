import pytest


@pytest.fixture(autouse=True)
def _one_thread(threads):
    threads(1)  # the problems are tiny
