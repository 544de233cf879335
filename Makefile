# `make train` and `make test` do everything on a fresh Debian or Ubuntu machine.
# Only `make system` needs root, and only where the GL libraries are missing.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
TRAIN_ARGS ?= --reward siglip-t --minutes 20

# The torch release whose plain wheel runs on a CPU alone where one is offered; any of the range in pyproject.toml works.
TORCH ?= torch==2.13.0

# Two processes: the simulator's tests wait for each other's worlds, and a file's tests share what they made.
PYTEST_ARGS ?= --numprocesses=2 --dist=loadfile

.PHONY: train test test-slow check lint types contracts system install wheel clean

train: install
	$(BIN)/vlacoach train $(TRAIN_ARGS)

test: install
	$(BIN)/pytest -m "not slow" $(PYTEST_ARGS)

test-slow: install
	$(BIN)/pytest --timeout=7200

check: lint types contracts test

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: install
	$(BIN)/mypy

contracts: install
	$(BIN)/lint-imports

system:
	@bash scripts/system_libraries.sh

install: system $(VENV)/.installed

$(VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet "$(TORCH)" || echo "$(TORCH) is not offered here; taking any release in range"
	$(BIN)/python -m pip install --quiet --editable ".[dev]"
	touch $@

wheel: install
	$(BIN)/python -m pip wheel --quiet --no-deps --wheel-dir dist .

clean:
	rm -rf $(VENV) build dist *.egg-info
