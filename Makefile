# make demo: install, run the demo study, write its report.   make test: install, run the tests.   make check: lint, then test.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/installed

.PHONY: demo test check lint install clean

install: $(STAMP)

# Stale when the requirements are newer than the last installation, or the environment's Python is gone.
$(STAMP): pyproject.toml constraints.txt
	@if [ ! -x $(BIN)/python ] || ! $(BIN)/python -c "import sys; assert sys.version_info >= (3, 11)" 2>/dev/null; then \
		rm -rf $(VENV) && $(PYTHON) -m venv $(VENV); fi
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $(STAMP)

demo: $(STAMP)
	$(BIN)/bench run demo
	$(BIN)/bench compare demo

test: $(STAMP)
	$(BIN)/python -m pytest -n 2 --dist worksteal

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

check: lint test

clean:
	rm -rf $(VENV) build dist *.egg-info
