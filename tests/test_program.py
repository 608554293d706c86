"""The program: its commands are found without torch, and how it begins and ends."""

import gc
import os
import re
import signal
import subprocess
import sys
import threading
import time
from importlib import import_module, metadata
from pathlib import Path

import pytest
import yaml

import bytelm
from bytelm import program
from bytelm.errors import ConfigError, Diverged, Interrupted, StorageError
from bytelm.program import COMMANDS, errors_in_one_line, import_large, interruptible, main

PROJECT = Path(__file__).resolve().parents[1]
LIGHT = "import sys\nfrom bytelm.program import main\ntry: main({args!r})\nfinally: print('torch' in sys.modules)"
WITHOUT = """
import runpy, sys
sys.modules["{missing}"] = None
sys.argv = ["bytelm", "{command}"]
runpy.run_module("bytelm", run_name="__main__")
"""
# The program with a command that raises what the test asks for.
RAISING = """
import sys
from types import ModuleType
from bytelm import errors, program
module = ModuleType("raising")
def main(args):
    raise {error}
module.main = main
sys.modules["raising"] = module
program.COMMANDS = (program.Command("raise", "raising", "Raise."),)
program.main(["raise"])
"""


def python(code, **options):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, **options)


@pytest.mark.parametrize("args", [["--help"], ["-h"], []])
def test_all_commands_are_listed_without_torch(args):
    ended = python(LIGHT.format(args=args))
    said, unsaid = (ended.stdout, ended.stderr) if args else (ended.stderr, ended.stdout)
    assert ended.returncode == (0 if args else ConfigError.exit_status)
    assert unsaid.strip() == ("" if args else "False")
    lines = said.splitlines()
    assert lines[0] == "usage: python -m bytelm <command> [options]"
    for command in COMMANDS:
        assert f"  {command.name:11}  {command.help}" in lines
    assert "False" in ended.stdout.splitlines()


def test_the_module_is_the_program_and_the_usage_line_is_what_was_typed():
    for option, said in (("--version", f"bytelm {bytelm.__version__}\n"), ("-h", "usage: python -m bytelm <command> ")):
        ended = subprocess.run([sys.executable, "-m", "bytelm", option], capture_output=True, text=True)
        assert ended.stdout.startswith(said)
    assert metadata.version("bytelm") == bytelm.__version__


@pytest.mark.parametrize(
    ("args", "status", "said"),
    [
        (
            ["fit"],
            2,
            [
                "a config is required: python -m bytelm fit --config quickstart",
                "  quickstart     A first run ",
                "gpt2/ ",
            ],
        ),
        (["validate"], 2, ["a run is required: python -m bytelm validate runs/"]),
        (
            ["fit", "--config", "x.yaml", "--help"],
            0,
            ["usage: python -m bytelm fit --config CONFIG", "--time_budget.help"],
        ),
        (["test", "-h"], 0, ["usage: python -m bytelm test RUN ", "python -m bytelm test OPTION", "--help_all"]),
    ],
)
def test_commands_that_train_or_score_have_a_short_help_without_torch(args, status, said):
    ended = python(LIGHT.format(args=args))
    text = ended.stderr if status else ended.stdout.removesuffix("False\n")
    assert ended.returncode == status
    assert ended.stdout.endswith("False\n")  # torch is not loaded
    assert [line for line in said if line not in text] == []
    assert text.count("\n") < 50


@pytest.mark.parametrize(
    ("given", "hint"),
    [
        ("fti", "did you mean fit? "),
        ("genrate", "did you mean generate? "),
        ("train", "did you mean fit? "),
        ("xyzzy", ""),
    ],
)
def test_an_unknown_command_is_rejected_with_the_accepted_ones(given, hint):
    ended = python(LIGHT.format(args=[given]))
    assert ended.returncode == ConfigError.exit_status
    names = ", ".join(command.name for command in COMMANDS)
    assert ended.stderr == f"bytelm: error: unknown command {given!r}; {hint}accepted: {names}\n"
    assert ended.stdout == "False\n"


def test_options_may_come_before_the_command_as_in_lightning(folder, capsys):
    config = yaml.safe_load(Path("tiny.yaml").read_text())
    Path("all.yaml").write_text(yaml.safe_dump({"fit": config}))
    main(["--config", "all.yaml", "fit"])
    assert "val_bpb" in capsys.readouterr().out
    with pytest.raises(SystemExit) as ended:
        main(["--no_such_option"])
    assert ended.value.code == ConfigError.exit_status
    assert capsys.readouterr().err.startswith("bytelm: error: ")


