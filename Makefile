# The project's commands. `make demo` and `make test` do all their own set-up.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
DEMO ?= demo
BUDGET_S ?= 60

.PHONY: help setup demo test lint types bench check clean

help:
	@echo "make demo                profile a small model here, serve a minute of traffic, predict it"
	@echo "make demo TRACE=FILE     the same, replaying an Azure LLM inference trace"
	@echo "make test | lint | types | check (all three)"
	@echo "make bench               simulated requests per second"
	@echo "make setup               only install into $(VENV)"

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "error: $(PYTHON) is older than 3.11; set PYTHON=python3.11 or newer"; exit 2; }
	@echo "setting up $(VENV) (torch and friends, some minutes the first time) ..."
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt torch setuptools
	@$(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

demo: $(STAMP)
	@echo "1/3  a small mixture-of-experts checkpoint (random weights)"
	@test -d $(DEMO)/checkpoint || $(BIN)/moesim-engine make --model demo-moe --out $(DEMO)/checkpoint
	@echo "2/3  profile the engine on this machine ($(BUDGET_S) s)"
	@$(BIN)/moesim-calibrate profile --model $(DEMO)/checkpoint --out $(DEMO)/profile.json \
		--budget-s $(BUDGET_S)
	@echo "3/3  serve one minute of traffic twice, for real, and predict it from the profile"
	@$(BIN)/moesim-calibrate validate --profile $(DEMO)/profile.json --model $(DEMO)/checkpoint \
		--workload $(if $(TRACE),demo-trace --trace '$(TRACE)',demo) --out $(DEMO) --overwrite
	@echo "look around: $(BIN)/streamlit run app.py"

test: $(STAMP)
	@$(BIN)/python -m pytest -n 2

lint: $(STAMP)
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

types: $(STAMP)
	@$(BIN)/mypy

bench: $(STAMP)
	@$(BIN)/python benchmarks/simulator.py

check: lint types test

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
