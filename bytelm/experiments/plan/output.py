"""The files of a plan: plan.md, plan.html, plan.svg, plan.json and recommended.yaml in the study's folder."""

import json
import os
from pathlib import Path
from typing import Any

from bytelm.config import shipped
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
            (RECOMMENDED, _recommended(result, folder, config, command)),
            (FIGURES, json.dumps(result.figures(), indent=2) + "\n"),
            (PAGE, text),
            (HTML, to_html(text, f"Plan for {result.budget}", folder)),
        ):
            with replacing(folder / name, shared=True) as partial:
                partial.write_text(content, encoding="utf-8")


def _recommended(result: Result, folder: Path, config: str, command: str) -> str:
    """The recommended candidate's config, as its difference from the base."""
    values = dict((*result.best.candidate, (LIMIT, str(result.budget))))
    configs = [config, *([shipped.resolved(values.pop("config"))] if "config" in values else [])]
    bases = [os.path.relpath(each, folder) for each in configs]
    difference: dict[str, Any] = {"base": bases[0] if len(bases) == 1 else bases}
    for key, value in values.items():
        # An option of a class that varies too is a key with dots beside the class.
        owner = min((each for each in values if f"{key}.".startswith(f"{each}.")), key=len)
        inner = difference
        *parents, last = owner.split(".")
        for name in parents:
            inner = inner.setdefault(name, {})
        inner[last + key.removeprefix(owner)] = value_of(value)
    how = "predicted" if result.run is None else f"reached by {result.run}"
    return f"# {command}\n#\n# {result.score.name} {result.best.score:.4f}, {how}\n{dump(difference)}"
