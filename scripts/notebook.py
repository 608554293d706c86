"""Writes docs/tutorial.ipynb, the notebook of docs/tutorial.md: python scripts/notebook.py.

Text becomes Markdown cells, and each fenced block of Python a cell of code. The notebook is in docs/; its first cell
enters the project's folder.
"""

import json
import re
from pathlib import Path
from typing import Any

DOCS = Path(__file__).resolve().parents[1] / "docs"
START = (
    'import os\n\nif os.path.exists("tutorial.md"):\n    os.chdir("..")  # paths are relative to the project\'s folder'
)


def notebook(markdown: str) -> dict[str, Any]:
    """The notebook of a page.

    Args:
        markdown: The page; its blocks of Python are the cells of code.
    """
    cells = [cell("code", START)]
    for number, part in enumerate(re.split(r"^```python\n(.*?)^```\n", markdown, flags=re.DOTALL | re.MULTILINE)):
        if part.strip():
            cells.append(cell("code" if number % 2 else "markdown", part.strip()))
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    cells = [{**each, "id": f"cell-{number}"} for number, each in enumerate(cells)]
    return {"cells": cells, "metadata": {"kernelspec": kernel}, "nbformat": 4, "nbformat_minor": 5}


def cell(kind: str, text: str) -> dict[str, Any]:
    """A cell: `code` or `markdown`."""
    of_code: dict[str, Any] = {"execution_count": None, "outputs": []} if kind == "code" else {}
    return {"cell_type": kind, "metadata": {}, "source": text.splitlines(keepends=True), **of_code}


def written() -> str:
    """The content of tutorial.ipynb."""
    made = notebook((DOCS / "tutorial.md").read_text(encoding="utf-8"))
    return json.dumps(made, indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    (DOCS / "tutorial.ipynb").write_text(written(), encoding="utf-8")
