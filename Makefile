# The commands of this project. `make help` lists them.

PYTHON ?= python3
APP := .venv/bin/python
TRAINING := .venv-training/bin/python
# Imports are several times faster with bytecode, whatever the shell says.
export PYTHONDONTWRITEBYTECODE :=
export PIP_DISABLE_PIP_VERSION_CHECK := 1
export PF_TRACING_SKIP_LOCAL_SETUP := true
export PF_TRACING_SKIP_EXPORTER_SETUP := true

.PHONY: help install demo test lint up down chaos bench clean check-tools browser
.DEFAULT_GOAL := help

help: ## List the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-9s %s\n", $$1, $$2}'

install: .venv/installed .venv-training/installed .venv-inference/installed emulator/node_modules/installed tests/clients/node_modules/installed ## Install everything into this folder

demo: install ## Drop the sample file, watch it become a model, ask the model
	@$(APP) -m demo

test: install lint browser ## Run all tests, the end-to-end one included
	@$(APP) -m tests

lint: .venv/installed ## Check style and types
	$(APP) -m ruff check .
	$(APP) -m ruff format --check .
	$(APP) -m mypy function_app emulator

up: install ## Start the local Azure
	@$(APP) -m emulator up

down: ## Stop the local Azure; its state stays
	@if [ -x $(APP) ]; then $(APP) -m emulator down; fi

chaos: install ## Play 200 schedules of faults: make chaos [SEED=17] [SCHEDULES=1] [TRACE=1]
	@$(APP) -m tests.chaos $(if $(SEED),--seed $(SEED)) $(if $(SCHEDULES),--schedules $(SCHEDULES)) $(if $(TRACE),--trace)

bench: install ## Run the benchmarks: make bench [NAMES="loop …"] [JSON=file]
	@$(APP) -m bench $(NAMES) $(if $(JSON),--json $(JSON))

clean: down ## Delete the local Azure's state (not what is installed)
	rm -rf .emulator

check-tools:
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' || \
		{ echo "error: Python 3.11 to 3.13 is needed; $(PYTHON) is $$($(PYTHON) -V 2>&1). Try: make PYTHON=python3.12 …" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
		{ echo "error: $(PYTHON) cannot make virtual environments; on Debian and Ubuntu: apt-get install python3-venv" >&2; exit 1; }
	@command -v node >/dev/null && command -v npm >/dev/null && node -e 'process.exit(Number(parseInt(process.versions.node) < 20))' || \
		{ echo "error: Node.js 20 or later with npm is needed (for Azurite and for OpenAI's client)." >&2; exit 1; }

.venv/installed: requirements.txt requirements-dev.txt constraints.txt | check-tools
	@echo "Installing the function app's Python environment (a minute or two) …"
	@$(APP) -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear .venv
	@$(APP) -m pip install --quiet -r requirements-dev.txt -c constraints.txt
	@touch $@

.venv-training/installed: training/requirements.txt training/requirements-dev.txt training/constraints.txt | check-tools
	@echo "Installing the training and serving environment (several minutes: PyTorch) …"
	@$(TRAINING) -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear .venv-training
	@$(TRAINING) -m pip install --quiet -r training/requirements-dev.txt -c training/constraints.txt
	@touch $@

# With the training environment's own Python: a deployment sees the packages of both.
.venv-inference/installed: emulator/inference-requirements.txt emulator/inference-constraints.txt .venv-training/installed
	@echo "Installing the inference server's environment …"
	@.venv-inference/bin/python -m pip --version >/dev/null 2>&1 || $(TRAINING) -m venv --clear .venv-inference
	@.venv-inference/bin/python -m pip install --quiet -r emulator/inference-requirements.txt -c emulator/inference-constraints.txt
	@touch $@

emulator/node_modules/installed: emulator/package.json emulator/package-lock.json | check-tools
	@echo "Installing Azurite …"
	@cd emulator && npm ci --silent --no-audit --no-fund
	@touch $@

tests/clients/node_modules/installed: tests/clients/package.json tests/clients/package-lock.json | check-tools
	@echo "Installing OpenAI's client for Node, for the tests …"
	@cd tests/clients && npm ci --silent --no-audit --no-fund
	@touch $@

# The browser tests use Debian's Chromium; where it is missing and cannot be installed they are skipped and say so.
browser:
	@if ! command -v chromium >/dev/null && [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
		echo "Installing Chromium for the browser tests …"; \
		(apt-get update -q && DEBIAN_FRONTEND=noninteractive apt-get install -qy --no-install-recommends chromium) >/dev/null 2>&1 || true; \
	fi
