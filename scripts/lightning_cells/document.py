"""The table of docs/lightning.md: its text, and its comparison with the table in the page."""

import difflib
from collections.abc import Iterable, Sequence
from itertools import groupby
from pathlib import Path

from lightning_cells.cell import Cell
from lightning_cells.running import Result

BEGIN = "<!-- Table of scripts/lightning_table.py: begin -->"
END = "<!-- Table of scripts/lightning_table.py: end -->"


def table_of(path: Path) -> str:
    """The table in a page.

    Args:
        path: The page, which has a line `BEGIN` and a line `END`.
    """
    return path.read_text(encoding="utf-8").partition(BEGIN + "\n")[2].partition(END)[0]


def write_table(path: Path, table: str) -> None:
    """Replaces the table of a page."""
    before, begin, rest = path.read_text(encoding="utf-8").partition(BEGIN + "\n")
    path.write_text(before + begin + table + END + rest.partition(END)[2], encoding="utf-8")


def rendered(results: Iterable[tuple[Cell, Result]], there: str) -> str:
    """The table as Markdown.

    Args:
        results: The cells with their results.
        there: The table in the page. A cell that needs a device or a package keeps its row if only the machine differs.
    """
    rows = {line.rpartition(" | ")[0]: line for line in there.splitlines()}
    lines = []
    for group, members in groupby(results, key=lambda result: result[0].group):
        lines += ["", f"### {group}", "", "| options | in Lightning | here |", "| --- | --- | --- |"]
        for cell, result in members:
            line = row(cell, result)
            kept = rows.get(line.rpartition(" | ")[0], line)
            depends = cell.needs is not None or not cell.everywhere
            other_machine = depends and not result.is_fault and {"works"} < {_outcome(kept), _outcome(line)}
            lines.append(kept if other_machine else line)
    return "\n".join([*lines, "", ""])


def difference(there: str, here: str) -> Sequence[str]:
    """Lines of a diff from the table in the page to another one."""
    return list(difflib.unified_diff(there.splitlines(), here.splitlines(), "committed", "seen", "", "", 0, ""))


def row(cell: Cell, result: Result) -> str:
    """A row; its last column begins with the outcome in bold letters."""
    seen = _escaped(cell.check.text) if result.outcome == "works" else _code(result.line)
    return f"| {_code(cell.written)} | {_escaped(cell.documented)} | **{result.outcome}**: {seen} |"


def _outcome(row: str) -> str:
    return row.rpartition(" | ")[2].split("**")[1]


def _escaped(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")


def _code(text: str) -> str:
    text = text.replace("|", "\\|")
    return f"`` {text} ``" if "`" in text else f"`{text}`"
