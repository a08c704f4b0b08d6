# The commands of the project. `make demo` shows it, `make test` proves it; `make help` lists all.
#
# Without KUBECONFIG, a real Kubernetes is started on this machine (tests/cluster) and used. With KUBECONFIG, that
# cluster is used and none is started; then IMAGE, FLIGHTS_IMAGE and POSTGRES_IMAGE name images it can pull.

SHELL := /bin/bash
.DEFAULT_GOAL := help
.PHONY: help env cluster image install demo uninstall test lint format coverage bench chaos crds cluster-down

BIN := .venv/bin
BOOTSTRAP_PYTHON ?= $(firstword $(foreach python,python3.13 python3.12 python3.11 python3,$(shell \
  $(python) -c 'import sys, venv; sys.version_info >= (3, 11) and print("$(python)")' 2>/dev/null)))
SYSTEM := flowstone-system
HELM_ARGS ?=
CACHE := $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/flowstone
FLIGHTS_CONTEXT := .cluster/flights-image

# The cluster that tests/cluster/layout.py starts; tests/unit/test_project.py says when these differ from it.
OWN_KUBECONFIG := $(CURDIR)/.cluster/kubeconfig
OWN_SERVER := https://10.87.0.1:6443
OWN_DOCKER := /run/flowstone-cluster/docker.sock
DOCKER := DOCKER_HOST=unix://$(OWN_DOCKER) DOCKER_API_VERSION=1.41 DOCKER_BUILDKIT=0 docker

# OWN: we start and stop the cluster. LOADABLE: images can be put on its node, because it runs on this machine, be it
# started by this checkout or by another one.
ifeq ($(or $(KUBECONFIG),$(OWN_KUBECONFIG)),$(OWN_KUBECONFIG))
OWN := 1
LOADABLE := 1
export KUBECONFIG := $(OWN_KUBECONFIG)
export PATH := $(CURDIR)/.cluster/bin:$(PATH)
else
LOADABLE := $(shell test -S $(OWN_DOCKER) && grep -qsF '$(OWN_SERVER)' '$(KUBECONFIG)' && echo 1)
export PATH := $(PATH):$(CURDIR)/.cluster/bin
endif
ifdef LOADABLE
IMAGE ?= localhost/flowstone:dev
FLIGHTS_IMAGE ?= localhost/flowstone-flights:dev
POSTGRES_IMAGE ?= localhost/flowstone-postgres:17
else
DOCKER := docker
POSTGRES_IMAGE ?= postgres:17
endif
export FLOWSTONE_OWN_CLUSTER := $(OWN)
export IMAGE
export FLIGHTS_IMAGE

help: ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1|\2/' | column -t -s '|'

env: .venv/.ready ## .venv with everything: locked dependencies, FlowStone itself editable

