# `make run` shows what the engine is for, `make test` proves it. Both set up what they need.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.DEFAULT_GOAL := help
.PHONY: help setup run test soak check test-servers test-pythons bench-quick build clean

help: ## Show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "overbooked-lock needs Python 3.11 or newer; name one with: make PYTHON=python3.x"; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { echo "This Python has no venv module; on Debian and Ubuntu: apt-get install python3-venv"; exit 1; }
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

setup: $(READY) ## Make the virtual environment

run: $(READY) ## Run the demo: a race for slots on the embedded server
	@$(BIN)/overbooked-lock demo

test: $(READY) ## Run the tests (under 5 minutes)
	$(BIN)/python -m pytest

soak: $(READY) ## Run the tests in their long versions
	OVERBOOKED_SOAK=1 $(BIN)/python -m pytest --timeout 3600

check: $(READY) ## Lint and type-check
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench-quick: $(READY) ## Compare with redis-py's own Lock, in under a minute
	$(BIN)/python -m benchmarks.quick

build: $(READY) ## Build the wheel and the sdist
	$(BIN)/python -m build --no-isolation

clean: ## Remove what the other targets made
	rm -rf $(VENV) dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
