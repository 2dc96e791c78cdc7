# `make` or `make help` lists what there is to do. Needs Python 3.11 or newer, make and pip.

PYTHON ?= python3
VENV ?= .venv
ARGS ?=

BIN := $(VENV)/bin
RUN := $(BIN)/python -m pipeline
INSTALL := $(PYTHON) scripts/install.py --venv $(VENV)
DEPENDENCIES := setup.cfg pyproject.toml scripts/install.py $(wildcard requirements/*.txt)
# `experiment=...` in ARGS wins over the profile chosen for this machine.
EXPERIMENT = $(if $(filter experiment=%,$(ARGS)),,$$($(BIN)/python -m pipeline.profile))

.DEFAULT_GOAL := help
.PHONY: help venv install install-dev train-local prepare warmstart evaluate test test-unit lint \
	format lock clean clean-venv compare bench-async bench-layout bench-peers bench-retrieval \
	bench-retrieval-build bench-update chaos train-judge

help: ## list the targets
	@echo 'Gleaner: train search agents end to end. Targets:'
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo 'Overrides: make train-local ARGS="trainer.steps=5 algorithm=grpo"'
	@echo 'Profile:   GLEANER_PROFILE=cpu|gpu (default: a usable GPU, else the CPU)'

venv: install ## the same as install

install: $(VENV)/.installed ## make .venv and install what a run needs

install-dev: $(VENV)/.installed-dev ## also the tools for tests and checks

$(VENV)/.installed: $(DEPENDENCIES)
	@$(INSTALL)
	@touch $@

$(VENV)/.installed-dev: $(DEPENDENCIES)
	@$(INSTALL) --dev
	@touch $(VENV)/.installed $@

train-judge: install ## make the small judge from scratch
	@set -e; chosen="$(EXPERIMENT)"; $(RUN) train_judge $$chosen policy=small protocol=default $(ARGS)

train-local: install ## prepare, train, evaluate and report on this machine
	@set -e; chosen="$(EXPERIMENT)"; $(RUN) train $$chosen $(ARGS)

prepare: install ## make the default task and its index, where they are missing
	@set -e; chosen="$(EXPERIMENT)"; $(RUN) prepare $$chosen $(ARGS)

warmstart: install ## make the small policy from scratch
	@set -e; chosen="$(EXPERIMENT)"; $(RUN) warmstart $$chosen policy=small protocol=default $(ARGS)

evaluate: install ## evaluate a policy, e.g. ARGS="policy.path=outputs/RUN/policy"
	@set -e; chosen="$(EXPERIMENT)"; $(RUN) evaluate $$chosen $(ARGS)

compare: install ## compare algorithms over seeds, e.g. ARGS="compare=judge compare.minutes=80"
	@$(RUN) compare $(if $(filter compare=%,$(ARGS)),,compare=credit) $(ARGS)

bench-layout: install ## layouts of actors and threads on this machine
	@$(BIN)/python -m benchmarks.layout $(ARGS)

bench-peers: install-dev ## the same task by TRL's trainer, in turn with ours
	@$(BIN)/python -m benchmarks.peers $(ARGS)

bench-retrieval: install ## our retrieval server and exact search against plain ones
	@$(BIN)/python -m benchmarks.retrieval $(ARGS)

bench-retrieval-build: install ## time and memory of building an index
	@$(BIN)/python -m benchmarks.retrieval_build $(ARGS)

bench-update: install ## our update against a padded one, on the same batch
	@$(BIN)/python -m benchmarks.update $(ARGS)

bench-async: install ## how near a run comes to its limit, by staleness and latency
	@$(BIN)/python -m benchmarks.asynchrony $(ARGS)

chaos: install ## a run whose parts are killed, frozen and made to fail
	@$(BIN)/python -m benchmarks.chaos $(ARGS)

test: install-dev ## all tests; ARGS go to pytest
	@$(BIN)/python -m pytest $(ARGS)

test-unit: install-dev ## the tests that take seconds
	@$(BIN)/python -m pytest tests/unit $(ARGS)

lint: install-dev ## ruff and its format, import directions, types
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/lint-imports --no-logo
	@$(BIN)/mypy

format: install-dev ## put the code into the project's format
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

lock: install-dev ## write requirements/*.txt again from setup.cfg
	@$(BIN)/python scripts/lock.py

clean: ## remove caches and builds; .venv, data and outputs stay
	@rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache \
		.hypothesis
	@find actors pipeline retrieval_index scripts tests benchmarks -name __pycache__ \
		-type d -prune -exec rm -rf {} +

clean-venv: ## remove the virtual environment
	@rm -rf $(VENV)
