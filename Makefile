# Two commands for a fresh machine: `make demo` and `make test`. Each makes the environment in .venv once.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: demo test check check-golden check-slow lint clean

demo: $(READY)
	$(BIN)/smalti demo --out runs/demo

test: $(READY) lint
	$(BIN)/python -m pytest -m "not slow"

check: test check-golden check-slow

# The original's numbers, in the folder that SMALTI_GOLDEN names (default ../shared/golden): none may be missing.
check-golden: $(READY)
	$(BIN)/python -m pytest -m golden -rs --golden-required

check-slow: $(READY)
	$(BIN)/python -m pytest -m slow

lint: $(READY)
	$(BIN)/ruff format --check src tests
	$(BIN)/ruff check src tests
	$(BIN)/mypy

clean:
	rm -rf $(VENV) build .mypy_cache .ruff_cache .pytest_cache

# Only a changed list of packages makes the environment anew.
$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	touch $(READY)
