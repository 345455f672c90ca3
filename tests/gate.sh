#!/usr/bin/env bash
# The gate: one command, one exit code. `make test` calls it; every step must pass, and the last line counts what ran.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

py=.venv/bin/python
reports=_build/gate
# Fixed threads: sums over threads round differently, and committed outputs are compared.
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} MKL_NUM_THREADS=${MKL_NUM_THREADS:-1} PYTHONDONTWRITEBYTECODE=1
step() { printf '\n== %s\n' "$*"; }

rm -rf "$reports"
mkdir -p "$reports"

step "lint and format"
$py -m ruff check .
$py -m ruff format --check .

step "types"
$py -m mypy

step "unit, property and doc tests; coverage of the core"
MPLBACKEND=Agg COVERAGE_FILE=$reports/coverage $py -m pytest imm_lib tests \
  --ignore=tests/notebooks --ignore=tests/book --junitxml="$reports/unit.xml" --cov --cov-report=term

step "notebooks, re-executed and compared"
env -u MPLBACKEND $py -m pytest tests/notebooks book --nbval --nbval-current-env --nbval-cell-timeout=180 \
  -p no:cacheprovider --junitxml="$reports/notebooks.xml"

step "the book, from nothing"
rm -rf _build/html _build/.doctrees _build/.jupyter_cache _build/jupyter_execute
.venv/bin/jupyter-book build . -n -W --keep-going -q

step "the rendered pages"
$py -m pytest tests/book --junitxml="$reports/book.xml"

$py tests/tools/summary.py "$reports"
