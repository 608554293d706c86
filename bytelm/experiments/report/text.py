"""Markdown that shows users' texts literally.

Names, reasons and values come from folders, configs and error messages. Nothing in them may become a link, an image, a
heading or HTML in any program that shows the page. Therefore every character with a meaning in Markdown is escaped.
"""

import re
import unicodedata
from collections.abc import Iterable, Sequence

_SPECIAL = re.compile(
    r"[\\`*\[\]|~$#]"
    r"|(?<![^\W_])_|_(?![^\W_])"  # within a word it has no meaning, and `d_ff` stays readable in the source
    r"|:(?=//)|(?<=mailto):|(?<=xmpp):|(?<=www)\."  # in addresses, which are automatically turned into links
    r"|^\d{1,9}[.)](?=\s)|^[-+](?=\s)|^=+$|^-+$"  # marks of a list or a heading, at the beginning
)
_ENTITIES = str.maketrans({"&": "&amp;", "<": "&lt;", ">": "&gt;"})  # every Markdown program takes these literally
ESCAPED = "\\`*[]|~$#_:.)-+="  # characters that a backslash may precede
# Unprintable characters, those that change the direction of text, and bytes that are not UTF-8.
_UNSEEN = {"Cc", "Cs"}
_TURNING = {*range(0x202A, 0x202F), *range(0x2066, 0x206A)}


def printable(text: object) -> str:
    """Returns text as one line; replaces characters that cannot be shown or would change how others are shown."""
    line = " ".join(str(text).split())
    return "".join(
        "\ufffd" if unicodedata.category(sign) in _UNSEEN or ord(sign) in _TURNING else sign for sign in line
    )


def plain(text: object) -> str:
    """Returns text as one line of Markdown that shows it literally."""
    line = printable(text)
    return _SPECIAL.sub(lambda match: f"{match[0][:-1]}\\{match[0][-1]}", line).translate(_ENTITIES)


def code(text: object) -> str:
    """Returns a command or a path as code, or as plain text if a character would end the code or a table's cell."""
    line = printable(text)
    return plain(line) if "`" in line or "|" in line else f"`{line}`"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Returns a Markdown table.

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
