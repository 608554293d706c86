#!/usr/bin/env bash
# Runs the tests that take minutes, and kills 50 runs. Run scripts/long_tests.sh in an environment with .[dev].
set -euo pipefail
cd "$(dirname "$0")/.."
python -m pytest -n 0 -m slow  # in one process: some of them measure times
PYTHONPATH=. python scripts/inject_faults.py --kills 50