def test_the_console_script_is_the_program():
    (target,) = re.findall(r'^bytelm = "(.*)"$', (PROJECT / "pyproject.toml").read_text(), re.MULTILINE)
    module, function = target.split(":")
    assert getattr(import_module(module), function) is main


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.name)
def test_a_command_describes_its_options(command, capsys):
    pytest.importorskip(command.module)
    with pytest.raises(SystemExit) as ended:
        main([command.name, "--help"])
    assert ended.value.code == 0
    said = capsys.readouterr().out
    assert said.startswith(f"usage: python -m bytelm {command.name} ")
    assert max(map(len, said.splitlines())) <= 80
    if not command.with_name:
        assert not re.search(r"^ *-?-?\w+( \w+)? +\(required, type: str\)", said, re.MULTILINE), "no help"


@pytest.mark.parametrize(("command", "missing"), [("experiments", "optuna"), ("serve", "uvicorn")])
def test_a_command_names_the_missing_package(command, missing):
    ended = python(WITHOUT.format(command=command, missing=missing))
    assert ended.returncode == 2
    (line,) = ended.stderr.splitlines()
    assert line.startswith(f"bytelm: error: {command} needs {missing}, which is not installed: pip install")


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.name)
def test_every_command_has_a_function(command):
    assert callable(getattr(pytest.importorskip(command.module), command.function))


def test_the_commands_that_take_their_name_are_lightnings():
    subcommands = import_module("bytelm.cli").BytelmCLI.subcommands()
    assert [command.name for command in COMMANDS if command.with_name] == [*subcommands]


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        ("errors.ConfigError('a', 1, 'accepted: 2')", 2, "a: 1 cannot be used; accepted: 2"),
        ("errors.StorageError('no\\nspace')", 5, "no space"),
        ("errors.Interrupted(15, 'after step 3')", 143, "interrupted by SIGTERM after step 3"),
        ("MemoryError()", 6, "out of memory; "),
        ("RuntimeError('can\\'t allocate memory: 3 GB')", 6, "out of memory; "),
        ("NotADirectoryError(20, 'Not a directory', 'a/b')", 5, "a/b: it cannot be used (Not a directory)"),
        ("ValueError('other') from errors.Diverged('NaN')", 1, "NaN"),
    ],
)
def test_an_error_is_one_line_and_an_exit_status(error, status, line):
    ended = python(RAISING.format(error=error))
    assert (ended.returncode, ended.stdout) == (status, "")
    assert ended.stderr.startswith(f"bytelm: error: {line}")
    assert ended.stderr.count("\n") == 1


def test_an_error_of_no_known_kind_keeps_its_traceback():
    ended = python(RAISING.format(error="KeyError('x')"))
    assert ended.returncode == 1
    assert ended.stderr.endswith("KeyError: 'x'\n")


def test_only_rank_zero_reports(monkeypatch, capsys):
    monkeypatch.setattr(program, "is_rank_zero", lambda: False)
    with pytest.raises(SystemExit) as ended, errors_in_one_line():
        raise Diverged("NaN")
    assert (ended.value.code, capsys.readouterr().err) == (1, "")
    with pytest.raises(SystemExit) as ended, errors_in_one_line():
        raise StorageError("full")
    assert (ended.value.code, capsys.readouterr().err) == (5, "bytelm: error: full\n")


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_is_an_error_inside_and_nothing_is_left_of_that(signum):
    before = signal.getsignal(signum), threading.excepthook

    def wait_for_it():
        with interruptible():
            os.kill(os.getpid(), signum)
            time.sleep(1)

    with pytest.raises(Interrupted) as interrupted:
        wait_for_it()
    assert interrupted.value.exit_status == 128 + signum
    assert (signal.getsignal(signum), threading.excepthook) == before


@pytest.mark.parametrize("is_reporting", [False, True])
def test_the_last_search_for_garbage_leaves_out_what_was_imported(monkeypatch, tmp_path, is_reporting):
    registered = []
    monkeypatch.setattr(program.atexit, "register", registered.append)
    for function in ("isenabled", "freeze"):
        monkeypatch.setattr(program.gc, function, lambda: True)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "my_large.py").touch()
    monkeypatch.setattr(program, "REPORTING", {"my_large"} if is_reporting else set())
    import_large("my_large")
    del sys.modules["my_large"]
    assert registered == ([gc.unfreeze] if is_reporting else [])


def test_a_signal_during_an_import_ends_the_program_with_a_line(monkeypatch, capsys):
    before = signal.getsignal(signal.SIGINT)
    monkeypatch.setattr(program.os, "_exit", sys.exit)
    monkeypatch.setattr(program, "import_large", lambda name: signal.raise_signal(signal.SIGINT))
    with pytest.raises(SystemExit) as ended:
        program.load(COMMANDS[0])
    assert ended.value.code == 130
    assert capsys.readouterr().err == "bytelm: error: interrupted by SIGINT\n"
    assert signal.getsignal(signal.SIGINT) is before
