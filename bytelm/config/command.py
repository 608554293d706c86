"""The command lines of this package: options from a function's signature, errors in one line."""

from typing import Any, NoReturn

from jsonargparse import ArgumentParser

from bytelm.cli import fail
from bytelm.config.messages import clarify


class CommandParser(ArgumentParser):
    """A parser for `python -m bytelm <command>`.

    Args:
        command: Its name.
        options: As for jsonargparse's.
    """

    def __init__(self, command: str = "", **options: Any) -> None:
        super().__init__(prog=f"python -m bytelm {command}".strip(), **options)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        fail(clarify(message, {}))
