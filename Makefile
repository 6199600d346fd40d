# The environment lives in .venv and is made when pyproject.toml, requirements/ or scripts/install change.
PYTHON ?= python3
ACCELERATOR ?= cpu
JOBS ?= 2
export PYTHON ACCELERATOR
ifdef TORCH_INDEX_URL
export TORCH_INDEX_URL
endif

BIN := .venv/bin
BASE := .venv/installed-base-$(ACCELERATOR)
DEV := .venv/installed-dev-$(ACCELERATOR)
INSTALL_INPUTS := pyproject.toml $(wildcard requirements/*.txt) scripts/install

.DEFAULT_GOAL := help
.PHONY: help demo dev test test-long chaos test-browser test-spark check bench clean

help: ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):[^#]*## */  make \1|/' | column -t -s '|'
	@echo
	@echo "  ACCELERATOR=cpu|cuda   build of torch to install (now $(ACCELERATOR))"
	@echo "  TORCH_INDEX_URL=...    where pip may also look for torch"
	@echo "  BENCH='NAME ...'       benchmarks to run, by the name of their script"
	@echo "  JOBS=N                 files of tests that run at a time (now $(JOBS))"
	@echo "  PYTHON=...             interpreter, 3.10 or later (now $(PYTHON))"

demo: $(BASE) ## a simulated society, both models, and its timelines against the truth
	$(BIN)/rookery demo

dev: $(DEV) ## the environment with everything that tests and checks need

test: $(DEV) ## the test suite
	$(BIN)/python -m pytest --numprocesses $(JOBS) --dist loadfile

test-long: $(DEV) ## every combination of what several processes do and of what can fail (a quarter of an hour)
	$(BIN)/python -m pytest -m long

chaos: $(DEV) ## 200 kills at random moments for each model, each run held to one that nothing touched (an hour)
	$(BIN)/python tests/chaos/kill_points.py

test-browser: $(DEV) ## the page in a headless Chromium; screenshots go to build/screenshots
	scripts/browser
	$(BIN)/python -m pytest tests/browser

test-spark: $(DEV) ## the ingest on Spark against the one on this machine; installs PySpark (434 MB), needs Java 17
	scripts/spark
	$(BIN)/python -m pytest tests/unit/data/test_ingest_spark.py

check: $(DEV) ## style, types, import contracts
	scripts/check

bench: $(DEV) ## the speed benchmarks, or those that BENCH names; one JSON object a line
	scripts/bench $(BENCH)

clean: ## remove the environment, caches and build products
	rm -rf .venv build dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
	find src -name '*.egg-info' -type d -prune -exec rm -rf {} +

$(BASE): $(INSTALL_INPUTS)
	scripts/install base

$(DEV): $(INSTALL_INPUTS)
	scripts/install dev
