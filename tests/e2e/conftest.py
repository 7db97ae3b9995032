import os
import subprocess
import sys
from pathlib import Path

import pytest

from esl_sparse import cli

CHECKOUT = Path(__file__).parents[2]


@pytest.fixture
def esl(capsys):
    """Run `esl-sparse` in this process; gives (exit code, what it printed, what it printed to stderr)."""

    def run(*arguments):
        code = cli.main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


@pytest.fixture
def start():
    """Start `esl-sparse`, or a script of the checkout, in a process of its own."""
    processes = []

    def run(*arguments, **settings):
        process = subprocess.Popen(
            [sys.executable, *map(str, arguments)],
            cwd=settings.pop("cwd", CHECKOUT),
            env={**os.environ, "OMP_NUM_THREADS": "2"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        processes.append(process)
        return process

    yield run
    for process in processes:
        process.kill()
        process.wait()
