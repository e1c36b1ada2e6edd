# The verbs of RiskStream. `make help` lists them.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# Nothing of pip's talk but its errors; a fresh machine's first run is long enough.
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
# Test files at a time; the jobs share a broker of each kind. Those with brokers come first, as the longest.
JOBS ?= 2

.DEFAULT_GOAL := help
.PHONY: help setup demo test check chaos fuzz compose-test bench guard-baseline clean lock

help: ## List the verbs
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(STAMP) ## Install everything into .venv, the riskstream command in it

$(STAMP): requirements.lock pyproject.toml
	@echo "Installing into $(VENV) ..."
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(PIP) install --require-hashes -r requirements.lock
	@$(PIP) install --no-deps --no-build-isolation --editable .
	@touch $(STAMP)

demo: setup ## Run the whole job on this machine and show what it did
	@$(BIN)/riskstream demo

test: setup ## Run the tests; those on Apache Kafka too where Java and Maven are there
	@$(BIN)/python -m pytest -q -n $(JOBS) --dist loadfile --no-loadscope-reorder

check: setup ## Lint, types, import contracts
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

chaos: setup ## Two hundred faults on Apache Kafka, and a table (CHAOS="--rounds 20 --only broker")
	@PYTHONPATH=tests $(BIN)/python -m chaos $(CHAOS)

fuzz: setup ## A million hostile inputs for the decoder and the state reader
	@$(BIN)/python -c "import atheris" 2>/dev/null || $(PIP) install --no-build-isolation --editable ".[fuzz]"
	@PYTHONPATH=tests NUMBA_BOUNDSCHECK=1 NUMBA_CACHE_DIR=var/fuzz/compiled \
	  $(BIN)/python -m fuzz --guided-runs 200000 $(FUZZ)

compose-test: setup ## Bring docker-compose.yml up with local base images, break it, scale it (as root, Debian)
	@PYTHONPATH=tests $(BIN)/python -m stack

bench: setup ## Measure everything on Apache Kafka, peers beside it (15 minutes)
	@mkdir -p var
	@$(BIN)/riskstream bench --json var/bench.json --markdown var/bench.md
	@$(BIN)/python -m benchmarks.windows

guard-baseline: setup ## Take today's calls and bytes of a transaction for the most that is allowed
	@PYTHONPATH=tests $(BIN)/python -m support.call_counts

LOCK := uv pip compile pyproject.toml --universal --generate-hashes --no-emit-index-url --no-annotate \
  --custom-compile-command "make lock"
lock: ## Write requirements.lock and the image's anew from pyproject.toml (needs uv)
	$(LOCK) --extra dev --output-file requirements.lock
	$(LOCK) --extra image --constraints requirements.lock --output-file requirements.image.lock

clean: ## Remove what the other verbs made
	rm -rf $(VENV) var build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
