# The gate and the demo. Everything runs in .venv, which `make setup` makes once and again when the pins change.
#
#   make demo       train the quickstart federation and say where its report lies (fresh each time)
#   make test       the fast tests
#   make test-all   the slow ones too, and new examples for the properties
#   make check      format, lint, types, import floors, doctests
#   make clean      remove .venv, caches and the demo's output
#
# PYTHON=python3.12 picks another interpreter for .venv; PIP_FLAGS="..." goes to every pip install, for example the
# index that holds torch's CPU build.

PYTHON ?= python3
PIP_FLAGS ?=
BIN := .venv/bin
KERNELS := src/fedhybrid/codecs/kernels
INSTALLED := .venv/.installed
DEMO := runs/quickstart
# Tests run beside each other, one file after the other in as many processes as there are processors.
BESIDE := -n auto --dist loadfile

.PHONY: setup demo test test-all check clean

setup: $(INSTALLED)

# torch goes first, alone, so that no other requirement can choose a different build of it.
$(INSTALLED): pyproject.toml constraints.txt setup.py $(wildcard $(KERNELS)/native/*)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "Python 3.11 or newer is needed, $(PYTHON) is $$($(PYTHON) -V 2>&1). Try: make $(MAKECMDGOALS) PYTHON=python3.12"; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check $(PIP_FLAGS) -c constraints.txt torch==2.13.0
	$(BIN)/pip install --quiet --disable-pip-version-check $(PIP_FLAGS) -c constraints.txt -e '.[dev]'
	@touch $@

demo: setup
	rm -rf $(DEMO)
	$(BIN)/fedhybrid run recipes/quickstart.toml --out $(DEMO)

test: setup
	$(BIN)/pytest -q $(BESIDE)

test-all: setup
	$(BIN)/pytest -q $(BESIDE) -m 'slow or not slow' --hypothesis-profile=search

check: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/pytest -q --doctest-modules src

clean:
	rm -rf .venv $(DEMO) build dist $(KERNELS)/*.so src/*.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
