"""`bytelm completion bash`: prints a script for a shell that completes commands, options and their values.

The script contains everything that it offers, and completion does not start Python. shtab writes it for a parser of
argparse that is made here: the commands; the keys of a config; the options of all loaded parts, two levels deep; the
names of classes; the shipped configs; files.

jsonargparse supports shtab and argcomplete itself, with other costs. Its script for shtab has the options of each class
at each depth at which the class can stand: 75 MB for `fit`, which a shell loads in seconds. With argcomplete, each
completion starts the program and imports torch.
"""

import argparse
from collections.abc import Iterator
from contextlib import suppress
from functools import cache
from importlib import import_module
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin
from unittest.mock import patch

import jsonargparse
import shtab

from bytelm.config import keys, shipped
from bytelm.config.classes import classes_of, no_class, options_of, parameters_of
from bytelm.config.command import CommandParser
from bytelm.config.usage import HELP_ALL
from bytelm.program import COMMANDS

SHELLS = ("bash", "zsh")
CONFIG_OPTIONS = ("--config", "config", "configs", "contestants", "names")
RUN_OPTIONS = ("--ckpt_path", "--init_from", "folder", "runs")
NETWORK = "model.gpt"
LISTED_LEVELS = 2  # of classes below a key: a part, and a part of it
# Functions of the scripts, by shell; `_file` in their names tells shtab's script that they complete files.
_CONFIGS, _RUNS = "_bytelm_config_or_file", "_bytelm_checkpoint_or_file"
_PREAMBLE = {
    "bash": """\
{name}() {{ compgen -W "{words}" -- "$1"; compgen -f -- "$1"; }}
""",
    "zsh": """\
{name}() {{ _alternative 'names:name:({words})' 'files:file:_files' }}
""",
}


class _Found(BaseException):
    """Carries a command's parser out of the command, before it starts its work. No handler of errors catches it."""

    def __init__(self, parser: jsonargparse.ArgumentParser) -> None:
        self.parser = parser


def main(args: list[str]) -> None:
    """Runs the command.

    Args:
        args: The arguments after `bytelm completion`: the shell.
    """
    parser = CommandParser("completion", description="Prints a completion script for a shell.")
    parser.add_argument("shell", choices=SHELLS, help="bash or zsh.")
    print(script(parser.parse_args(args).shell))


def script(shell: str) -> str:
    """Returns the completion script for a shell.

    Args:
        shell: One of `SHELLS`.
    """
    words = {_CONFIGS: " ".join(shipped.names()), _RUNS: "best last"}
    preamble = "".join(_PREAMBLE[shell].format(name=name, words=words[name]) for name in words)
    return shtab.complete(commands(), shell, preamble=preamble)


def commands() -> argparse.ArgumentParser:
    """Returns a parser of argparse for all commands, with their options and the values that are known."""
    program = argparse.ArgumentParser("bytelm")
    program.add_argument("--version", action="store_true", help="Print the version.")
    subparsers = program.add_subparsers()
    for command in COMMANDS:
        parser = subparsers.add_parser(command.name, help=command.help, add_help=False)
        if command.name == "completion":
            parser.add_argument("shell", choices=SHELLS)
            continue
        with suppress(ModuleNotFoundError):  # the package of an extra: its command is offered without options
            _copy_options(_parser_of(command.module, command.function, command.name, command.with_name), parser)
            if command.with_name:
                if command.name != "fit":
                    _add(parser, "run")
                _add_keys(parser)
    return program


def _parser_of(module: str, function: str, name: str, with_name: bool) -> jsonargparse.ArgumentParser:
    def found(parser: jsonargparse.ArgumentParser, *args: Any, **kwargs: Any) -> None:
        raise _Found(parser)

    main = getattr(import_module(module), function)
    with patch.object(jsonargparse.ArgumentParser, "parse_args", found):
        try:
            main([name] if with_name else [])
        except _Found as result:
            return result.parser
    raise AssertionError(f"{name} parses no options")


def _copy_options(parser: jsonargparse.ArgumentParser, copy: argparse.ArgumentParser) -> None:
    for action in parser._actions:
        if action.help == argparse.SUPPRESS:
            continue
        values = [str(choice) for choice in action.choices or _values(getattr(action, "_typehint", None))]
        names = action.option_strings or [action.dest]
        _add(copy, *names, values=values, help=action.help or "", is_flag=action.nargs == 0)


def _add(
    parser: argparse.ArgumentParser, *names: str, values: list[str] | None = None, help: str = "", is_flag: bool = False
) -> None:
    """Adds an option or a positional argument, unless it is there."""
    if any(name in parser._option_string_actions for name in names):
        return
    text = " ".join(help.split()).partition(". ")[0].replace("%", "%%")
    if is_flag:
        parser.add_argument(*names, action="store_true", help=text)
        return
    is_positional = not names[0].startswith("-")
    action = parser.add_argument(*names, help=text, **({"nargs": "*"} if is_positional else {}))  # type: ignore[arg-type]
    if values:
        action.choices = values
    elif any(name in CONFIG_OPTIONS for name in names):
        action.complete = dict.fromkeys(SHELLS, _CONFIGS)  # type: ignore[attr-defined]
    elif any(name in RUN_OPTIONS for name in names):
        action.complete = dict.fromkeys(SHELLS, _RUNS)  # type: ignore[attr-defined]
    elif is_positional or names[0] in ("--source", "--target"):
        action.complete = shtab.FILE  # type: ignore[attr-defined]


def _values(hint: Any) -> Iterator[Any]:
    """Returns the values that an annotation lists."""
    if hint is bool:
        yield from ("true", "false")
    elif get_origin(hint) is Literal:
        yield from get_args(hint)
    elif get_origin(hint) in (Union, UnionType):
        for each in get_args(hint):
            yield from _values(each)


def _add_keys(parser: argparse.ArgumentParser) -> None:
    """Adds the names of classes to the keys of a config, and the options of these classes."""
    for key, names in _keys().items():
        if names and (action := parser._option_string_actions.get(f"--{key}")) is not None:
            action.choices = names
        _add(parser, f"--{key}", values=names)
        if names:
            _add(parser, f"--{key}.help", values=names)
    for root in keys.KEYS:
        _add(parser, f"--{root}.help", is_flag=True)
    _add(parser, HELP_ALL, is_flag=True)


@cache
def _keys() -> dict[str, list[str]]:
    """Returns the keys of a config, those of the options of parts included, with the names of their classes."""
    from bytelm.cli import is_unlisted  # not above: it imports torch, which the script needs only where it is made
    from bytelm.gpt import GPT
    from bytelm.parts.contract import known_parts

    roots, nested = keys.classes(), (GPT, *known_parts())
    found: dict[str, list[str]] = {}

    @cache
    def classes_at(name: str, of_trainer: bool) -> list[type]:
        return classes_of(name, roots, nested, is_unlisted if of_trainer else no_class)

    def add(key: str, level: int) -> None:
        classes = classes_at(key.rpartition(".")[2], key.startswith("trainer."))
        found[key] = [cls.__name__ for cls in classes]
        if level <= LISTED_LEVELS and not key.startswith("trainer."):
            owners = [GPT] if key == NETWORK else classes
            of = {option for cls in owners for option in options_of(cls, key, [*roots.values(), *nested])}
            for option in sorted(of):
                add(f"{key}.{option}", level + 1)

    for key in (NETWORK, "model.loss", "model.optimizer", "data", "lr_schedule"):
        add(key, 0 if key == NETWORK else 1)
    for option in parameters_of(roots["trainer"]):
        add(f"trainer.{option}", 1)
    return found
