# `make demo` and `make test` need Python >= 3.10, a C++17 compiler and pip; all else goes into .venv.
PYTHON ?= python3
TORCH  ?= torch==2.13.0
OUT    ?= build/gpu-check

VENV := .venv
BIN  := $(VENV)/bin
NATIVE_SOURCES := setup.py pyproject.toml CMakeLists.txt $(shell find csrc -type f)
CXX_SOURCES    := $(shell find csrc tests/cpp -name '*.h' -o -name '*.cpp' -o -name '*.cu')

.PHONY: help demo lint test test-all docs gpu-check clean

help:
	@echo "make demo       train a spiking network on digits: dense, masked and block-sparse (minutes)"
	@echo "make test       linters, type checker and the tests;  make test-all: the slow ones too"
	@echo "make docs       the documentation, into build/site"
	@echo "make gpu-check  the GPU tests with this machine's python3 and no network; log and JSON go to OUT=$(OUT)"
	@echo "make clean      remove build products (.venv stays)"

demo: $(VENV)/.installed-train
	$(BIN)/esl-sparse demo

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run -Werror $(CXX_SOURCES)
	$(BIN)/mypy

test: lint
	$(BIN)/pytest -n auto -m "not gpu and not slow"

test-all: lint
	$(BIN)/pytest -n auto -m "not gpu"

docs: $(VENV)/.installed-docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

gpu-check:
	OUT="$(OUT)" $(PYTHON) benchmarks/gpu_check.py

clean:
	rm -rf build dist *.egg-info esl_sparse/_C*.so .mypy_cache .pytest_cache .ruff_cache
	rm -f $(VENV)/.installed-*

# The stamps are written last, so that an interrupted install is finished by the next call. All installs are editable:
# one in another mode would shadow the working tree that the tests mean to test.
$(VENV)/.installed-%: $(VENV)/.created $(NATIVE_SOURCES)
	$(BIN)/python -m pip install --disable-pip-version-check $(TORCH) -e ".[$*]"
	@touch $@

# Where ensurepip is missing (Debian splits it off) the pip at hand installs another one.
$(VENV)/.created:
	$(PYTHON) -m venv $(VENV) || { $(PYTHON) -m venv --without-pip $(VENV) && $(PYTHON) -m pip install pip --target \
	    "$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')"; }
	@touch $@
