# Every target sets up what it needs by itself.
SHELL := /bin/bash
.DEFAULT_GOAL := help

AGENT ?= shell
RUNNER ?= auto
PYTEST ?=
# Tests wait more than they compute: three processes need three quarters of the time of two, also on two cores.
PROCESSES ?= 3
ROUNDS ?= 50
SEED ?=
BIN := .venv/bin
# Tests create many files; memory is faster than a disk, where there is enough of it. Nothing is kept there.
TEST_TMP := $(shell free=$$(df --output=avail -k /dev/shm 2>/dev/null | tail -1); \
	[ -w /dev/shm ] && [ "$${free:-0}" -gt 4000000 ] && echo /dev/shm || echo $${TMPDIR:-/tmp})

.PHONY: help
help: ## Show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

.PHONY: demo
demo: ## Play the whole story on this machine (AGENT=shell|claude|codex, RUNNER=auto|docker|local)
	@.ci/venv
	@$(BIN)/conductor demo --agent $(AGENT) --runner $(RUNNER)

.PHONY: test
test: ## Lint, check types and run every test; installs what they need where it may
	@.ci/venv dev
	@tests/provision.sh
	@$(MAKE) --no-print-directory lint
	@TMPDIR=$(TEST_TMP) $(BIN)/pytest -n $(PROCESSES) --max-worker-restart 0 $(PYTEST)

.PHONY: faults
faults: ## Kill every part of the running product at random points (ROUNDS=50, SEED= repeats what was seen)
	@.ci/venv dev
	@tests/provision.sh
	@TMPDIR=$(TEST_TMP) CONDUCTOR_FAULTS_ROUNDS=$(ROUNDS) CONDUCTOR_FAULTS_SEED=$(SEED) \
		$(BIN)/pytest tests/faults -q -x $(PYTEST)

.PHONY: lint
lint: ## Check style and types
	@.ci/venv dev
	@$(BIN)/ruff check --quiet .
	@$(BIN)/ruff format --check --quiet .
	@$(BIN)/mypy

.PHONY: format
format: ## Format the code
	@.ci/venv dev
	@$(BIN)/ruff check --quiet --fix .
	@$(BIN)/ruff format --quiet .

.PHONY: manual
manual: ## Write the parts of README and docs that are made from the code
	@.ci/venv dev
	@$(BIN)/python -m tests.manual

.PHONY: bench
bench: ## Measure, as ratios against baselines taken in the same run
	@.ci/venv dev
	@tests/provision.sh
	@TMPDIR=$(TEST_TMP) $(BIN)/python -m tests.bench

.PHONY: wheel
wheel: ## Build the wheel into dist/
	@.ci/venv dev
	@$(BIN)/python -m build --wheel --outdir dist . >/dev/null
	@ls dist/*.whl

.PHONY: clean
clean: ## Remove what these targets made
	rm -rf .venv build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
