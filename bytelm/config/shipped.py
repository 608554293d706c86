"""The shipped configs: those of the folder configs/, which an installed bytelm has too.

`--config quickstart` and `--config configs/quickstart.yaml` mean a shipped config in any working folder, unless a file
of that path exists. `python -m bytelm configs` lists them.
"""

import os
import re
from pathlib import Path

from bytelm.config.suggestions import closest, did_you_mean
from bytelm.system.invocation import typed_name

FOLDER = Path(__file__).resolve().parents[1] / "configs"
NAME = re.compile(r"\w[\w.-]*(/\w[\w.-]*)*", re.ASCII)


def find(name: str) -> Path | None:
    """Returns the shipped config of a name; None if there is none.

    Args:
        name: Its path in configs/, such as `schedules/cosine`; also with `configs/` before it and `.yaml` after it.
    """
    name = name.removeprefix("configs/").removesuffix(".yaml")
    path = FOLDER / f"{name}.yaml"
    return path if NAME.fullmatch(name) and os.path.isfile(path) else None  # false for a name that no file can have


def resolved(path: str) -> str:
    """Returns the path of a config: the given one if such a file exists, otherwise that of a shipped config.

    Args:
        path: A path, or a name as for `find`. It is returned unchanged if it is neither.
    """
    return path if os.path.exists(path) else str(find(path) or path)


def missing(name: str) -> str:
    """Returns the reason why a name is not that of a shipped config, for messages: with the name that it may mean.

    Args:
        name: As for `find`.
    """
    known = names()
    given = name.removeprefix("configs/").removesuffix(".yaml")
    meant = closest(given, known) or [each for each in known if each.endswith(f"/{given}")][:1]
    return f"no shipped config of this name ({did_you_mean(meant)}`{typed_name()} configs` lists them)"


def names() -> list[str]:
    """Returns the names of all shipped configs; those in the folder itself come first."""
    found = [path.relative_to(FOLDER).with_suffix("").as_posix() for path in FOLDER.rglob("*.yaml")]
    return sorted(found, key=lambda name: ("/" in name, name))


def summary(name: str) -> str:
    """Returns the first sentence of a shipped config's comment, without the command in its first line.

    Args:
        name: One of `names`.
    """
    lines = (FOLDER / f"{name}.yaml").read_text(encoding="utf-8").splitlines()
    comment = []
    for line in lines:
        if not line.startswith("#"):
            break
        comment.append(line.removeprefix("#").strip())
    if "" in comment:  # between the command and the text
        comment = comment[comment.index("") + 1 :]
    text = " ".join(comment).strip("() ")
    return text.split(". ")[0].rstrip(".")
