# Everything that people and CI do here. Each target sets up what it needs; `make help` lists them.

SHELL := /bin/sh
VENV ?= .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
# Python compiles what it imports, when it does: most of what is installed never is.
PIP := $(BIN)/python -m pip install --quiet --no-compile
RUN := runs/demo
# Of the CUDA compiler, and the same for all builds: what one has compiled, the others find.
export MGRAN_WERROR := ON
SOURCES := $(shell find csrc tests/emulator -name '*.h' -o -name '*.cpp' -o -name '*.cu' -o -name '*.cuh')

# The first interpreter on the PATH that the package supports; override with PYTHON=...
PYTHON ?= $(shell for p in python3 python3.12 python3.13 python3.11 python3.10 python; do \
	"$$p" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))' >/dev/null 2>&1 \
	&& { echo $$p; break; }; done)

LADDER := tests/ladder
# A rung that needs the CUDA compiler is skipped where there is none, unless it must be there.
with_nvcc = @if command -v nvcc >/dev/null 2>&1; then $(1); \
	elif [ -n "$$MGRAN_EXPECT_NVCC" ]; then echo "make $@: there is no nvcc on the PATH" >&2; exit 1; \
	else echo "make $@: skipped, there is no nvcc on the PATH"; fi
RUNGS := torch emulate sanitize cpu fuzz interpret gate simulate gpu

.PHONY: help demo test lint format bench package ci clean ladder $(RUNGS)

help: ## list the targets
	@grep -hE '^[a-z]+:.*##' Makefile | sed -E 's/:[^#]*## /: /'

demo: $(INSTALLED) ## train MGRAN on synthetic people, rank others, write a report
	@$(BIN)/mgran-fast demo --output $(RUN)

test: $(INSTALLED) ## run the tests
	MGRAN_EXPECT_NATIVE=1 $(BIN)/python -m pytest -n auto --dist worksteal

lint: $(INSTALLED) ## ruff, mypy, clang-format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run --Werror $(SOURCES)

format: $(INSTALLED) ## write the code as lint wants it
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(SOURCES)

bench: $(INSTALLED) ## race ours against what else there is: tables and plots in runs/benchmark
	$(BIN)/python -m pytest --benchmark

ladder: $(RUNGS) ## all checks of the kernels beyond the tests

torch: $(INSTALLED) ## the ops as torch sees them: are injected bugs caught
	$(BIN)/python $(LADDER)/torch_ops.py

emulate: $(INSTALLED) ## the CUDA kernels on the emulator
	$(call with_nvcc,$(BIN)/python $(LADDER)/emulate.py plain)

sanitize: $(INSTALLED) ## the CUDA kernels on the emulator, under sanitizers
	$(call with_nvcc,$(BIN)/python $(LADDER)/emulate.py sanitize)

cpu: $(INSTALLED) ## the CPU kernels under sanitizers, and on another processor where it can be emulated
	$(BIN)/python $(LADDER)/emulate.py cpu
	$(BIN)/python $(LADDER)/aarch64.py

fuzz: $(INSTALLED) ## any arguments at all, under AddressSanitizer
	$(BIN)/python $(LADDER)/fuzz.py

interpret: $(INSTALLED) ## the Triton kernels in Triton's interpreter
	$(BIN)/python $(LADDER)/interpret.py

gate: $(INSTALLED) ## registers, spills and machine code of the GPU kernels, and their table
	$(call with_nvcc,$(BIN)/python $(LADDER)/compile.py)
	$(BIN)/python $(LADDER)/triton_gate.py bugs
	$(BIN)/python $(LADDER)/table.py --check

simulate: $(INSTALLED) ## the GPU kernels' PTX in the simulator
	$(call with_nvcc,$(BIN)/python $(LADDER)/simulate.py)

gpu: $(INSTALLED) ## on a CUDA device: the tests, compute-sanitizer, timings
	$(BIN)/python $(LADDER)/gpu.py

package: $(INSTALLED) ## wheels with and without CUDA and the source distribution: built, looked into, installed, tested
	@$(BIN)/python tests/packaging/build.py

ci: ## what .ci/run runs: lint, package, test, and every rung of the ladder
	@for step in lint package test $(RUNGS); do \
	  echo "== make $$step"; start=$$(date +%s); $(MAKE) $$step || exit 1; \
	  echo "== $$step took $$(( $$(date +%s) - start )) s"; \
	done

clean: ## remove what the other targets made
	rm -rf $(VENV) build dist runs .pytest_cache .mypy_cache .ruff_cache .hypothesis .benchmarks

# One environment for the demo and the tests. The install is editable, so that Python changes show at once;
# a change of the C++ sources or of the settings installs again.
$(INSTALLED): pyproject.toml CMakeLists.txt $(shell find csrc -type f)
	@test -n "$(PYTHON)" || { echo "make: no Python 3.10 to 3.13 on the PATH; install one, or say make PYTHON=/path/to/python3" >&2; exit 1; }
	@command -v "$${CXX:-c++}" >/dev/null 2>&1 || { echo "make: no C++ compiler ($${CXX:-c++}) on the PATH; install g++ or clang, or set CXX" >&2; exit 1; }
	@$(PYTHON) -c 'import os, sys, sysconfig; sys.exit(not os.path.exists(sysconfig.get_path("include") + "/Python.h"))' \
	  || { echo "make: $(PYTHON) has no headers (Python.h); install them (Debian: python3-dev)" >&2; exit 1; }
	@# An environment that was cut off while it was made is made again.
	@$(BIN)/pip --version >/dev/null 2>&1 || { rm -rf $(VENV); $(PYTHON) -m venv $(VENV); } || { rm -rf $(VENV); echo "make: $(PYTHON) cannot make a virtual environment; install its venv module (Debian: python3-venv)" >&2; exit 1; }
	$(PIP) --upgrade "pip>=26.2"
	$(PIP) --group build
	@# The extension is compiled while what it does not need is unpacked: the first takes processors, the second a disk.
	$(PIP) --no-build-isolation --no-deps --editable . & compiling=$$!; \
	  $(PIP) --no-build-isolation --only-deps ".[train]" && $(PIP) --group test --group lint; unpacked=$$?; \
	  wait $$compiling && exit $$unpacked
	@touch $@
