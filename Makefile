# The commands of the project. `make demo` shows it, `make test` proves it; `make help` lists all.
#
# Without KUBECONFIG, a real Kubernetes is started on this machine (tests/cluster) and used. With KUBECONFIG, that
# cluster is used and none is started; then IMAGE, FLIGHTS_IMAGE and POSTGRES_IMAGE name images it can pull.

SHELL := /bin/bash
.DEFAULT_GOAL := help
.PHONY: help env cluster image install demo uninstall test lint format coverage bench crds cluster-down clean

BIN := .venv/bin
BOOTSTRAP_PYTHON ?= $(shell command -v python3.13 || command -v python3.12 || command -v python3.11 || command -v python3)
NAMESPACE ?= flowstone-system
RELEASE ?= flowstone
HELM_ARGS ?=

OWN_KUBECONFIG := $(CURDIR)/.cluster/kubeconfig
ifeq ($(or $(KUBECONFIG),$(OWN_KUBECONFIG)),$(OWN_KUBECONFIG))
OWN := 1
export KUBECONFIG := $(OWN_KUBECONFIG)
export PATH := $(CURDIR)/.cluster/bin:$(PATH)
endif
export FLOWSTONE_OWN_CLUSTER := $(OWN)

help: ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1|\2/' | column -t -s '|'

env: .venv/.ready ## .venv with everything: locked dependencies, FlowStone itself editable

.venv/.ready: requirements/dev.lock pyproject.toml
	@$(BOOTSTRAP_PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "FlowStone needs Python 3.11 or later; $(BOOTSTRAP_PYTHON) is older. Set BOOTSTRAP_PYTHON." >&2; exit 1; }
	@test -x $(BIN)/python || $(BOOTSTRAP_PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/dev.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@

ifdef OWN
cluster: env ## a real Kubernetes on this machine: .cluster/kubeconfig, .cluster/bin/{kubectl,helm}
	@$(BIN)/python -m tests.cluster up

cluster-down: env ## stop it and leave nothing behind
	@$(BIN)/python -m tests.cluster down
else
cluster: env
	@echo "KUBECONFIG=$(KUBECONFIG): using that cluster, starting none."
	@kubectl version >/dev/null || { echo "That cluster does not answer." >&2; exit 1; }

cluster-down:
	@echo "KUBECONFIG=$(KUBECONFIG) is not ours to stop; 'make uninstall' takes FlowStone off it."
endif

format: env ## put the code in shape
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

lint: env ## ruff, mypy, import contracts
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

test: env ## everything: lint, unit, Postgres, real cluster; leaves nothing running
	@.ci/test

coverage: env ## line coverage of the tests that need no cluster
	$(BIN)/pytest -q tests/unit tests/postgres --cov=flowstone --cov-branch --cov-report=term-missing:skip-covered

bench: cluster ## the measurements behind the numbers in the docs
	$(BIN)/pytest -q tests/bench -s
