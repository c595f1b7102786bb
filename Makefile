# What people and CI run. Everything installs into .venv with the versions pinned in requirements.lock.
.DEFAULT_GOAL := help
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# Images of containers forbid Python to keep what it has compiled: each process would compile all of Dagster again, two
# thirds of its start.
export PYTHONDONTWRITEBYTECODE :=
# One more than the cores, since tests wait for locks and servers as well; each has a server of its own.
WORKERS ?= $(shell cores=$$(getconf _NPROCESSORS_ONLN); [ "$$cores" -le 8 ] || cores=8; echo $$((cores + 1)))

.PHONY: help setup demo test check bench test-system lock
help:
	@echo "make demo   build the incident's store on an embedded PostgreSQL and migrate it"
	@echo "make test   run the tests"
	@echo "make check  lint, format, types"
	@echo "make bench  the engine beside the hand-written alternatives, a million chunks (ARGS=\"--scale 0.1\" for less)"

# What is never imported need not be compiled: half the time of an installation.
$(READY): pyproject.toml requirements.lock
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed; set PYTHON=/path/to/python3.11"; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --no-compile --quiet --disable-pip-version-check -r requirements.lock
	$(BIN)/python -m pip install --no-compile --quiet --disable-pip-version-check --no-deps -e .
	@touch $(READY)

setup: $(READY)

demo: $(READY)
	@$(BIN)/uuid-pipeline demo $(ARGS)
	@echo "  (the command is $(BIN)/uuid-pipeline; put it on your PATH with: . $(BIN)/activate)"

test: $(READY)
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal -m "not system"

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# What it needs beside the engine is no part of an installation.
bench: $(READY)
	$(BIN)/python -m pip install --no-compile --quiet --disable-pip-version-check 'matplotlib>=3.9'
	$(BIN)/python -m benchmarks $(ARGS)

test-system: $(READY)
	bash .ci/system-packages
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal -m system

# Resolve anew the versions that CI and the demo install.
lock:
	$(PYTHON) -m venv .venv-lock && .venv-lock/bin/python -m pip install --no-compile --quiet -e '.[dev]'
	.venv-lock/bin/python -m pip freeze --exclude-editable > requirements.lock
	rm -rf .venv-lock
