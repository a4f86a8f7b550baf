# make demo | test | test-jvm | test-debug | test-sanitize | bench | bench-peers | fuzz | simulate | torture
#      | exactly-once | lint      | build
#
# Everything lives in $(VENV); nothing is installed outside it, except that a missing compiler or missing Python
# headers are installed with apt-get when this runs as root on Debian or Ubuntu. PYTHON=python3.13 chooses another Python.

PYTHON ?= python3
VENV ?= .venv
SEEDS ?= 10000
PROCESSES ?= 2
FUZZ_EXAMPLES ?= 20000
TORTURE_SECONDS ?= 3600
PYTEST_ARGS ?=
TEST_PROCESSES ?= 2

PIP := $(VENV)/bin/python -m pip --disable-pip-version-check
KERNELS := $(wildcard streamkit/_core/*.pyx streamkit/_core/*.pxd streamkit/_core/*.h)
DEBUG_TREE := build/debug
SANITIZE_TREE := build/sanitize
SANITIZE_TESTS ?= tests/core tests/fuzz tests/storage tests/leases tests/protocol

.PHONY: demo test test-jvm test-debug test-sanitize bench bench-peers bench-peers-install bench-gateway bench-gateway-install bench-libraries bench-libraries-install bench-fleets fuzz simulate torture lint
.PHONY: build clean exactly-once
.DELETE_ON_ERROR:

demo: build
	@$(VENV)/bin/python -m examples.flights

# A real etcd and clients of HTTP for the tests, in $(VENV)/bin, and clients of Kinesis, in build/; where one cannot be
# had, those that need it fail and say how to get it.
test: export PATH := $(abspath $(VENV))/bin:$(PATH)
test: build
	@sh .ci/test-packages || true
	@sh .ci/etcd $(VENV) || true
	@sh .ci/http-tools $(VENV) || true
	@sh .ci/clients python javascript || true
	$(VENV)/bin/python -m pytest -n $(TEST_PROCESSES) --dist loadfile $(PYTEST_ARGS)

# Clients of Kinesis that need Java: the KCL, the KPL, amazon_kclpy and Flink, from a Maven repository. Ten minutes.
test-jvm: build
	@sh .ci/clients python kclpy java
	$(VENV)/bin/python -m pytest tests/jvm/jvm_*.py $(PYTEST_ARGS)

# Sources without what was built from them, into a tree of its own.
define copy_tree
@mkdir -p $(1)
@tar -c --exclude='*.so' --exclude='__pycache__' --exclude='streamkit/_core/*.c' --exclude='streamkit/_core/*.html' \
  streamkit tests benchmarks examples docs setup.py pyproject.toml Makefile .ci *.md LICENSE | tar -x -C $(1)
endef

# The same suite on kernels with bounds checks and live-object counters, in a tree of its own.
test-debug: $(VENV)/.installed
	$(call copy_tree,$(DEBUG_TREE))
	cd $(DEBUG_TREE) && STREAMKIT_DEBUG=1 $(abspath $(VENV))/bin/python setup.py -q build_ext --inplace
	cd $(DEBUG_TREE) && STREAMKIT_DEBUG=1 PYTHONPATH=$(abspath $(DEBUG_TREE)) $(abspath $(VENV))/bin/python -m pytest $(PYTEST_ARGS)

# What reads and writes memory, under the address and undefined-behaviour sanitizers of gcc, without Python's own heap,
# so that every byte beyond an object is seen. What Python itself still holds at the end is no leak.
test-sanitize: $(VENV)/.installed
	$(call copy_tree,$(SANITIZE_TREE))
	cd $(SANITIZE_TREE) && STREAMKIT_SANITIZE=1 $(abspath $(VENV))/bin/python setup.py -q build_ext --inplace
	cd $(SANITIZE_TREE) && PYTHONPATH=$(abspath $(SANITIZE_TREE)) PYTHONMALLOC=malloc \
	  LD_PRELOAD="$$(gcc -print-file-name=libasan.so) $$(gcc -print-file-name=libubsan.so)" \
	  ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1 \
	  $(abspath $(VENV))/bin/python -m pytest -p no:faulthandler $(SANITIZE_TESTS) $(PYTEST_ARGS)

# Kernels with pytest-benchmark, then whole processes; the second writes docs/benchmarks.md and build/benchmarks.json.
bench: build
	$(VENV)/bin/python -m pytest benchmarks/kernels --benchmark-enable --benchmark-columns=min,median,stddev,ops $(PYTEST_ARGS)
	@mkdir -p build
	$(VENV)/bin/python -m benchmarks.paths --json build/benchmarks.json --markdown docs/benchmarks.md $(BENCH_ARGS)

# The same work on streamkit and on its peers; the first command installs those into build/peers. BENCH_ARGS=--quick,
# or --systems nats,streamkit-3 --works produce,latency; `--list` names what there is.
PEERS_PYTHON := $(if $(wildcard build/peers/python/bin/python),build/peers/python/bin/python,$(VENV)/bin/python)

bench-peers: build
	PYTHONPATH=. $(PEERS_PYTHON) -m benchmarks.peers --json build/peers.json --markdown docs/peers.md \
	  --plot docs/peers.svg $(BENCH_ARGS)

bench-peers-install: build
	PYTHONPATH=. $(VENV)/bin/python -m benchmarks.peers.install $(PEERS)

# The Kinesis API on streamkit and on three stand-ins, against the targets. BENCH_ARGS=--quick, or --stalled-seconds 600.
bench-gateway: build
	PYTHONPATH=. $(PEERS_PYTHON) -m benchmarks.gateway --json build/gateway-benchmarks.json \
	  --markdown docs/gateway-benchmarks.md $(BENCH_ARGS)

bench-gateway-install: build
	PYTHONPATH=. $(VENV)/bin/python -m benchmarks.peers.install kinesalite kinesis-local moto

# Producer and Consumer beside confluent-kafka, aiokafka, nats-py and async-kinesis: what the Python process costs.
bench-libraries: build
	PYTHONPATH=. $(PEERS_PYTHON) -m benchmarks.libraries --json build/libraries-benchmarks.json \
	  --markdown docs/libraries-benchmarks.md $(BENCH_ARGS)

bench-libraries-install: build
	PYTHONPATH=. $(VENV)/bin/python -m benchmarks.peers.install Kafka NATS
	PYTHONPATH=. $(VENV)/bin/python -m benchmarks.libraries --install

# A thousand shards shared out, hand-overs, and 10,000 producers with 1,000 workers against one coordinator. Five minutes.
bench-fleets: build
	PYTHONPATH=. $(VENV)/bin/python -m benchmarks.fleets --json build/fleets-benchmarks.json \
	  --markdown docs/fleets-benchmarks.md $(BENCH_ARGS)

# Every parser and every kernel against its slow twin, with many more examples than `make test` tries.
fuzz: build
	STREAMKIT_FUZZ_EXAMPLES=$(FUZZ_EXAMPLES) STREAMKIT_HYPOTHESIS_PROFILE=fuzz $(VENV)/bin/python -m pytest -m fuzz $(PYTEST_ARGS)

simulate: build
	$(VENV)/bin/streamkit simulate --seeds $(SEEDS) --processes $(PROCESSES)

# Real processes under every fault there is, for an hour; as root also lost power and cut wires. TORTURE_ARGS="--seed 7
# --store etcd"; `$(VENV)/bin/python -m tests.end_to_end.torture --help` names the rest. `make test` runs a short form.
torture: build
	$(VENV)/bin/python -m tests.end_to_end.torture --seconds $(TORTURE_SECONDS) $(TORTURE_ARGS)

# Workers killed at random instants while they add up in a store, or in another stream: the sum is exact. SINKS="postgres" for one of them.
SINKS ?= sqlite postgres duckdb files stream effect delivery
KILLS ?= 10000
exactly-once: build
	@for sink in $(SINKS); do $(VENV)/bin/python -m tests.end_to_end.kill_sink_worker --times $(KILLS) --sink $$sink || exit 1; done

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
