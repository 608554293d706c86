"""Markdown that shows the texts of users as they are.

Names, reasons and values come from folders, configs and error messages. Nothing in them may become a link, an image, a
heading or HTML, in whatever shows the page. So every character that means something in Markdown is escaped.
"""

import re
import unicodedata
from collections.abc import Iterable, Sequence

_SPECIAL = re.compile(
    r"[\\`*\[\]|~$#]"
    r"|(?<![^\W_])_|_(?![^\W_])"  # within a word it means nothing, and `d_ff` stays readable in the source
    r"|:(?=//)|(?<=mailto):|(?<=xmpp):|(?<=www)\."  # of addresses, which become links by themselves
    r"|^\d{1,9}[.)](?=\s)|^[-+](?=\s)|^=+$|^-+$"  # of a list or a heading, at the beginning
)
_ENTITIES = str.maketrans({"&": "&amp;", "<": "&lt;", ">": "&gt;"})  # which all that shows Markdown takes literally
ESCAPED = "\\`*[]|~$#_:.)-+="  # what a backslash may stand before
# Unprintable characters, those that turn the direction of text, and bytes that are no UTF-8.
_UNSEEN = {"Cc", "Cs"}
_TURNING = {*range(0x202A, 0x202F), *range(0x2066, 0x206A)}


def printable(text: object) -> str:
    """Text as one line, with a replacement for characters that cannot be shown or would change how others are."""
    line = " ".join(str(text).split())
    return "".join(
        "\ufffd" if unicodedata.category(sign) in _UNSEEN or ord(sign) in _TURNING else sign for sign in line
    )


def plain(text: object) -> str:
    """Text as one line of Markdown that shows it literally."""
    line = printable(text)
    return _SPECIAL.sub(lambda match: f"{match[0][:-1]}\\{match[0][-1]}", line).translate(_ENTITIES)


def code(text: object) -> str:
    """A command or a path, as code; where it has a character that ends code or a table's cell, as plain text."""
    line = printable(text)
    return plain(line) if "`" in line or "|" in line else f"`{line}`"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table.

    Args:
        head: Names of the columns; one that ends in `>` is aligned to the right.
        rows: Cells, in Markdown.
    """
    lines = [
        [plain(name.removesuffix(">")) for name in head],
        ["---:" if name.endswith(">") else "---" for name in head],
        *rows,
    ]
    return "\n".join(f"| {' | '.join(row)} |" for row in lines)
