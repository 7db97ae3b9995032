"""The wheel that a release is made of: its tag may go to PyPI, and it works in an environment that built nothing."""

import os
import shutil
import sys
import sysconfig
import zipfile

import pytest

from .conftest import ONE_LAYER

PATH = sysconfig.get_path("scripts") + os.pathsep + os.environ["PATH"]


@pytest.mark.slow
def test_native_wheel(source, run, tmp_path) -> None:
    for tool in ("auditwheel", "patchelf"):
        if shutil.which(tool, path=PATH) is None:
            pytest.skip(f"{tool} is not installed")
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check")
    flags = ("--no-deps", "--no-build-isolation", "-w", tmp_path)
    run(*pip, "wheel", *flags, source, ESL_SPARSE_BUILD="cpu", PATH=PATH)
    (built,) = tmp_path.glob("*.whl")
    shown = run("auditwheel", "show", built, PATH=PATH).stdout
    assert "manylinux_" in shown
    # As in pyproject.toml: libgomp is torch's own.
    repair = (
        "auditwheel",
        "repair",
        "--exclude",
        "libgomp.so.1",
        "--wheel-dir",
        tmp_path / "repaired",
        built,
    )
    run(*repair, PATH=PATH)
    (wheel,) = (tmp_path / "repaired").glob("*.whl")
    assert "-manylinux_" in wheel.name
    names = zipfile.ZipFile(wheel).namelist()
    assert sum(name.startswith("esl_sparse/_C.") for name in names) == 1
    assert not any(".so" in name for name in names if not name.startswith("esl_sparse/_C."))

    venv = tmp_path / "venv"
    run(sys.executable, "-m", "venv", "--without-pip", venv)
    python = venv / "bin" / "python"
    run(*pip, "--python", python, "install", "--no-deps", wheel)
    site = run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").stdout.strip()
    with open(os.path.join(site, "torch_of_the_tests.pth"), "w") as file:  # torch is not downloaded once more
        file.write(sysconfig.get_path("purelib"))
    assert run(python, ONE_LAYER, "native").stdout.startswith(str(venv))
