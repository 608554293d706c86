"""The documentation's files, and the blocks and links in them."""

import re
from pathlib import Path
from typing import NamedTuple

PROJECT = Path(__file__).resolve().parents[1]
GENERATED = {Path("docs/autoresearch", folder, "report.md") for folder in (".", "seeds", "third-set")}
FILES = sorted(
    path.relative_to(PROJECT) for path in (*PROJECT.glob("*.md"), *PROJECT.glob("docs/**/*.md"))
)  # README.md, docs/guides/configs.md, …


class Example(NamedTuple):
    """A Python file that a page shows, with the options that use it.

    Attributes:
        page: The page.
        file: Name of the file, in the first line of the block.
        options: The options, after the name.
        code: The rest of the block.
    """

    page: Path
    file: str
    options: str
    code: str


def read(page: Path) -> str:
    return (PROJECT / page).read_text(encoding="utf-8")


def blocks(page: Path, language: str) -> list[str]:
    """The fenced blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```", read(page), re.DOTALL | re.MULTILINE)


def prose(page: Path) -> str:
    """A page without its fenced blocks."""
    return re.sub(r"^```.*?^```", "", read(page), flags=re.DOTALL | re.MULTILINE)


def examples(page: Path) -> list[Example]:
    """The Python files that a page shows: blocks that begin with `# my_file.py: --options`."""
    found = (re.fullmatch(r"# (\w+\.py): (.*?)\n(.*)", block, re.DOTALL) for block in blocks(page, "python"))
    return [Example(page, *match.groups()) for match in found if match]


def anchors(page: Path) -> set[str]:
    """The headings of a page, as GitHub links to them."""
    headings = re.findall(r"^#+ (.*)", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
