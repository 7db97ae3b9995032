"""The sdist holds all that a build needs, and what it builds works beside torch and numpy alone."""

import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
import torch

from .conftest import ONE_LAYER


@pytest.fixture(scope="module")
def sdist(source, run, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("sdist")
    run(sys.executable, "-m", "build", "--sdist", "--no-isolation", "--outdir", out, cwd=source)
    (path,) = out.glob("*.tar.gz")
    return path


@pytest.fixture(scope="module")
def unpacked(sdist, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("unpacked")
    with tarfile.open(sdist) as tar:
        tar.extractall(out)
    return out / sdist.name.removesuffix(".tar.gz")


def files(root: Path, *folders: str) -> set[str]:
    return {str(p.relative_to(root)) for folder in folders for p in (root / folder).rglob("*") if p.is_file()}


def test_sdist_is_complete(source, unpacked) -> None:
    folders = ("csrc", "esl_sparse", "tests", "benchmarks", "examples")
    assert files(source, *folders) - files(unpacked, *folders) == set()


def test_pure_wheel(source, unpacked, run, tmp_path) -> None:
    """ESL_SPARSE_BUILD=none: every Python file, no binary, works through the references."""
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check")
    run(*pip, "wheel", "--no-deps", "--no-build-isolation", "-w", tmp_path, unpacked, ESL_SPARSE_BUILD="none")
    (wheel,) = tmp_path.glob("*.whl")
    assert wheel.name.endswith("-py3-none-any.whl")
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert names == files(source, "esl_sparse")

    run(*pip, "install", "--no-deps", "--target", tmp_path / "site", wheel)
    printed = run(sys.executable, ONE_LAYER, "pure", PYTHONPATH=str(tmp_path / "site")).stdout
    assert printed.split() == [str(tmp_path / "site" / "esl_sparse" / "__init__.py"), "pure"]


@pytest.mark.slow
def test_install_into_empty_venv(sdist, run, tmp_path) -> None:
    """In pip's isolated build, with nothing in reach but torch and numpy."""
    run(sys.executable, "-m", "venv", tmp_path / "venv")
    python = tmp_path / "venv" / "bin" / "python"
    run(python, "-m", "pip", "install", f"torch=={torch.__version__.split('+')[0]}", "numpy", sdist)
    printed = run(python, ONE_LAYER, "native").stdout
    assert str(tmp_path) in printed
    missing = run(python, "-c", "import cmake", check=False)
    assert "ModuleNotFoundError" in missing.stdout
