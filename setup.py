"""The bridge from pip to CMake. What is built stands in CMakeLists.txt, the metadata in pyproject.toml."""

import importlib
import os
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent.resolve()
MODES = ("auto", "cpu", "cuda", "none")

mode = os.environ.get("ESL_SPARSE_BUILD", "auto")
if mode not in MODES:
    sys.exit(f"error: ESL_SPARSE_BUILD={mode!r}: expected one of {', '.join(MODES)}")


def tool(name: str, folder: str) -> str:
    """The program `name` from the PyPI package `name`, or the system's own on PATH."""
    try:
        return str(Path(getattr(importlib.import_module(name), folder)) / name)
    except ImportError:
        return name


class CMakeBuild(build_ext):
    def build_extension(self, ext: Extension) -> None:
        import pybind11

        target = Path(self.get_ext_fullpath(ext.name)).resolve()
        # Not build_temp: that is new for each editable install, and this folder makes builds incremental.
        build = ROOT / "build" / f"cmake-{sys.implementation.cache_tag}"
        cmake = tool("cmake", "CMAKE_BIN_DIR")
        # On Windows CMake's default generator finds Visual Studio; Ninja would take any compiler that is on PATH. pip's
        # isolated build has the tools in a new place each time, so they are named each time.
        ninja = (
            [] if sys.platform == "win32" else ["-GNinja", f"-DCMAKE_MAKE_PROGRAM={tool('ninja', 'BIN_DIR')}"]
        )
        configure = [
            *(cmake, "-S", str(ROOT), "-B", str(build), *ninja),
            f"-DCMAKE_LIBRARY_OUTPUT_DIRECTORY_RELEASE={build.as_posix()}",
            f"-DPython_EXECUTABLE={Path(sys.executable).as_posix()}",
            f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
            f"-DESL_BUILD={mode}",
            f"-DESL_CUDA_ARCHS={os.environ.get('ESL_SPARSE_CUDA_ARCHS', '80;90')}",
        ]
        compile = [cmake, "--build", str(build), "--config", "Release", "--target", "_C"]
        if jobs := os.environ.get("MAX_JOBS"):
            compile += ["--parallel", jobs]
        try:
            subprocess.run(configure, check=True)
            subprocess.run(compile, check=True)
        except (OSError, subprocess.CalledProcessError) as e:
            sys.exit(
                f"error: the native build failed ({type(e).__name__}); the cause stands above. "
                "ESL_SPARSE_BUILD=none installs esl_sparse without it: pure Python, slower."
            )
        target.parent.mkdir(parents=True, exist_ok=True)
        self.copy_file(str(build / target.name), str(target))


setup(
    ext_modules=[] if mode == "none" else [Extension("esl_sparse._C", sources=[])],
    cmdclass={"build_ext": CMakeBuild},
)
