"""The options `--KEY.help`: the help of one section of a config, of a kind of part, or of one class.

| option | prints |
| --- | --- |
| --trainer.help, --time_budget.help, … | the options of this section |
| --model.gpt.help | the options of the only class that the key has |
| --model.gpt.attention.help | the classes that the key accepts, each with the first line of its description |
| --model.gpt.attention.help SDPA | the options of this class |

jsonargparse prints the options of a class, and for nested ones names them without their full key. The others are
printed here.
"""

import inspect
import re
import sys
from argparse import SUPPRESS
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import redirect_stdout
from copy import copy
from io import StringIO

from jsonargparse import ArgumentParser

from bytelm.config.classes import classes_of, default_of, no_class
from bytelm.config.suggestions import choices
from bytelm.errors import UsageError

OPTION = re.compile(r"--([\w.]+)\.help(?:=(.*))?")
WIDTH = 80


def print_requested(
    parser: ArgumentParser,
    args: Sequence[str],
    roots: Mapping[str, type],
    nested: Iterable[type],
    unlisted: Callable[[type], bool] = no_class,
) -> None:
    """Prints the help that the first `--KEY.help` asks for, and ends the program; returns if there is none.

    It also returns if there is no such key. The parser then rejects the option.

    Args:
        parser: Parser of the options.
        args: The command line.
        roots: The class of each top-level key.
        nested: Further classes whose constructors take other classes.
        unlisted: Whether a class is not listed for keys of the trainer.

    Raises:
        UsageError: The key takes no classes, or the class is none of them.
    """
    found = [(at, match) for at, arg in enumerate(args) if (match := OPTION.fullmatch(arg))]
    if not found:
        return
    at, match = found[0]
    key, given = match.groups()
    root = key.partition(".")[0]
    if root not in roots and f"--{root}" not in parser._option_string_actions:
        return
    if given is None and at + 1 < len(args) and not args[at + 1].startswith("-"):
        given = args[at + 1]
    name = key.rpartition(".")[2]
    nested = list(nested)
    is_option = f"--{key}.help" in parser._option_string_actions
    is_section = key in (parser.groups or {}) and not is_option
    classes = (
        [] if is_section else classes_of(name, roots, nested, unlisted if key.startswith("trainer.") else no_class)
    )
    names = [cls.__name__ for cls in classes]
    if not (classes or is_option or is_section):
        section = f"--{key.rpartition('.')[0]}.help" if "." in key else "--help_all"
        raise UsageError(f"{key}.help: {key} takes no class; accepted: {section}, which describes the key")
    if is_section:
        print(_section(parser, key))
    elif given is None and (len(classes) > 1 or not is_option):
        print(_listed(key, classes, [default_of(owner, name) for owner in [*roots.values(), *nested]]))
    else:
        option = f"--{key}.help" + (f"={given}" if given else "")
        try:
            text = _options_of_class(parser, [*args[:at], option], key)
        except UsageError as error:
            accepted = f"{choices(given, names)}, or an import path" if names else "accepted: an import path"
            raise UsageError(f"{key}.help: {given!r} is none of its classes; {accepted}") from error
        sys.stdout.write(text if "\n\n" in text else text + _without_options(given, classes))
    parser.exit()


def _listed(key: str, classes: Sequence[type], defaults: Sequence[object]) -> str:
    width = max(len(cls.__name__) for cls in classes)
    lines = []
    for cls in classes:
        start = f"  {cls.__name__:{width}}  "
        text = f"(default) {_first_paragraph(cls)}" if cls in defaults else _first_paragraph(cls)
        room = WIDTH - len(start)
        lines.append(start + (text if len(text) <= room else f"{text[: room - 1].rpartition(' ')[0]}…"))
    about = f"`--{key}.help CLASS` prints the options of a class. Name your own class by its import path."
    return "\n".join([f"{key} accepts:", *lines, "", about])


def _without_options(given: str | None, classes: Sequence[type]) -> str:
    """Returns the help of a class without options, of which jsonargparse prints only the name."""
    texts = [_first_paragraph(cls) for cls in classes if given and cls.__name__ == given.rpartition(".")[2]]
    return "\n".join(["", *texts, "It has no options.", ""])


def _first_paragraph(cls: type) -> str:
    return " ".join(inspect.cleandoc(cls.__doc__ or "").partition("\n\n")[0].split())


def _section(parser: ArgumentParser, key: str) -> str:
    alone = copy(parser)
    alone._action_groups = [(parser.groups or {})[key]]  # of argparse, which prints the help of all of them
    alone.usage, alone.description = SUPPRESS, None
    return alone.format_help().strip()


def _options_of_class(parser: ArgumentParser, args: Sequence[str], key: str) -> str:
    """Returns jsonargparse's help of a class, with full keys, and without its usage, which repeats the options."""
    printed = StringIO()
    try:
        with redirect_stdout(printed):
            parser.parse_args(args)
    except SystemExit as end:
        if end.code:
            raise
    text = printed.getvalue()
    name = key.rpartition(".")[2]
    if f"--{key}." not in text:
        text = text.replace(f"--{name}.", f"--{key}.")
    return text[text.find("Help for ") :] if "Help for " in text else text
