"""Command lines of the commands other than LightningCLI's: options from a function's signature."""

import re
from typing import Any, NoReturn

from jsonargparse import ArgumentParser

from bytelm.config.keys import KEYS
from bytelm.config.messages import NUMBERS, clarify
from bytelm.config.suggestions import choices
from bytelm.config.written import Written
from bytelm.errors import UsageError
from bytelm.system.invocation import typed_name

NOT_LISTED = ("--help", "--print_shtab")  # among the accepted options


class CommandParser(ArgumentParser):
    """A parser for `python -m bytelm <command>`.

    Args:
        command: Name of the command.
        passes_on: Whether options after `--` are those of each run.
        options: Options of jsonargparse's parser; `prog` for a program that is no command.
    """

    def __init__(self, command: str = "", passes_on: bool = False, **options: Any) -> None:
        self._passes_on = passes_on
        options.setdefault("prog", f"{typed_name()} {command}".strip())
        super().__init__(allow_abbrev=False, **options)

    def parse_args(self, args: Any = None, *others: Any, **options: Any) -> Any:
        """Parses a command line; `options` of the result are those after `--`, if they are passed on."""
        given = list(args or ())
        at = given.index("--") if self._passes_on and "--" in given else len(given)
        self._options = given[:at]
        parsed = super().parse_args(self._options, *others, **options)
        if self._passes_on:
            parsed.options = given[at + 1 :]
        return parsed

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Raises UsageError: one line, in place of jsonargparse's report, which prints the usage first."""
        options = [
            option.removeprefix("--")
            for action in self._actions
            for option in action.option_strings
            if option.startswith("--") and option not in NOT_LISTED
        ]
        positional = [action.dest for action in self._actions if not action.option_strings]
        given = re.match(r"unrecognized arguments: --((\w+)[^\n]*)", message)
        if self._passes_on and given is not None and given[2] in KEYS:
            name, value = re.fullmatch(r"([\w.]+)(.*)", given[1]).groups()  # type: ignore[union-attr]
            own = name.rpartition(".")[2]
            meant = f"--{own}{value}" if name == "time_budget.limit" and own in options else f"-- --{given[1]}"
            raise UsageError(
                f"{name}: unknown key; did you mean {meant}? Options after -- are those of each run"
            ) from ex
        if given is not None and given[2] in positional:
            *_, command = self.prog.split()
            value = given[1].partition("=")[2] or Written(self._options).option(given[2]) or given[2].upper()
            raise UsageError(f"{given[2]}: it is given without its name; accepted: {command} {value}") from ex
        if match := re.match(r"Option '(\w+)[^']*' is not accepted", message):  # in a file of options
            raise UsageError(f"{match[1]}: unknown key; {choices(match[1], options)}") from ex
        # argparse's own reports, of positional arguments, of choices, and inside a group of exclusive options.
        if match := re.match(r"argument (?:--)?(\w+): invalid choice: ('.*?') \(choose from (.*)\)", message):
            raise UsageError(f"{match[1]}: {match[2]} is not accepted; accepted: {match[3]}") from ex
        if match := re.match(r"argument --(\w+): invalid (\w+) value: (.*)", message):
            accepted = NUMBERS.get(match[2], match[2])
            raise UsageError(f"{match[1]}: {match[3]} is not accepted; accepted: {accepted}") from ex
        if match := re.match(r"argument --(\w+): not allowed with argument --(\w+)", message):
            raise UsageError(f"{match[1]}: it is given beside {match[2]}; accepted: one of the two") from ex
        raise UsageError(clarify(message, {}, others=options, written=Written(self._options))) from ex
