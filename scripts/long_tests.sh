#!/usr/bin/env bash
# The tests that take minutes, and 50 runs that are killed: scripts/long_tests.sh, from an environment with .[dev]
set -euo pipefail
cd "$(dirname "$0")/.."
python -m pytest -n 0 -m slow  # one by one: some of them measure times
PYTHONPATH=. python scripts/inject_faults.py --kills 50
