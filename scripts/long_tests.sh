#!/usr/bin/env bash
# Runs the tests that take minutes, those of random cases with more of them, kills 50 runs, and runs all cells of docs/lightning.md's table.
# Run scripts/long_tests.sh in an environment with .[dev].
set -euo pipefail
cd "$(dirname "$0")/.."
python -m pytest -n 0 -m "slow or hypothesis" --hypothesis-profile long  # in one process: some measure times
PYTHONPATH=. python scripts/inject_faults.py --kills 50
PYTHONPATH=. python scripts/lightning_table.py --check
