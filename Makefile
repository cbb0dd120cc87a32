# What a newcomer types. Every target makes the environment it needs first; nothing has to be done before.

PYTHON ?= $(shell for python in python3 python3.13 python3.12 python3.11; do \
	$$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo $$python; break; }; done)
BIN := .venv/bin
NIWAKI_DATA ?= ../shared/data
NIWAKI_MODELS ?= ../shared/models
NO_MKDOCS_2_WARNING := 1
export NIWAKI_DATA NIWAKI_MODELS NO_MKDOCS_2_WARNING

.DEFAULT_GOAL := help
.PHONY: help setup demo test check docs bench case clean

help: ## show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-7s %s\n", $$1, $$2}' Makefile

setup: .venv/dev.stamp ## make .venv with all that developing needs

demo: .venv/demo.stamp ## fine-tune, compress, measure and report a small real model, offline, into runs/demo
	$(BIN)/niwaki demo --out runs/demo

test: .venv/dev.stamp ## run all tests and doctests, on all cores
	$(BIN)/pytest -q -n logical --maxprocesses 8 --dist worksteal

check: .venv/dev.stamp ## lint, formatting, types, documentation
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/mkdocs build --strict --site-dir site

docs: .venv/dev.stamp ## build the documentation into site/
	$(BIN)/python docs/make_results.py
	$(BIN)/mkdocs build --strict --site-dir site

bench: case .venv/dev.stamp ## run one benchmark case: make bench CASE=sst2-minilm
	$(BIN)/python benchmarks/$(CASE)/run.py
	$(BIN)/python docs/make_results.py

case:
	@test -f "benchmarks/$(CASE)/run.py" || { \
		echo "no benchmark case '$(CASE)'; write: make bench CASE=NAME with NAME one of:"; \
		for run in benchmarks/*/run.py; do test -f "$$run" && echo "  $$(basename "$$(dirname "$$run")")"; done; exit 2; }

clean: ## remove caches and built documentation; runs/ and .venv stay
	rm -rf site dist build .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find src tests benchmarks docs -name __pycache__ -type d -prune -exec rm -rf {} +

# Two layers in one environment: the demo's is small, so that a first look is quick; the developer's holds everything.
# A stamp is remade when what it was made from changes. Torch comes first, so that what follows finds its version settled.
.venv/bin/python:
	@test -n "$(PYTHON)" || { echo "niwaki needs Python 3.11 or newer; write: make PYTHON=/path/to/python3.11 ..."; exit 2; }
	$(PYTHON) -m venv .venv

.venv/demo.stamp: pyproject.toml constraints.txt | .venv/bin/python
	$(call install,demo)
	@touch $@

.venv/dev.stamp: pyproject.toml constraints.txt | .venv/bin/python
	$(call install,dev)
	@touch .venv/demo.stamp $@

define install
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[$(1)]'
endef
