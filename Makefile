# The verbs of RiskStream. `make help` lists them.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# pip prints errors only.
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
# Number of parallel test processes; they share a broker of each kind. The longest files come first.
JOBS ?= 2

.DEFAULT_GOAL := help
.PHONY: help setup demo test check chaos fuzz compose-test bench guard-baseline audit sbom clean lock

help: ## List the commands
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(STAMP) ## Install everything into .venv, including the riskstream command

$(STAMP): requirements.lock pyproject.toml
	@echo "Installing into $(VENV) ..."
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(PIP) install --require-hashes -r requirements.lock
	@$(PIP) install --no-deps --no-build-isolation --editable .
	@touch $(STAMP)

demo: setup ## Run the whole pipeline on this machine and show the results
	@$(BIN)/riskstream demo

test: setup ## Run the tests, with those on Apache Kafka if Java and Maven are installed
	@$(BIN)/python -m pytest -q -n $(JOBS) --dist loadfile --no-loadscope-reorder

check: setup ## Check formatting, lint, types and import contracts
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

chaos: setup ## Inject two hundred faults on Apache Kafka and print a table (CHAOS="--rounds 20 --only broker")
	@PYTHONPATH=tests $(BIN)/python -m chaos $(CHAOS)

fuzz: setup ## Feed a million hostile inputs to the decoder and the state reader
	@$(BIN)/python -c "import atheris" 2>/dev/null || $(PIP) install --no-build-isolation --editable ".[fuzz]"
	@PYTHONPATH=tests NUMBA_BOUNDSCHECK=1 NUMBA_CACHE_DIR=var/fuzz/compiled \
	  $(BIN)/python -m fuzz --guided-runs 200000 $(FUZZ)

compose-test: setup ## Start, break and scale docker-compose.yml with local base images (as root, Debian)
	@PYTHONPATH=tests $(BIN)/python -m stack

bench: setup ## Run all benchmarks on Apache Kafka, including the peers (15 minutes)
	@mkdir -p var
	@$(BIN)/riskstream bench --json var/bench.json --markdown var/bench.md
	@$(BIN)/python -m benchmarks.windows

guard-baseline: setup ## Record the current calls and bytes per transaction as the allowed maximum
	@PYTHONPATH=tests $(BIN)/python -m support.call_counts

# Tools that only look at the lock files have an environment of their own.
TOOLS := var/tools
$(TOOLS)/.installed: Makefile
	@test -x $(TOOLS)/bin/python || $(PYTHON) -m venv $(TOOLS)
	@$(TOOLS)/bin/python -m pip --disable-pip-version-check --quiet install pip-audit==2.10.1 cyclonedx-bom==7.5.0
	@touch $@

audit: $(TOOLS)/.installed ## Check the image's packages for known vulnerabilities
	@.ci/audit $(TOOLS)

sbom: $(TOOLS)/.installed ## Write the image's bill of materials to var/sbom.json (CycloneDX)
	@mkdir -p var
	@$(TOOLS)/bin/python -W ignore -m cyclonedx_py requirements requirements.image.lock \
	  --pyproject pyproject.toml --output-reproducible --output-file var/sbom.json
	@echo "var/sbom.json: the packages of requirements.image.lock with their hashes"

LOCK := uv pip compile pyproject.toml --universal --generate-hashes --no-emit-index-url --no-annotate \
  --custom-compile-command "make lock"
lock: ## Regenerate requirements.lock and requirements.image.lock from pyproject.toml (needs uv)
	$(LOCK) --extra dev --output-file requirements.lock
	$(LOCK) --extra image --constraints requirements.lock --output-file requirements.image.lock

clean: ## Remove the files that the other commands create
	rm -rf $(VENV) var build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
