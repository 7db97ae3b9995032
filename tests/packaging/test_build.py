"""What ESL_SPARSE_BUILD asks for is built, or the build fails and says why."""

import os
import shutil
import sys
import sysconfig

import pytest


def build(run, source, **env):
    """The exit status and what was printed, without CMake's line breaks."""
    shutil.rmtree(source / "build", ignore_errors=True)
    done = run(sys.executable, "setup.py", "build_ext", "--inplace", cwd=source, check=False, **env)
    return done.returncode, " ".join(done.stdout.split())


def test_unknown_mode(run, source) -> None:
    status, printed = build(run, source, ESL_SPARSE_BUILD="gpu")
    assert status != 0
    assert "ESL_SPARSE_BUILD='gpu': expected one of auto, cpu, cuda, none" in printed


def test_cuda_that_cannot_be_built(run, source) -> None:
    status, printed = build(run, source, ESL_SPARSE_BUILD="cuda", CUDACXX="no-such-nvcc")
    assert status != 0
    assert "ESL_SPARSE_BUILD=cuda cannot be had: nvcc was not found at build time" in printed


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="nvcc is not installed")
def test_a_gpu_that_nvcc_does_not_know(run, source) -> None:
    status, printed = build(run, source, ESL_SPARSE_CUDA_ARCHS="80;999")
    assert status != 0
    assert "does not compile for '999', only for" in printed


def test_without_compiler(run, source) -> None:
    status, printed = build(run, source, CXX="no-such-compiler")
    assert status != 0
    assert "no-such-compiler" in printed
    assert "ESL_SPARSE_BUILD=none installs esl_sparse without it" in printed


def test_without_openmp(run, source, tmp_path) -> None:
    """Says what is lost. The kernels' loops are then plain ones: an unknown pragma is no error."""
    cmake = shutil.which("cmake", path=sysconfig.get_path("scripts") + os.pathsep + os.environ["PATH"])
    if cmake is None:
        pytest.skip("cmake is not installed")
    off = ("-DESL_BUILD_PYTHON=OFF", "-DCMAKE_DISABLE_FIND_PACKAGE_OpenMP=ON")
    printed = run(cmake, "-S", source, "-B", tmp_path, "-DESL_BUILD=cpu", *off).stdout
    assert "No OpenMP: kernels will run on one thread" in printed
