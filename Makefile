# Two commands matter: `make reproduce` and `make test`. Both install what they need first.
SHELL := bash
.DEFAULT_GOAL := help
PYTHON ?= python3
BIN := .venv/bin
CORES := $(shell getconf _NPROCESSORS_ONLN)

# More threads than cores is what makes small models slow, and idle threads that spin rob the other process.
THREADS ?= $(shell [ $(CORES) -lt 4 ] && echo $(CORES) || echo 4)
export OMP_WAIT_POLICY ?= PASSIVE
RUN := PATH="$(CURDIR)/$(BIN):$$PATH"

.PHONY: help env lock hooks reproduce test bench paper verify readme lab clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' Makefile

env: ## install everything into .venv, pinned and hash-checked (PYTHON=, TORCH_INDEX=, TORCH=ask)
	@TORCH_INDEX="$(TORCH_INDEX)" TORCH="$(TORCH)" $(PYTHON) scripts/env.py

lock: ## resolve pyproject.toml into constraints.txt again (UPGRADE=1: newest releases)
	@$(PYTHON) scripts/env.py lock $(if $(UPGRADE),--upgrade)

hooks: ## let git clean staged notebooks before each commit
	git config core.hooksPath scripts/hooks

reproduce test bench: export HF_HUB_OFFLINE = 1
reproduce test bench: export TOKENIZERS_PARALLELISM = false
reproduce bench: export OMP_NUM_THREADS = $(THREADS)
reproduce bench: export MKL_NUM_THREADS = $(THREADS)
reproduce bench: export OPENBLAS_NUM_THREADS = $(THREADS)

reproduce: env ## run every table and figure at the scale that fits two cores, then build the paper's inputs
	$(RUN) sage-bench reproduce --scale quick

test: env ## modules in step with notebooks, the notebooks' own tests, pytest
	@scripts/test.sh

bench: env ## each hot part against its peers, as ratios; peers that are not installed are said
	$(RUN) python scripts/bench.py

paper: env ## compile paper/ from committed records
	$(RUN) sage-bench paper

verify: env ## rebuild every table from committed records and compare
	$(RUN) sage-bench verify

readme: env ## render README.md from nbs/index.ipynb
	$(RUN) python -c "from sage_repro.paper.report import write_readme; print(write_readme().name)"

lab: env ## open the notebooks in JupyterLab
	cd nbs && $(RUN) jupyter lab

clean: ## remove what can be made again; .venv, committed results and cached model answers stay
	rm -rf build dist _proc _docs *.egg-info .pytest_cache .hypothesis .benchmarks paper/build results/scratch results/notebooks
	find nbs sage_repro tests scripts -name __pycache__ -o -name .ipynb_checkpoints | xargs rm -rf
