# Two commands for a fresh machine: `make demo` and `make test`. Each makes the environment in .venv once.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# Several processes of one thread each; a file's tests stay together, for they share what they have trained.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile

.PHONY: demo test check check-golden check-slow lint clean

demo: $(READY)
	$(BIN)/smalti demo --out runs/demo

test: $(READY) lint
	$(PYTEST) -m "not slow"

check: test check-golden check-slow

# The original's numbers, in the folder that SMALTI_GOLDEN names (default ../shared/golden): none may be missing.
check-golden: $(READY)
	$(PYTEST) -m golden -rs --golden-required

check-slow: $(READY)
	$(BIN)/python -m pytest -m slow  # one after the other: kills and packages that take all cores

lint: $(READY)
	$(BIN)/ruff format --check src tests benchmarks
	$(BIN)/ruff check src tests benchmarks
	$(BIN)/mypy

clean:
	rm -rf $(VENV) build .mypy_cache .ruff_cache .pytest_cache

# Only a changed list of packages makes the environment anew.
$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	touch $(READY)
