# Every target sets up what it needs first: a machine with python3.11, git and make is enough.
# A second run finds the stamps below .venv and installs nothing.

VENV := .venv
PY   := $(VENV)/bin/python
PIP  := $(PY) -m pip install -qq --disable-pip-version-check -c constraints.txt

# A stamp is named after the content of what was installed from, and touched last: an install that
# was cut short has none, and a changed pin makes it stale.
KEY   := $(shell cat pyproject.toml constraints.txt | git hash-object --stdin | cut -c1-12)
MADE  := $(VENV)/.made
TORCH := $(VENV)/.torch-$(KEY)
DEMO  := $(VENV)/.demo-$(KEY)
UP    := $(VENV)/.up-$(KEY)
DEV   := $(VENV)/.dev-$(KEY)

# Model and data come from packages: nothing here asks a model hub.
export HF_HUB_OFFLINE := 1
# Bytecode is kept even where the environment says otherwise: pytest starts in two thirds of the time.
export PYTHONDONTWRITEBYTECODE :=

# A file's tests share what they set up.
SIDE_BY_SIDE := -n 2 --dist loadfile --no-loadscope-reorder
# Folders without unit tests: to import them takes seconds.
SLOW_FOLDERS := ray storage end_to_end ui gpu
SLOW := slow or long or ray or ranks or storage or postgres or browser or end_to_end or gpu

BENCHMARKS := $(sort $(patsubst tests/benchmarks/%,%,$(basename $(wildcard tests/benchmarks/[a-z]*.py)) $(patsubst %/__main__.py,%,$(wildcard tests/benchmarks/*/__main__.py))))

.DEFAULT_GOAL := help
.PHONY: help demo demo-classify up down test test-long test-fast check docs bench format setup clean clean-all

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-14s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

demo: $(DEMO) ## fine-tune a small chat model on this machine
	$(PY) infra/demo/prepare.py chat
	$(VENV)/bin/slora train jobs/examples/chat.yaml

demo-classify: $(DEMO) ## fine-tune an encoder to sort news by group
	$(PY) infra/demo/prepare.py newsgroups
	$(VENV)/bin/slora train jobs/examples/newsgroups.yaml

up: $(UP) ## start the service, Ray and an S3 server on this machine (ARGS="--cpus 4", ARGS=--serving)
	@$(PY) -m infra.local.up $(ARGS)

down: ## stop what make up started; data stays
	@if [ -x $(PY) ]; then $(PY) -m infra.local.down $(ARGS); else echo "nothing was running"; fi

test: $(DEV) ## run all tests but the long ones (ARGS="-k plan", ARGS="--without browser")
	$(PY) infra/demo/prepare.py all
	$(PY) -m tests.ui.fetch_browser
	$(PY) -m pytest $(SIDE_BY_SIDE) $(ARGS)

test-long: $(DEV) ## run the long campaigns that make test leaves out
	$(PY) infra/demo/prepare.py all
	$(PY) -m tests.jobs.llama_cpp.fetch_llama
	$(PY) -m infra.local.ray_serve_environment
	$(PY) -m pytest $(SIDE_BY_SIDE) -m long $(ARGS)

test-fast: $(DEV) ## run the unit tests only
	$(PY) -m pytest $(SIDE_BY_SIDE) $(SLOW_FOLDERS:%=--ignore tests/%) -m "not ($(SLOW))" $(ARGS)

check: $(DEV) ## check lint, formatting and types
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy --strict -p slora -p jobs -p orchestrator -p infra.local -p infra.compose

docs: $(DEV) ## build the documentation into build/site, without warnings and without a network
	NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs build --strict --quiet
	@echo "open build/site/index.html"

bench: $(DEV) ## run every benchmark, one after the other
	$(PY) infra/demo/prepare.py all
	$(PY) infra/demo/prepare.py addresses
	$(PY) -m infra.local.serving_environment
	@for name in $(BENCHMARKS); do \
	  echo "== python -m tests.benchmarks.$$name"; \
	  $(PY) -m tests.benchmarks.$$name || exit 1; \
	done

format: $(DEV) ## format the code, and fix what ruff can fix
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

setup: $(DEV) ## install what test and check need

clean: ## remove build products; keep .venv, models, data and the store
	rm -rf build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find slora jobs orchestrator infra tests -name __pycache__ -type d -prune -exec rm -rf {} +

clean-all: clean ## remove .venv too
	rm -rf $(VENV)

$(MADE):
	@for python in python3.11 python3; do \
	  $$python -c 'import sys, ensurepip, venv; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' \
	    >/dev/null 2>&1 || continue; \
	  echo "== making $(VENV) with $$($$python --version) (10 s)"; \
	  $$python -m venv $(VENV) && touch $@; exit; \
	done; \
	echo "No usable Python: install python3.11 and its venv module (Debian: python3.11-venv)." >&2; exit 3

# First and alone, so that a torch without CUDA, where pip finds one, is not passed over.
$(TORCH): | $(MADE)
	@echo "== installing torch (30 s; some minutes where it brings CUDA along)"
	@$(PIP) torch
	@rm -f $(VENV)/.torch-* && touch $@

$(DEMO): | $(TORCH)
	@echo "== installing slora, ray, deepspeed and transformers (2 minutes)"
	@$(PIP) -e '.[train,demo]'
	@rm -f $(VENV)/.demo-* && touch $@

$(UP): | $(TORCH)
	@echo "== installing slora, its service, ray and an S3 server (2 minutes)"
	@$(PIP) -e '.[train,service,demo,up]'
	@rm -f $(VENV)/.demo-* $(VENV)/.up-* && touch $(DEMO) $@

$(DEV): | $(TORCH)
	@echo "== installing slora, ray, deepspeed, transformers and the test tools (2 minutes)"
	@$(PIP) -e '.[train,service,demo,up,dev]'
	@rm -f $(VENV)/.demo-* $(VENV)/.up-* $(VENV)/.dev-* && touch $(DEMO) $(UP) $@