# The lock is whole, so pip resolves nothing (--no-deps): its resolver takes a newer coverage[toml] than the locked coverage
# as soon as there is one, and then misses that one's hash. `pip check` says when the lock is not whole.
.venv/.ready: requirements/dev.lock pyproject.toml
	@test -n "$(BOOTSTRAP_PYTHON)" || { echo "Python 3.11 or later is needed; set BOOTSTRAP_PYTHON to one." >&2; exit 1; }
	@test -x $(BIN)/python || $(BOOTSTRAP_PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes -r requirements/dev.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@$(BIN)/python -m pip check
	@touch $@

ifdef OWN
cluster: env ## a real Kubernetes on this machine: .cluster/kubeconfig, .cluster/bin/{kubectl,helm}
	@$(BIN)/python -m tests.cluster up

cluster-down: env ## stop it and leave nothing behind
	@$(BIN)/python -m tests.cluster down
else
cluster: tools
	@echo "KUBECONFIG=$(KUBECONFIG): using that cluster, starting none."
	@kubectl version >/dev/null || { echo "That cluster does not answer." >&2; exit 1; }

cluster-down:
	@echo "KUBECONFIG=$(KUBECONFIG) is not ours to stop; 'make uninstall' takes FlowStone off it."
endif

# For a cluster that is not ours: kubectl is expected, helm is built from its Go module when it is missing.
.PHONY: tools
tools: env
	@command -v kubectl >/dev/null || { echo "kubectl is not on PATH: install it." >&2; exit 1; }
	@command -v helm >/dev/null || { mkdir -p .cluster/bin && GOBIN=$(CURDIR)/.cluster/bin go install helm.sh/helm/v4/cmd/helm@v4.3.1; } \
	  || { echo "helm is not on PATH and could not be built: install it." >&2; exit 1; }

ifdef LOADABLE
image: cluster ## the image of operator and worker and that of the example, in the cluster
	@$(BIN)/python -m tests.cluster image
	@$(MAKE) --no-print-directory flights-context
	@$(DOCKER) build -t $(FLIGHTS_IMAGE) --build-arg BASE=$(IMAGE) $(FLIGHTS_CONTEXT) >$(FLIGHTS_CONTEXT).log 2>&1 \
	  || { tail -n 20 $(FLIGHTS_CONTEXT).log >&2; exit 1; }
	@$(BIN)/python -m tests.cluster load $(FLIGHTS_IMAGE)
else
image: env
	@test -n "$(IMAGE)" -a -n "$(FLIGHTS_IMAGE)" || { echo "$$NAME_IMAGES" >&2; exit 1; }
	@$(BIN)/python -m tests.cluster wheels
	$(DOCKER) build -t $(IMAGE) .
	@$(MAKE) --no-print-directory flights-context
	$(DOCKER) build -t $(FLIGHTS_IMAGE) --build-arg BASE=$(IMAGE) $(FLIGHTS_CONTEXT)
	@echo "Now push or load $(IMAGE) and $(FLIGHTS_IMAGE), so that the cluster has them."
endif

define NAME_IMAGES
KUBECONFIG names a cluster that this Makefile did not start, so it cannot put images there. Name images that it can
pull, or that you have loaded (kind load docker-image, k3s ctr images import):

    make image   IMAGE=flowstone:dev FLIGHTS_IMAGE=flights:dev      builds both with docker
    make install IMAGE=flowstone:dev
    make demo    IMAGE=flowstone:dev FLIGHTS_IMAGE=flights:dev
endef
export NAME_IMAGES

.PHONY: flights-context
flights-context: env
	@mkdir -p $(FLIGHTS_CONTEXT)
	@$(BIN)/python examples/flights/fetch.py $(CACHE)/flights.csv.zip
	@cd examples/flights && cp Dockerfile delays.py airlines.py setup.py schema.sql $(CACHE)/flights.csv.zip $(CURDIR)/$(FLIGHTS_CONTEXT)/

install: $(if $(LOADABLE),image,cluster) ## FlowStone on the cluster, with an embedded Postgres; upgrades what is there
	@test -n "$(IMAGE)" || { echo "$$NAME_IMAGES" >&2; exit 1; }
	@kubectl create namespace $(SYSTEM) --dry-run=client -o yaml | kubectl apply -f - >/dev/null
	@kubectl label --overwrite namespace $(SYSTEM) pod-security.kubernetes.io/enforce=restricted >/dev/null
	@image=$(IMAGE); digest=given; \
	if [ -n "$(LOADABLE)" ]; then digest=$$($(DOCKER) image inspect --format '{{.Id}}' $$image); fi; \
	$(if $(OWN),flock .cluster/install.lock )helm upgrade --install flowstone charts/flowstone --namespace $(SYSTEM) --wait --timeout 5m \
	  --set image.repository=$${image%:*} --set image.tag=$${image##*:} \
	  --set postgres.embedded.enabled=true --set postgres.embedded.image=$(POSTGRES_IMAGE) \
	  --set-string "podAnnotations.flowstone\.dev/image=$$digest" $(HELM_ARGS) >/dev/null \
	|| { kubectl -n $(SYSTEM) get pods; kubectl -n $(SYSTEM) logs deployment/flowstone --all-containers --tail=8 | cut -c1-400; exit 1; }
	@kubectl -n $(SYSTEM) get deployments,statefulsets

uninstall: ## take FlowStone off the cluster; the resource definitions and all Backfills stay
	helm uninstall flowstone --namespace $(SYSTEM) --ignore-not-found

demo: env ## a year of real flights: cluster, image, install, set-up, backfill, result
	@begin=$$(date +%s); \
	.ci/step "cluster" $(MAKE) --no-print-directory cluster && \
	.ci/step "image and install" $(MAKE) --no-print-directory install && \
	$(BIN)/python examples/flights/demo.py && \
	echo "make demo took $$(($$(date +%s) - begin)) s"

crds: env ## crds/ and the chart's copy, from the models
	@$(BIN)/python -m flowstone.api.crd crds
	@$(BIN)/python -m flowstone.api.crd charts/flowstone/files/crds

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
	$(BIN)/python -m tests.bench.bench_planning
	$(BIN)/pytest -q tests/bench -s --timeout=1800

chaos: cluster ## 10,000 partitions in a storm of faults, about ten minutes
	FLOWSTONE_CHAOS_PARTITIONS=10000 FLOWSTONE_CHAOS_NODE_SECONDS=100 $(BIN)/pytest -q tests/chaos/test_storm.py -s --timeout=1800
	$(BIN)/python -m tests.bench.bench_tenants
	$(BIN)/python -m tests.bench.bench_rotation
