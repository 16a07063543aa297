# Everything runs in `.venv`, which each target makes itself. `make demo` and `make test` need make and Python only.
# Another Python gets its own: make PYTHON=python3.13 VENV=.venv-3.13 test
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PLUGINS := $(sort $(wildcard plugins/*/pyproject.toml))
EDITABLE := $(patsubst %/pyproject.toml,-e %,$(PLUGINS))
C_FILES := $(wildcard plugins/*/*/*.[ch])
PACKAGES := . $(patsubst %/pyproject.toml,%,$(PLUGINS))
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
# One process for each core; one that is done takes over tests from another.
PYTEST := $(BIN)/python -m pytest -n auto --maxprocesses 8 --dist worksteal
# Further arguments, as in `make test PYTEST_ARGS="-x tests/test_records.py"`; `-n 0` runs all in this process.
PYTEST_ARGS ?=

.PHONY: help demo test test-fast lint format types layers docs wheels bench clean

help:  ## Say what the targets do
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

demo: $(VENV)/.installed  ## Run the demo: real images, from a dataset's name to a picture
	@$(BIN)/medsegpy demo
	@echo "Next: enter the environment with  . $(BIN)/activate  and try  medsegpy --help"

test: $(VENV)/.installed-dev  ## Run all tests
	$(PYTEST) $(PYTEST_ARGS)

test-fast: $(VENV)/.installed-dev  ## Run the tests that take no more than seconds
	$(PYTEST) -m "not slow" $(PYTEST_ARGS)

lint: $(VENV)/.installed-dev  ## Check style
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/codespell
	$(BIN)/clang-format --dry-run -Werror $(C_FILES)

format: $(VENV)/.installed-dev  ## Repair style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(C_FILES)

types: $(VENV)/.installed-dev  ## Check types
	$(BIN)/mypy

layers: $(VENV)/.installed-dev  ## Check who imports whom
	$(BIN)/lint-imports

docs: $(VENV)/.installed-dev  ## Build the site into site/; a warning is an error
	$(BIN)/python -m sphinx -W --keep-going -q -b html docs site
	@echo "site/index.html"

wheels: $(VENV)/.installed-dev  ## Build a wheel and a source distribution of each package into dist/
	rm -rf dist
	set -e; for package in $(PACKAGES); do \
		$(BIN)/python -m build --no-isolation --outdir dist $$package > /dev/null; done
	ls dist

bench: $(VENV)/.installed-dev  ## Run the benchmarks
	$(BIN)/python -m tests.benchmarks

clean:  ## Remove what the other targets made
	rm -rf .venv .venv-* dist build site .hypothesis .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/bin/python:
	@command -v $(PYTHON) > /dev/null || { \
		echo "There is no '$(PYTHON)' here. Install Python 3.11 or newer, or run: make PYTHON=/path/to/python3"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "medsegpy_core needs Python 3.11 or newer; '$(PYTHON)' is $$($(PYTHON) --version 2>&1)." \
		"Run: make PYTHON=/path/to/python3.11"; exit 1; }
	$(PYTHON) -m venv $(VENV)

# Installed without build isolation: one hatchling and one setuptools, pinned, instead of fresh ones for each package.
$(VENV)/.installed: pyproject.toml constraints.txt $(PLUGINS) | $(VENV)/bin/python
	$(INSTALL) hatchling editables setuptools
	$(INSTALL) --no-build-isolation -e ".[fast]" $(EDITABLE)
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(INSTALL) --no-build-isolation -e ".[dev]" $(EDITABLE)
	@touch $@
