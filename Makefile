# `make` lists the targets. Each makes its own virtual environment in .venv on first use.
# Linux, macOS, and Windows in Git Bash.

VENV := .venv
INSTALLED := $(VENV)/installed
COMPILED := $(VENV)/compiled
ifeq ($(OS),Windows_NT)
PYTHON ?= python
BIN := $(VENV)/Scripts
else
PYTHON ?= python3
BIN := $(VENV)/bin
endif

# Python keeps compiled modules, whatever the environment says: the tests start many processes.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help demo test types suite bench docs format clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-9s%s\n", $$1, $$2 }' Makefile

# The stamp is newer than these files once an installation has succeeded. Nothing is compiled here:
# Python compiles a module when it is first imported, and `make demo` imports few of them.
$(INSTALLED): pyproject.toml setup.py constraints.txt typings/link.py
	$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check --no-compile -c constraints.txt -e ".[dev]"
	$(BIN)/python typings/link.py
	touch $@

demo: $(INSTALLED) ## train and evaluate an agent on bundled data, with three quarters of the steps
	$(BIN)/python scripts/train.py --dataset-id qgpo/halfcheetah/mixed-v0 --preset laptop --longer 0.75 \
		--seed 0 --run-dir runs/demo --overwrite --n-episodes 50 --guidance-scales 0 1 2 4

test: $(INSTALLED) ## formatting, lint, types, tests
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	@$(MAKE) --no-print-directory -j 2 types suite

# mypy has one thread, so the tests run beside it.
types: $(INSTALLED) ## types alone
	$(BIN)/mypy

# Collecting the tests compiles what they import: here once, and not by three workers at the same time.
$(COMPILED): $(INSTALLED)
	@$(BIN)/pytest --collect-only --quiet >/dev/null 2>&1 || true
	@touch $@

# Three workers keep two cores busy: some tests wait for processes that they start.
suite: $(COMPILED) ## tests alone
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 3 --dist loadfile

bench: $(INSTALLED) ## what has become slower than the committed measurements, in two minutes
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/speed.py --short --compare

docs: $(INSTALLED) ## the site, into build/site; open its index.html
	-$(BIN)/python docs/_site/fetch.py
	$(BIN)/mkdocs build --strict --quiet

format: $(INSTALLED) ## format the code and repair what lint can repair
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean: ## delete the virtual environment and caches; runs/ and datasets stay
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
