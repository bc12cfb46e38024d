# Assay's commands. `make` alone lists them; `make demo` and `make test` need nothing before them.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
READY := $(VENV)/.ready

.PHONY: help demo demo-down train-demo train-demo-down test test-keda test-unit test-verifiers cluster cluster-down bench crds lint clean

help: ## List these commands
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 18

$(READY): pyproject.toml constraints.txt
	@echo "Python environment: installing into $(VENV) (about a minute, once)"
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Assay needs Python 3.11 or newer: make PYTHON=python3.12 ...")'
	@$(PYTHON) -m venv $(VENV)
	@$(RUN) -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

demo: $(READY) ## A real cluster, and the whole loop on it: train, weigh, serve, turn away what is worse
	@$(RUN) -m examples.demo up

demo-down: $(READY) ## Remove everything that `make demo` made
	@$(RUN) -m examples.demo down

train-demo: $(READY) ## Train a tiny model on verified rewards with a real SGLang, and show the curve
	@$(RUN) -m examples.train_demo up

train-demo-down: $(READY) ## Remove what `make train-demo` made
	@$(RUN) -m examples.train_demo down

test: lint test-unit test-verifiers ## Everything: lint, unit tests, verifiers, then a real cluster with real SGLang
	@$(RUN) -m tests.all

test-keda: $(READY) ## The one test that `make test` leaves out: autoscaling by KEDA, compiled first
	@$(RUN) -m tests.all tests/e2e/test_keda.py

test-unit: $(READY) ## Only the tests that need no cluster and no SGLang (seconds)
	@$(RUN) -m pytest tests/unit -n auto --dist worksteal

test-verifiers: $(READY) ## Only the verifiers' tests: sandboxes, workers, gate (two minutes, no cluster)
	@$(RUN) -m tests.verifiers

lint: $(READY)
	@$(VENV)/bin/ruff check .
	@$(VENV)/bin/ruff format --check .
	@$(VENV)/bin/mypy

cluster: $(READY) ## Only the demo's cluster, for development, with images and Assay's chart
	@$(RUN) -m examples.demo cluster

cluster-down: $(READY) ## Delete the development cluster
	@$(RUN) -m tests.cluster down

bench: $(READY) ## Run the benchmarks and write the tables under benchmarks/
	@$(RUN) -m benchmarks.all

crds: $(READY) ## Write crds/, the chart's copy and docs/api.md from the pydantic models
	@$(RUN) -m assay_operator crds --out crds
	@$(RUN) -m assay_operator crds --out charts/assay/files/crds
	@$(RUN) -m assay_operator reference > docs/api.md

clean: ## Delete what was made in this checkout (the cache outside it stays)
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
