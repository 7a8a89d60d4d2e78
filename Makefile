# `make quickstart` and `make test` set everything up by themselves.
PYTHON ?= python3
BIN := .venv/bin
# nothing phones home by default
export DO_NOT_TRACK = 1
export HF_HUB_DISABLE_TELEMETRY = 1

.PHONY: setup quickstart test lint fuzz clean

setup: .venv/.done

.venv/.done: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12) and "Python 3.11 or 3.12 is needed: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --progress-bar off --constraint constraints.txt --editable '.[s3,paper,dev]'
	touch $@

quickstart: setup
	$(BIN)/python -m flows.quickstart

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# a thread each: two workers' threads would wait for each other on two cores
test: lint
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist loadfile

# hostile inputs over all commands; `make fuzz CASES="shard picture"` runs those whose names hold a word
fuzz: setup
	OMP_NUM_THREADS=1 PYTHONPATH=tests/support $(BIN)/python -m fuzz $(CASES)

clean:
	rm -rf .venv
