# Two commands for a fresh machine: `make demo` and `make test`. Each makes the environment in .venv once.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
CODE := src tests benchmarks docs/make_api.py docs/make_images.py docs/make_page_examples.py docs/site.py docs/quickstart.ipynb
# Several processes of one thread each; a file's tests stay together, for they share what they have trained.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile

.PHONY: demo test check check-golden check-slow check-web lint api notebook clean

demo: $(READY)
	$(BIN)/smalti demo --out runs/demo

test: $(READY) lint
	$(PYTEST) -m "not slow and not web"

check: test check-golden check-slow

# The original's numbers, in the folder that SMALTI_GOLDEN names (default ../shared/golden): none may be missing.
check-golden: $(READY)
	$(PYTEST) -m golden -rs --golden-required

check-slow: $(READY)
	$(BIN)/python -m pytest -m slow  # one after the other: kills and packages that take all cores

# The page in a browser without a window: Chromium of this machine, or the one that SMALTI_CHROMIUM names.
check-web: $(VENV)/.check-web
	$(PYTEST) -m web

lint: $(READY)
	$(BIN)/ruff format --check $(CODE)
	$(BIN)/ruff check $(CODE)
	$(BIN)/mypy

# docs/api, from the docstrings.
api: $(READY)
	$(BIN)/python docs/make_api.py

# Runs docs/quickstart.ipynb with the model that comes with smalti, and keeps what it shows.
notebook: $(VENV)/.notebook
	$(BIN)/python -m nbconvert --to notebook --execute --inplace --ExecutePreprocessor.record_timing=False docs/quickstart.ipynb

clean:
	rm -rf $(VENV) build .mypy_cache .ruff_cache .pytest_cache

# Only a changed list of packages makes the environment again. Modules are compiled when they are first imported: few are.
$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --no-compile --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --no-compile --constraint constraints.txt --editable ".[dev]"
	touch $(READY)

$(VENV)/.notebook: $(READY)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[notebook]"
	touch $(VENV)/.notebook

$(VENV)/.check-web: $(READY)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[check-web]"
	touch $(VENV)/.check-web
