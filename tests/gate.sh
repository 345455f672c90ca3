#!/usr/bin/env bash
# The gate: one command, one exit code. `make test` calls it; every step must pass, and the last line counts what ran.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

py=.venv/bin/python
reports=_build/gate
# Fixed threads: sums over threads round differently, and committed outputs are compared.
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} MKL_NUM_THREADS=${MKL_NUM_THREADS:-1} PYTHONDONTWRITEBYTECODE=1
# Committed outputs are a CPU's. `make test IMM_DEVICE=cuda` tests on a GPU too, and re-executes every chapter there, with
# all its assertions; what cells print is then compared but for its numbers, which a GPU rounds otherwise.
export IMM_DEVICE=${IMM_DEVICE:-cpu}
loosely=()
if [[ $IMM_DEVICE != cpu* ]]; then
  loosely=(--nbval-sanitize-with tests/notebooks/other-device.cfg)
fi
# Files are shared out among as many processes; a file's tests, and a chapter's cells, stay together and in order.
workers=(-n "${WORKERS:-$($py -c 'import os; print(min(os.cpu_count(), 4))')}" --dist loadfile)
step() { printf '\n== %s\n' "$*"; }

rm -rf "$reports"
mkdir -p "$reports"

step "the device"
$py -c 'import imm_lib as imm; print(imm.device())'

step "lint and format"
$py -m ruff check .
$py -m ruff format --check .

step "types"
$py -m mypy

step "unit, property and doc tests; coverage of the core"
MPLBACKEND=Agg COVERAGE_FILE=$reports/coverage $py -m pytest imm_lib tests \
  --ignore=tests/notebooks --ignore=tests/book "${workers[@]}" --junitxml="$reports/unit.xml" --cov --cov-report=term

step "notebooks, re-executed and compared"
# book/_includes holds scripts that chapters show: tests/ runs them as a user would, and importing one would train.
env -u MPLBACKEND $py -m pytest tests/notebooks book --ignore=book/_includes --nbval --nbval-current-env --nbval-cell-timeout=180 \
  ${loosely[@]+"${loosely[@]}"} "${workers[@]}" -p no:cacheprovider --junitxml="$reports/notebooks.xml"

step "the book, from nothing"
rm -rf _build/html _build/.doctrees _build/.jupyter_cache _build/jupyter_execute
.venv/bin/jupyter-book build . -n -W --keep-going -q

step "the rendered pages"
$py -m pytest tests/book --junitxml="$reports/book.xml"

$py tests/tools/summary.py "$reports"
