"""Command lines of the commands other than LightningCLI's: options from a function's signature."""

from typing import Any, NoReturn

from jsonargparse import ArgumentParser

from bytelm.config.messages import clarify
from bytelm.config.written import Written
from bytelm.errors import UsageError
from bytelm.system.invocation import typed_name


class CommandParser(ArgumentParser):
    """A parser for `python -m bytelm <command>`.

    Args:
        command: Name of the command.
        options: Options of jsonargparse's parser.
    """

    def __init__(self, command: str = "", **options: Any) -> None:
        super().__init__(prog=f"{typed_name()} {command}".strip(), allow_abbrev=False, **options)

    def parse_args(self, args: Any = None, *others: Any, **options: Any) -> Any:
        """Parses a command line."""
        self._options = list(args or ())
        return super().parse_args(args, *others, **options)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Raises UsageError: one line, in place of jsonargparse's report, which prints the usage first."""
        options = [option.lstrip("-") for action in self._actions for option in action.option_strings]
        raise UsageError(clarify(message, {}, others=options, written=Written(self._options))) from ex
