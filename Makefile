# Everything runs in .venv, which the first target that needs it makes. Only python3 (3.11 or newer) and make are needed.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready
# The applications of `make examples` are many packages: they have an environment of their own.
HEAVY  := .venv-examples
# Arguments for pytest, as in: make test ARGS="-k merge"
ARGS   ?=
# Most tests wait for servers: three at a time on two cores. For a debugger: make test ARGS="--numprocesses 0 --pdb -k merge"
SHARED := --numprocesses 3 --dist worksteal

# Hundreds of processes start in a run: each would compile what it imports where this is set.
export PYTHONDONTWRITEBYTECODE :=

comma  := ,

MAKEFLAGS += --no-print-directory

.PHONY: help
help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' Makefile

.PHONY: venv
venv: $(READY) ## make .venv with everything the other targets need

$(READY): pyproject.toml constraints.txt
	$(call environment,$(VENV),demo$(comma)test$(comma)dev)

# An environment in the folder $(1) with the extras $(2).
define environment
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "syncagent needs Python 3.11 or newer; try: make PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' || \
	  { echo "this Python cannot make environments; on Debian and Ubuntu: apt install python3-venv" >&2; exit 1; }
	@echo "making $(1)" >&2
	@$(PYTHON) -m venv $(1)
	@$(1)/bin/python -m pip install -qq --disable-pip-version-check --no-warn-script-location \
	  --constraint constraints.txt --editable '.[$(2)]'
	@touch $@
endef

.PHONY: check
check: $(READY) ## lint, format, types, layers
	@$(BIN)/ruff check --quiet .
	@$(BIN)/ruff format --check --quiet . || { echo "to format: make format" >&2; exit 1; }
	@$(BIN)/mypy --no-error-summary
	@$(BIN)/lint-imports --no-logo >$(VENV)/layers.log || { cat $(VENV)/layers.log; exit 1; }

.PHONY: format
format: $(READY) ## format the code, and mend what ruff can
	@$(BIN)/ruff check --quiet --fix .
	@$(BIN)/ruff format --quiet .

.PHONY: test
test: check ## check, and every test on real PostgreSQL servers
	@$(BIN)/pytest --quiet $(SHARED) $(ARGS)

.PHONY: soak
soak: SHELL := /bin/bash
soak: $(READY) ## the seeded tests with their full counts, kept in docs/proof/; SEED=n repeats one run
	@mkdir -p docs/proof
	@set -o pipefail; { git log -1 --format='commit %h, %cd' --date=iso; date --utc +'run %F %H:%M UTC'; \
	  $(BIN)/pytest -m soak --soak -rP $(ARGS); } | grep --line-buffered -v '^{"site"\|^rootdir' | tee docs/proof/soak.txt

.PHONY: test-matrix
test-matrix: $(READY) ## the tests on PostgreSQL 14 to 18; fetches the versions that are missing
	@$(BIN)/pytest --quiet $(SHARED) --majors 14,15,16,17,18 $(ARGS)

.PHONY: test-pythons
test-pythons: $(READY) ## the wheel on each Python that it names and this machine has: installed, imported, shown
	@$(BIN)/python -m tests.support.interpreters

.PHONY: newcomer
newcomer: $(READY) ## type what README.md says, in a clone of what is committed, without caches; FULL=1 with make test
	@$(BIN)/python -m tests.support.newcomer

.PHONY: demo
demo: $(READY) ## three sites on this machine: load, conflicts, a cut, a heal, a proof
	@$(BIN)/syncagent demo

.PHONY: examples
examples: $(HEAVY)/.ready ## Wagtail and MLflow at two sites each, in an environment of their own: minutes
	@$(HEAVY)/bin/python -m examples.wagtail $(ARGS)
	@$(HEAVY)/bin/python -m examples.mlflow $(ARGS)

$(HEAVY)/.ready: pyproject.toml constraints.txt
	$(call environment,$(HEAVY),demo$(comma)examples)

.PHONY: bench
bench: $(READY) ## the benchmarks, against PostgreSQL's own replication
	@$(BIN)/syncagent bench $(ARGS)

.PHONY: bench-peers
bench-peers: $(READY) ## the same against pglogical, Bucardo and Londiste, unpacked from Debian 12's packages to build/peers
	@$(BIN)/python -m bench.packages build/peers
	@$(BIN)/syncagent bench peers --peers build/peers $(ARGS)

.PHONY: docs
docs: export NO_MKDOCS_2_WARNING := 1
docs: $(VENV)/.docs ## the documentation as a site, in build/site, read in a browser; a link that leads nowhere fails
	@$(BIN)/mkdocs build --quiet
	@$(BIN)/pytest --quiet tests/packaging/test_site.py $(ARGS)
	@echo "build/site/index.html"

.PHONY: deploy
deploy: $(VENV)/.deploy ## check deploy/, also against the schemas of Kubernetes
	@$(BIN)/pytest --quiet tests/deploy $(ARGS)

# What few need: an extra of its own, beside what is there.
$(VENV)/.docs $(VENV)/.deploy: $(VENV)/.%: $(READY)
	@$(BIN)/python -m pip install -qq --disable-pip-version-check --constraint constraints.txt --editable '.[$*]'
	@touch $@

.PHONY: release
release: $(READY) ## keep what this version leaves, so that every later one is upgraded from it; CONTRIBUTING.md says when
	@$(BIN)/python -m tests.support.releases

.PHONY: extension
extension: $(READY) ## write the SQL side as an extension, to build/extension
	@$(BIN)/python -m tests.support.extension build/extension

.PHONY: clean
clean: ## remove everything that was made here
	@rm -rf $(VENV) $(HEAVY) build dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
