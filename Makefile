# make demo | test | test-debug | bench | fuzz | simulate | lint | build
#
# Everything lives in $(VENV); nothing is installed outside it, except that a missing compiler or missing Python
# headers are installed with apt-get when this runs as root on Debian or Ubuntu. PYTHON=python3.13 chooses another Python.

PYTHON ?= python3
VENV ?= .venv
SEEDS ?= 10000
PROCESSES ?= 2
FUZZ_EXAMPLES ?= 20000
PYTEST_ARGS ?=

PIP := $(VENV)/bin/python -m pip --disable-pip-version-check
KERNELS := $(wildcard streamkit/_core/*.pyx streamkit/_core/*.pxd streamkit/_core/*.h)
DEBUG_TREE := build/debug

.PHONY: demo test test-debug bench fuzz simulate lint build clean
.DELETE_ON_ERROR:

demo: build
	@$(VENV)/bin/python -m examples.flights

test: build
	$(VENV)/bin/python -m pytest $(PYTEST_ARGS)

# The same suite on kernels with bounds checks and live-object counters, in a tree of its own.
test-debug: $(VENV)/.installed
	@mkdir -p $(DEBUG_TREE)
	@tar -c --exclude='*.so' --exclude='__pycache__' --exclude='streamkit/_core/*.c' --exclude='streamkit/_core/*.html' \
	  streamkit tests benchmarks examples docs setup.py pyproject.toml Makefile .ci *.md LICENSE | tar -x -C $(DEBUG_TREE)
	cd $(DEBUG_TREE) && STREAMKIT_DEBUG=1 $(abspath $(VENV))/bin/python setup.py -q build_ext --inplace
	cd $(DEBUG_TREE) && STREAMKIT_DEBUG=1 PYTHONPATH=$(abspath $(DEBUG_TREE)) $(abspath $(VENV))/bin/python -m pytest $(PYTEST_ARGS)

# Kernels with pytest-benchmark, then whole processes; the second writes docs/benchmarks.md and build/benchmarks.json.
bench: build
	$(VENV)/bin/python -m pytest benchmarks/kernels --benchmark-enable --benchmark-columns=min,median,stddev,ops $(PYTEST_ARGS)
	@mkdir -p build
	$(VENV)/bin/python -m benchmarks.paths --json build/benchmarks.json --markdown docs/benchmarks.md $(BENCH_ARGS)

# Every parser and every kernel against its slow twin, with many more examples than `make test` tries.
fuzz: build
	STREAMKIT_FUZZ_EXAMPLES=$(FUZZ_EXAMPLES) STREAMKIT_HYPOTHESIS_PROFILE=fuzz $(VENV)/bin/python -m pytest -m fuzz $(PYTEST_ARGS)

simulate: build
	$(VENV)/bin/streamkit simulate --seeds $(SEEDS) --processes $(PROCESSES)

lint: $(VENV)/.installed
	$(VENV)/bin/ruff check .
	$(VENV)/bin/mypy

build: $(VENV)/.built

$(VENV)/bin/python:
	@sh .ci/system-packages $(PYTHON)
	@$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml setup.py | $(VENV)/bin/python
	@sh .ci/system-packages $(PYTHON)
	@echo "installing into $(VENV) and compiling the kernels: two minutes, once"
	@$(PIP) install -q "setuptools>=77" "cython>=3.3.1,<3.4"
	@$(PIP) install -q --no-build-isolation -e ".[dev]"
	@touch $@

$(VENV)/.built: $(VENV)/.installed $(KERNELS)
	@$(VENV)/bin/python setup.py -q build_ext --inplace
	@touch $@

clean:
	rm -rf build $(VENV)/.built streamkit/_core/*.so streamkit/_core/*.c streamkit/_core/*.html
