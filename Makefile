# Each target is one visible command; `make demo` and `make test` set themselves up.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
export HF_HUB_OFFLINE ?= 1

.DEFAULT_GOAL := help
.PHONY: help install demo test lint format generate check-generated bench bench-host bench-sae bench-ring compatibility peers peers-ring e2e clean

help: ## Show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-16s %s\n", $$1, $$2}'

install: $(VENV)/.ready ## Create .venv with everything in it (a few minutes the first time)

$(VENV)/.ready: pyproject.toml native/CMakeLists.txt $(wildcard native/src/* native/include/asysi/*)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@

demo: install ## Watch MiniLM read the Python manual; opens nothing, prints where the report is
	@PATH="$(CURDIR)/$(BIN):$$PATH" examples/minilm/demo.sh

test: install ## Run every test
	@$(BIN)/python -m pytest

lint: install ## Style, types and the direction of imports
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy && $(BIN)/lint-imports

format: install ## Put every file into the project's style
	$(BIN)/ruff format . && $(BIN)/ruff check --fix .

generate: install ## Write the CRD and the reference pages anew
	$(BIN)/python -m asysi.contract.generate && $(BIN)/python -m asysi.monitor.metrics > docs/reference/metrics.md

check-generated: install ## Fail when a generated file differs from its source
	$(BIN)/python -m asysi.contract.generate --check

e2e: install ## Only the tests that need a Kubernetes API server
	$(BIN)/python -m pytest -m e2e

$(VENV)-sae/.ready:
	$(PYTHON) -m venv $(VENV)-sae
	$(VENV)-sae/bin/pip install --quiet --disable-pip-version-check 'torch>=2.10,<2.14'
	$(VENV)-sae/bin/pip install --quiet --disable-pip-version-check 'sae-lens==6.54.12'
	@touch $@

compatibility: install peers ## Load the demo's SAEs with sae-lens and compare what they encode
	$(BIN)/python benchmarks/sae_quality/compatibility.py runs/minilm/sae --saelens-python $(VENV)-sae/bin/python

$(VENV)-ring/.ready:
	$(PYTHON) -m venv $(VENV)-ring
	$(VENV)-ring/bin/pip install --quiet --disable-pip-version-check numpy xxhash iceoryx2==0.10.0 pyzmq==27.3.0 faster-fifo==1.5.2 redis==8.1.0 eclipse-zenoh==1.10.2
	@touch $@

peers-ring: $(VENV)-ring/.ready ## Create .venv-ring with the rings and queues that ours is compared with

peers: $(VENV)-sae/.ready ## Create .venv-sae with sae-lens, for the comparison and the compatibility test

bench: bench-host bench-sae ## Run every benchmark and write docs/benchmarks

bench-host: install ## Slowdown of the watched model, and latency of a hook
	$(BIN)/python benchmarks/host_slowdown.py

bench-sae: install peers ## FVU against sae-lens
	$(BIN)/python benchmarks/sae_quality/compare.py --saelens-python $(VENV)-sae/bin/python

bench-ring: install peers-ring ## The ring against its ceiling and its peers; needs redis-server and twenty quiet minutes
	$(BIN)/python benchmarks/ring/compare.py --peers-python $(VENV)-ring/bin/python

clean: ## Remove what these targets made
	rm -rf $(VENV) $(VENV)-* build dist runs examples/*/runs examples/*/.data
