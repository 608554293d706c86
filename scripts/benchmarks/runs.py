"""Runs that are measured: as another process, or within this one."""

import subprocess
import sys
from pathlib import Path
from typing import Any

from bytelm.cli import BytelmCLI, build

ROOT = Path(__file__).resolve().parents[2]
Result = dict[str, Any]


def run(command: list[str], environment: dict[str, str] | None = None) -> str:
    finished = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    if finished.returncode:
        sys.exit(f"{' '.join(command)} ended with status {finished.returncode}:\n{finished.stderr}")
    return finished.stdout


def build_cli(config: Path, *options: str) -> BytelmCLI:
    sys.argv = sys.argv[:1]  # LightningCLI warns if there are both args and sys.argv
    return build(["--config", str(config), *options], run=False)
