# The project's commands. `make` alone lists them.
SHELL := bash
.DEFAULT_GOAL := help
.NOTPARALLEL:

PYTHON ?= python3
BIN := .venv/bin
PY := $(BIN)/python
STAMP := .venv/.installed
CHAPTER ?=
NOTE ?=
EXAMPLES ?= 5000
MODULES ?=
MINUTES ?= 9
JOBS ?= 4
OUT ?=
REPOSITORY ?=
LOCK_VENV := _build/lock-venv
# The version whose rounding the committed outputs show; a newer one means make rerun.
TORCH := 2.13.0

.PHONY: help book pdf test rerun pages pictures bench kills full paper adopt fuzz mutate lint format lock clean

help: ## list the commands
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-8s %s\n", $$1, $$2}' Makefile

# A second run finds the stamp and touches no network.
$(STAMP): pyproject.toml requirements.lock
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.12")'
	@test -x $(PY) || $(PYTHON) -m venv .venv
	$(PY) -m pip install -c requirements.lock -e '.[dev]'
	@touch $@

book: $(STAMP) ## render the book to _build/html (no notebook is executed)
	@$(BIN)/jupyter-book build . -q
	@echo "The book: $(CURDIR)/_build/html/index.html"

pdf: book ## print the main line into one PDF (needs Chromium)
	@PYTHONPATH=book/_ext $(PY) -m pages.pdf

test: $(STAMP) ## the gate: lint, tests, re-executed notebooks, the rendered book
	@bash tests/gate.sh

rerun: $(STAMP) ## re-execute the chapters in place (CHAPTER=5 for one; NOTE=1 stores what they took)
	@$(PY) tests/tools/rerun.py $(CHAPTER) $(if $(NOTE),--note)

pages: $(STAMP) ## write the generated pages from the stored results
	@PYTHONPATH=book/_ext $(PY) -m pages

pictures: $(STAMP) ## draw the see-saw's still pictures, the social card and the logo
	@PYTHONPATH=book/_ext $(PY) -m pages.pictures

bench: $(STAMP) ## measure; writes book/results/bench-*.json
	@$(PY) -m imm_lib bench

kills: $(STAMP) ## kill commands fifty times each; writes book/results/kills.json
	@$(PY) tests/tools/kills.py

full: $(STAMP) ## every experiment at full scale; resumes where it was stopped
	@$(PY) -m imm_lib run --all --scale full --resume

# No environment is made: a rented machine may have no network, and torch already.
paper: ## what MINUTES=9 of a GPU are worth most, JOBS=4 units at a time, into OUT=folder
	@PYTHONPATH=. $(if $(wildcard $(PY)),$(PY),$(PYTHON)) -m imm_lib paper --minutes $(MINUTES) --jobs $(JOBS) $(if $(OUT),--out $(OUT))

# The stamp stays: an address in pyproject.toml asks for no installation.
adopt: $(STAMP) ## write the repository's address into every place (REPOSITORY=https://... or none)
	@$(PY) tests/tools/adopt.py '$(REPOSITORY)'
	@touch $(STAMP)

fuzz: $(STAMP) ## call everything public with anything at all, 5,000 times each (EXAMPLES=)
	@OMP_NUM_THREADS=1 IMM_FUZZ=$(EXAMPLES) $(PY) -m pytest -q tests/test_fuzz.py

mutate: $(STAMP) ## put small faults into the core, one at a time, and count those that the tests find (MODULES=)
	@$(PY) tests/tools/mutate.py $(MODULES)

lint: $(STAMP) ## lint, format and types
	@$(PY) -m ruff check .
	@$(PY) -m ruff format --check .
	@$(PY) -m mypy

format: $(STAMP) ## format the code and mend what the linter can
	@$(PY) -m ruff check --fix .
	@$(PY) -m ruff format .

# `pip freeze` of a fresh environment; torch's build tag and its platform's own wheels do not belong in a portable lock.
lock: ## pin the newest allowed versions in requirements.lock (torch as it is)
	@rm -rf $(LOCK_VENV)
	@$(PYTHON) -m venv $(LOCK_VENV)
	$(LOCK_VENV)/bin/python -m pip install torch==$(TORCH) -e '.[dev]'
	@mkdir -p _build
	@{ echo "# Constraints for pip, made by make lock: pip install -c requirements.lock -e .[dev]"; \
	   set -o pipefail; $(LOCK_VENV)/bin/python -m pip freeze --all --exclude-editable \
	   | sed -e '/^pip==/d' -e '/^nvidia-/d' -e '/^triton==/d' -e '/^cuda-/d' -e 's/+[a-z0-9.]*$$//'; } > _build/requirements.lock
	@mv _build/requirements.lock requirements.lock
	@rm -rf $(LOCK_VENV)

clean: ## delete what the build made (keeps .venv)
	@rm -rf _build .mypy_cache .pytest_cache .ruff_cache .hypothesis .coverage
