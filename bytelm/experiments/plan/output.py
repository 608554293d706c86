"""The files of a plan: plan.md, plan.html, plan.svg, plan.json and recommended.yaml in the study's folder."""

import json
import os
from pathlib import Path
from typing import Any

from bytelm.config.text import dump
from bytelm.errors import as_storage_error
from bytelm.experiments.plan import picture
from bytelm.experiments.plan.candidates import value_of
from bytelm.experiments.plan.page import page
from bytelm.experiments.plan.result import Result
from bytelm.experiments.plan.runs import LIMIT
from bytelm.experiments.report.html import to_html
from bytelm.experiments.report.plots import save
from bytelm.system.files import replacing

PAGE, HTML, PICTURE, FIGURES = "plan.md", "plan.html", "plan.svg", "plan.json"
RECOMMENDED = "recommended.yaml"


def write(result: Result, folder: Path, config: str, command: str) -> None:
    """Writes the files.

    Args:
        result: The result.
        folder: The study's folder.
        config: Config file that the candidates differ from.
        command: Command that trains the recommended candidate.

    Raises:
        StorageError: A file cannot be written.
    """
    text = page(result, command, PICTURE)
    with as_storage_error(f"{folder}: the plan cannot be written"):
        save(picture.draw(result), folder / PICTURE)
        for name, content in (
            (RECOMMENDED, _recommended(result, os.path.relpath(config, folder), command)),
            (FIGURES, json.dumps(result.figures(), indent=2) + "\n"),
            (PAGE, text),
            (HTML, to_html(text, f"Plan for {result.budget}", folder)),
        ):
            with replacing(folder / name, shared=True) as partial:
                partial.write_text(content, encoding="utf-8")


def _recommended(result: Result, base: str, command: str) -> str:
    """The recommended candidate's config, as its difference from the base."""
    config: dict[str, Any] = {"base": base}
    for key, value in (*result.best.candidate, (LIMIT, str(result.budget))):
        inner = config
        *parents, last = key.split(".")
        for name in parents:
            inner = inner.setdefault(name, {})
        inner[last] = value_of(value)
    how = "predicted" if result.run is None else f"reached by {result.run}"
    return f"# {command}\n#\n# {result.score.name} {result.best.score:.4f}, {how}\n{dump(config)}"
