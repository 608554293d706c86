"""The commands for many runs are found, and say what they need."""

import re
import runpy
import signal
import subprocess
import sys
from pathlib import Path

import pytest

_handler = signal.getsignal(signal.SIGINT)
COMMANDS = runpy.run_path(str(Path(__file__).parents[2] / "bytelm/__main__.py"), run_name="bytelm")["COMMANDS"]
signal.signal(signal.SIGINT, _handler)  # which the program sets for itself
WITHOUT = """
import runpy, sys
sys.modules["{missing}"] = None
sys.argv = ["bytelm", "{command}"]
runpy.run_module("bytelm", run_name="__main__")
"""


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_tells_its_options(command, capsys):
    name, _, function = COMMANDS[command].partition(":")
    module = pytest.importorskip(name)
    with pytest.raises(SystemExit) as ended:
        getattr(module, function or "main")(["--help"])
    assert ended.value.code == 0
    said = capsys.readouterr().out
    assert said.startswith(f"usage: python -m bytelm {command} ")
    assert not re.search(r"^ *-?-?\w+( \w+)? +\(required, type: str\)", said, re.MULTILINE), "an option without help"


@pytest.mark.parametrize(("command", "missing"), [("experiments", "optuna"), ("serve", "uvicorn")])
def test_a_command_names_what_is_not_installed(command, missing):
    ended = subprocess.run(
        [sys.executable, "-c", WITHOUT.format(command=command, missing=missing)], capture_output=True, text=True
    )
    assert ended.returncode == 2
    (line,) = ended.stderr.splitlines()
    assert line.startswith(f"bytelm: error: {command} needs {missing}, which is not installed; pip install")
