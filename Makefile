# Continual learning, reproduced. `make` alone lists what can be made.
PY      ?= python3
PROFILE := quick
JOBS    ?= 1
BIN     := .venv/bin
PYTHON  := $(BIN)/python
READY   := .venv/.ready

# An inherited value would switch off the .pyc files that --compile-bytecode writes: +9 s at every kernel start.
export PYTHONDONTWRITEBYTECODE :=
# Threads that spin while they wait slow each other down up to four times on a busy machine.
export OMP_WAIT_POLICY := PASSIVE

.PHONY: help setup book test bench lab chapter site pair lock clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-8s %s\n", $$1, $$2}' Makefile

setup: $(READY) ## make .venv from the lock (PY=python3.12 picks the Python, UVFLAGS=... goes to uv)

.venv/bin/uv:
	@$(PY) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' || \
	{ echo "cllib needs Python 3.11, 3.12 or 3.13, and PY=$(PY) is not one: try 'make setup PY=python3.12'" >&2; exit 1; }
	$(PY) -m venv .venv
	$(PYTHON) -m pip install --quiet --disable-pip-version-check uv

# The lock constrains, pyproject.toml asks: a CPU-only torch then brings no CUDA packages along.
$(READY): .requirements.lock pyproject.toml | .venv/bin/uv
	$(BIN)/uv pip install --python $(PYTHON) --compile-bytecode --constraints .requirements.lock --editable '.[test]' $(UVFLAGS)
	@touch $@

# Embedded data only: a chapter that tries to download weights shall fail at once, not after a minute of retries.
book test: export HF_HUB_OFFLINE := 1

book: $(READY) ## run every chapter in the quick profile (JOBS=2: two side by side), build the site
	$(BIN)/cllib run --all --profile $(PROFILE) --jobs $(JOBS)
	$(BIN)/cllib site --profile $(PROFILE)

test: $(READY) ## style, types, unit tests, every notebook and the site in the smoke profile
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	CLLIB_PROFILE=smoke OMP_NUM_THREADS=1 $(PYTHON) -m pytest -n auto --dist loadfile --no-loadscope-reorder \
		--nbval-lax --nbval-current-env tests book

bench: $(READY) ## measure the speed against the original programs and a bare loop
	$(PYTHON) tests/benchmarks/bench_memory_head.py
	$(PYTHON) tests/benchmarks/bench_loop.py
	$(PYTHON) tests/benchmarks/bench_metaplasticity.py
	$(PYTHON) tests/benchmarks/bench_latent_replay.py
	$(PYTHON) tests/benchmarks/bench_brain_replay.py
	$(PYTHON) tests/benchmarks/bench_birt.py

lab: $(READY) ## open the chapters in JupyterLab
	$(PYTHON) -m jupyter lab --LabApp.default_url=/lab/tree/book

chapter: $(READY) ## run one chapter: NAME=01_memory_head PROFILE=quick ARGS='-p seeds=3'
	$(BIN)/cllib run $(NAME) --profile $(PROFILE) $(ARGS)

site: $(READY) ## build the site from the chapters that were run: PROFILE=quick
	$(BIN)/cllib site --profile $(PROFILE)

pair: $(READY) ## write each chapter's .ipynb from its .py
	$(BIN)/cllib pair

lock: | .venv/bin/uv ## resolve .requirements.lock from pyproject.toml (ARGS=--upgrade for newer versions)
	$(BIN)/uv pip compile --quiet --universal --extra test --python-version 3.11 $(ARGS) pyproject.toml -o .requirements.lock

clean: ## remove the site, executed chapters, kept runs and caches (.venv and downloads stay)
	rm -rf _build artifacts .pytest_cache .ruff_cache .mypy_cache .hypothesis
