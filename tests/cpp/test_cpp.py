"""Builds the kernels and their C++ tests under sanitizers, and runs them.

The thread sanitizer does not know the runtime of OpenMP, and would take all that its barriers order for races. Its
build therefore runs the loops of parallel.h, which are all that the kernels have, in threads of the standard library
(threads.cpp). What OpenMP's atomics order it sees itself.
"""

import fcntl
import os
import shutil
import subprocess
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ISAS = ("portable", "avx2", "avx512")
TESTS = sorted(path.stem for path in Path(__file__).parent.glob("test_*.cpp"))
PATH = sysconfig.get_path("scripts") + os.pathsep + os.environ["PATH"]


def _tool(name: str) -> str:
    return shutil.which(name, path=PATH) or pytest.skip(f"{name} is not installed")


def _run(*command: str | Path) -> str:
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert done.returncode == 0, done.stdout
    return done.stdout


def _build(name: str, sanitize: str) -> Path:
    """The build folder; kept between runs, so only the first one compiles everything."""
    if not (ROOT / "CMakeLists.txt").exists():
        pytest.skip("needs the source tree")
    cmake, ninja = _tool("cmake"), _tool("ninja")
    folder = ROOT / "build" / name
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / ".lock", "w") as lock:  # of several test processes the first one builds
        fcntl.flock(lock, fcntl.LOCK_EX)
        _run(cmake, "-S", ROOT, "-B", folder, "-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={ninja}", "-DESL_BUILD=cpu",
             "-DESL_BUILD_PYTHON=OFF", "-DESL_BUILD_CPP_TESTS=ON", f"-DESL_SANITIZE={sanitize}")  # fmt: skip
        _run(cmake, "--build", folder)
    return folder


@pytest.fixture(scope="session")
def build() -> Path:
    return _build("cpp-tests", "address,undefined")


@pytest.fixture(scope="session")
def thread_build() -> Path:
    return _build("cpp-tests-thread", "thread")


def _passed(done: subprocess.CompletedProcess[str]) -> None:
    if done.returncode == 77:
        pytest.skip(done.stderr)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "test,isa", [(test, isa) for test in TESTS for isa in (ISAS[:1] if test == "test_cuda" else ISAS)]
)
def test_sanitized(build: Path, test: str, isa: str) -> None:
    program = build / "tests" / "cpp" / test
    _passed(subprocess.run([program, isa], stderr=subprocess.PIPE, text=True))


def _in_threads(program: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Without random addresses, some of which GCC's thread sanitizer takes for its own."""
    command = [_tool("setarch"), "--addr-no-randomize", program, *arguments]
    return subprocess.run(command, stderr=subprocess.PIPE, text=True)


@pytest.mark.slow
@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("test", [test for test in TESTS if test != "test_cuda"])  # whose threads are loops
def test_no_two_threads_race(thread_build: Path, test: str, isa: str) -> None:
    _passed(_in_threads(thread_build / "tests" / "cpp" / test, isa))


@pytest.mark.slow
def test_a_race_is_seen(thread_build: Path) -> None:
    done = _in_threads(thread_build / "tests" / "cpp" / "race")
    assert done.returncode != 0 and "data race" in done.stderr, done.stderr


@pytest.mark.parametrize("isa", ISAS)
def test_kernels_share_no_code(build: Path, isa: str) -> None:
    """The linker merges weak functions of one name: portable callers could be given the AVX-512 copy."""
    for path in build.glob(f"CMakeFiles/esl_cpu_{isa}.dir/**/*.o"):
        symbols = _run(_tool("nm"), "--demangle", "--defined-only", path).splitlines()
        assert [s for s in symbols if " W " in s and f"esl::{isa}::" not in s] == []
