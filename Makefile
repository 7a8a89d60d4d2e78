# `make quickstart` and `make test` set everything up by themselves.
PYTHON ?= python3
BIN := .venv/bin
PINNED := --constraint constraints.txt --editable '.[s3,ray,paper,dev]'
# pip's own settings that uv does not read
UV_SOURCES := $(if $(PIP_INDEX_URL),--default-index $(PIP_INDEX_URL)) $(if $(PIP_FIND_LINKS),--find-links $(PIP_FIND_LINKS))
# nothing phones home by default
export DO_NOT_TRACK = 1
export HF_HUB_DISABLE_TELEMETRY = 1

.PHONY: setup quickstart pretrain quick test long browser docs lint accelerator carry fuzz chaos clean

setup: .venv/.done

# uv sets up several times as fast as pip, from the same pins; where it is not to be had, pip does it.
# Both compile what they install: every command starts in half the time.
.venv/.done: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12) and "Python 3.11 or 3.12 is needed: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv .venv
	@echo "Installing into .venv: 3 GB to download the first time, 7 GB on the disk."
	@$(BIN)/pip install --quiet --progress-bar off --constraint constraints.txt uv \
	&& $(BIN)/uv pip install --compile-bytecode --quiet --python $(BIN)/python $(UV_SOURCES) $(PINNED) \
	|| { echo "uv cannot install here; pip does it, in some minutes."; $(BIN)/pip install --quiet --progress-bar off $(PINNED); }
	touch $@

quickstart: setup
	$(BIN)/python -m flows.quickstart

# the small model from which the quickstart starts: nine hours on two cores; goes on where it was stopped
pretrain: setup
	$(BIN)/python -m flows.pretrain

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# a thread each: two workers' threads would wait for each other on two cores
quick: lint
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist loadfile -m 'not slow and not browser'

test: lint
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist loadfile -m 'not long and not browser'

# the few tests that take longest: all that the pages show, all Prefect deployments, the dry run of make accelerator
long: setup
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist loadfile -m long

# the pages in a real browser, which is installed where it is missing
browser: setup
	command -v chromium chromium-browser google-chrome >/dev/null || { apt-get update -q && apt-get install -y -q chromium; }
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist loadfile -m browser

# the documentation site, in build/site; a dead link ends it
docs: setup
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

# everything that needs a GPU, measured and proven; without one a dry run at tiny size
accelerator: setup
	$(BIN)/python benchmarks/accelerator.py --out runs/accelerator

# what benchmarks/accelerator.py imports besides torch, as wheels for a GPU machine that can install nothing
CARRIED := annotated-types anyio click filelock h11 httpcore2 httpx2 huggingface-hub idna lazy-loader numpy packaging pillow \
  pydantic pydantic_core PyYAML safetensors torchao tqdm truststore typing-inspection
carry:
	rm -rf build/carry
	$(PYTHON) -m pip download --quiet --progress-bar off --no-deps --only-binary :all: --python-version 3.12 \
	  --platform manylinux_2_28_x86_64 --platform manylinux2014_x86_64 --constraint constraints.txt --dest build/carry $(CARRIED)
	du -sh build/carry

# hostile inputs over all commands; `make fuzz CASES="shard picture"` runs those whose names hold a word
fuzz: setup
	OMP_NUM_THREADS=1 PYTHONPATH=tests/support $(BIN)/python -m fuzz $(CASES)

# curations killed at random moments, local and on Ray, and compared with an undisturbed one
chaos: setup
	OMP_NUM_THREADS=1 PYTHONPATH=tests/support $(BIN)/python -m chaos

clean:
	rm -rf .venv
