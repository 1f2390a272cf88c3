# `make` explains itself; every target makes .venv first, and only when it is not up to date.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
SAY := printf '\033[36m·\033[0m %s\n'
DONE := printf '\033[32m✓\033[0m %s\n'
FAIL := printf '\033[31m✗\033[0m %s\n'

# Downloads stay with the repository.
export HIVEIO_CACHE ?= $(CURDIR)/.cache

# Two processes: most tests wait for others' processes, of which each of the two has its own.
SIDE_BY_SIDE := -n 2 --dist loadfile --no-loadscope-reorder

.PHONY: help
help: ## This list
	@printf '\033[1mhiveio\033[0m  event-sourced services as container images\n\n'
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  \033[36mmake %-10s\033[0m %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

.PHONY: setup
setup: $(READY) ## Make .venv from requirements.lock (PYTHON=python3.12 to choose)
	@$(DONE) "ready: .venv, $$($(BIN)/python --version)"

$(READY): requirements.lock runtime/pyproject.toml
	@command -v $(PYTHON) >/dev/null || { $(FAIL) "no $(PYTHON) here; name one: make setup PYTHON=/path/to/python3.11"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		$(FAIL) "$$($(PYTHON) --version) is too old: 3.11 or newer is needed; name one: make setup PYTHON=python3.12"; exit 1; }
	@$(PYTHON) -c 'import ensurepip' 2>/dev/null || { \
		$(FAIL) "$(PYTHON) comes without ensurepip, so it cannot make .venv; on Debian: apt install python3-venv"; exit 1; }
	@if ! $(BIN)/python -c 'import pip' 2>/dev/null; then \
		$(SAY) "making .venv with $$($(PYTHON) --version)"; $(PYTHON) -m venv --clear .venv; fi
	@$(SAY) "installing $$(grep -c '^[a-z].*==' requirements.lock) locked packages, each checked by its hash (a minute, the first time)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	@$(SAY) "installing hiveio itself, editable"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-build-isolation --no-deps -e runtime
	@touch $@

.PHONY: run
run: $(READY) ## An example as a story, on a real Kafka and Valkey (STORY=bank or orders; ONCE=1: no waiting)
	@$(BIN)/python -m examples.$(or $(STORY),bank).story $(if $(ONCE),--once)

# HOST counts on the command line alone: some shells keep the name of the machine in it.
.PHONY: services
services: $(READY) ## Kafka and Valkey in the foreground (BROKERS=3, KAFKA_PORT, REDIS_PORT, HIVEIO_DATA; HOST: for containers)
	@$(BIN)/hiveio services $(if $(BROKERS),--brokers $(BROKERS)) $(if $(KAFKA_PORT),--kafka-port $(KAFKA_PORT)) \
		$(if $(REDIS_PORT),--redis-port $(REDIS_PORT)) $(if $(HIVEIO_DATA),--data '$(HIVEIO_DATA)') $(if $(filter command,$(origin HOST)),--host '$(HOST)')

.PHONY: test
test: $(READY) ## All tests, side by side (T='-k name -x' for pytest: these only, one after the other)
	@$(BIN)/pytest $(or $(T),$(SIDE_BY_SIDE) --durations=30)

.PHONY: quick
quick: $(READY) ## The tests that need no server (one test: T='-k name', or .venv/bin/pytest FILE -k name)
	@$(BIN)/pytest $(or $(T),$(SIDE_BY_SIDE)) tests/unit examples

.PHONY: fault
fault: $(READY) ## Inject every fault of docs/faults.md, and check what is left (N=9 or N=9,33: only these)
	@HIVEIO_FAULT_NUMBERS='$(or $(N),all)' $(BIN)/pytest tests/faults -m fault $(T)

.PHONY: bench
bench: $(READY) ## Each role against its bare parts, as ratios (B='stream --seconds 5', B=--help)
	@$(BIN)/python -m tests.bench $(B)

# Through the sdist: what is in the wheel is in it, too. The same commit gives the same bytes.
.PHONY: dist
dist: $(READY) ## The wheel and the sdist of the package, in dist/ (DIST=FOLDER)
	@rm -f $(or $(DIST),dist)/hiveio-*
	@SOURCE_DATE_EPOCH="$$(git log -1 --format=%ct 2>/dev/null || echo 315532800)" \
		$(BIN)/uv build --quiet --no-build-isolation --python $(BIN)/python --out-dir $(or $(DIST),dist) runtime
	@$(DONE) "$$(cd $(or $(DIST),dist) && echo *.whl *.tar.gz)"

# A file outside of this folder has to be allowed by name.
BAKE := docker buildx bake $(if $(PIP_CERT),--allow=fs.read=$(PIP_CERT))

.PHONY: images
images: ## The four images, and the bank's on top of them (PIP_INDEX_URL, PIP_CERT as for pip)
	@$(BAKE) default example

.PHONY: validate
validate: ## The checks of docker build over the Dockerfiles, and compose.yaml
	@$(BAKE) validate
	@docker compose config --quiet

.PHONY: lint
lint: $(READY) ## ruff and mypy
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check
	@$(BIN)/mypy

.PHONY: format
format: $(READY) ## Put the code in form
	@$(BIN)/ruff check --fix
	@$(BIN)/ruff format

.PHONY: docs
docs: $(READY) ## Write docs/settings.md from the settings in the code
	@$(BIN)/python -m tests.settings_page

.PHONY: pictures
pictures: $(READY) ## Make the pictures of the documents, in a real browser: do so when the console looks otherwise
	@mkdir -p docs/pictures
	@HIVEIO_PICTURES=1 $(BIN)/pytest tests/integration/test_console_browser.py -q
	@$(DONE) "docs/pictures; look at them before you commit them"

.PHONY: lock
lock: $(READY) ## Write requirements.lock from requirements.in
	@$(BIN)/uv pip compile --quiet --universal --generate-hashes --no-header --no-emit-index-url --python-version 3.11 \
		requirements.in -o requirements.lock
	@$(SAY) "the part of it that the images install, and what their build needs"
	@$(BIN)/uv pip compile --quiet --universal --generate-hashes --no-header --no-emit-index-url --no-annotate --python-version 3.11 \
		-c requirements.lock runtime/pyproject.toml -o runtime/requirements.lock
	@printf 'flit-core\nsetuptools\nwheel\n' | $(BIN)/uv pip compile --quiet --universal --generate-hashes --no-header --no-emit-index-url \
		--no-annotate --python-version 3.11 -c requirements.lock - -o runtime/build.lock
	@$(SAY) "and what the benchmark of the peers installs for itself"
	@$(BIN)/uv pip compile --quiet --universal --generate-hashes --no-header --no-emit-index-url --no-annotate --python-version 3.11 \
		-c requirements.lock tests/bench/peers/requirements.in -o tests/bench/peers/requirements.txt
	@$(DONE) "requirements.lock; make setup installs it"

.PHONY: clean
clean: $(READY) ## Remove caches and what was built; .venv and downloads stay
	@rm -rf dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
	@find . -path ./.venv -prune -o -name __pycache__ -type d -exec rm -rf {} +
	@$(DONE) "clean"
