# Each target sets up what it needs: `make demo` and `make test` work on a fresh machine with Python 3.11 or later.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: install demo test lint test-extras results-smoke

install: .venv/installed

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	touch $@

demo: install
	$(BIN)/sequencematch demo

# A miniature of every committed study: does it still run?
results-smoke: install
	$(BIN)/sequencematch study studies/*.yaml --quick --output runs/smoke

# One thread for each of two test processes: on few cores, threads that compete are slower than one.
test: install
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 --dist loadfile

# The tests that `make test` skips: MAUVE, the evaluation harness, and the report in a browser (needs chromium).
test-extras: install
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[mauve,lm_eval,browser]"
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 tests/integrations tests/evaluation/test_evaluation_mauve.py tests/reporting/test_report_browser.py

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
