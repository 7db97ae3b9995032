import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ONE_LAYER = Path(__file__).parent / "one_layer.py"
LEFT_BY_WORK = (".*", "build", "dist", "runs", "*.egg-info", "*.so", "__pycache__")

Run = Callable[..., subprocess.CompletedProcess]


@pytest.fixture(scope="session")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tree as in a fresh checkout: setuptools would put all that an old egg-info lists into an sdist."""
    if not (ROOT / "CMakeLists.txt").exists():
        pytest.skip("needs the source tree")
    return shutil.copytree(
        ROOT, tmp_path_factory.mktemp("source") / "src", ignore=shutil.ignore_patterns(*LEFT_BY_WORK)
    )


@pytest.fixture(scope="session")
def run() -> Run:
    """Runs a command away from the working tree, so that `import esl_sparse` cannot find it by accident."""

    def run(
        *command: str | Path, cwd: Path = Path("/"), check: bool = True, **env: str
    ) -> subprocess.CompletedProcess:
        environment = {k: v for k, v in os.environ.items() if not k.startswith(("ESL_", "PYTHON"))} | env
        done = subprocess.run(
            command, cwd=cwd, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        assert done.returncode == 0 or not check, done.stdout
        return done

    return run
