"""`python -m bytelm configs`: lists the shipped configs."""

import sys

from bytelm.config import shipped
from bytelm.config.command import CommandParser
from bytelm.config.suggestions import hint
from bytelm.errors import ConfigError

NAME_WIDTH = 26  # longer names push their description to the right
LINE_WIDTH = 80  # on a terminal; elsewhere, such as in a pipe, descriptions are whole


def main(args: list[str]) -> None:
    """Lists the shipped configs.

    Args:
        args: The arguments after `python -m bytelm configs`: names, or the beginnings of names; default all.
    """
    parser = CommandParser("configs", description="Lists the shipped configs, for `fit --config <name>`.")
    parser.add_argument(
        "names", nargs="*", type=str, default=[], help="Only those whose names begin with one of these."
    )
    prefixes = tuple(parser.parse_args(args).names) or ("",)
    names = [*shipped.names()]
    for prefix in prefixes:
        if not any(name.startswith(prefix) for name in names):
            meant = hint(prefix, [*names, *{name.partition("/")[0] for name in names}])
            raise ConfigError("names", prefix, f"{meant}accepted: the beginnings of names that `configs` lists")
    for name in names:
        if name.startswith(prefixes):
            start = f"{name:{NAME_WIDTH}}  "
            text = shipped.summary(name)
            print(start + (_shortened(text, LINE_WIDTH - len(start)) if sys.stdout.isatty() else text))


def _shortened(text: str, width: int) -> str:
    return text if len(text) <= width else f"{text[: width - 1].rpartition(' ')[0]}…"
