"""The user's own code: files in the working directory whose classes a config names, and the files that these import.

A config names a class by its import path; the class itself is not in the config. Two runs of one config can therefore
differ, and the hashes of these files show it. No file is imported or run here.
"""

import ast
import hashlib
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from bytelm.config.flat import values_of

NAME = re.compile(r"(?<![\w./-])[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)+")  # in a value, such as my_parts.LeakyReLU


def own_code(value: Any) -> dict[str, str]:
    """The files of the user's own code that a config uses.

    Args:
        value: The config, or a value in it; texts such as `{class_path: my_parts.LeakyReLU}` are read too.

    Returns:
        For each file, relative to the working directory, the first 12 hexadecimal digits of its SHA-256.
    """
    found: dict[str, str] = {}
    names = [name for _, text in values_of(value) if isinstance(text, str) for name in NAME.findall(text)]
    while names:
        for file in _files(names.pop()):
            if str(file) not in found:
                content = file.read_bytes()
                found[str(file)] = _digest(content)
                names += _imports(file, content)
    return dict(sorted(found.items()))


def changed(code: Mapping[str, str]) -> list[str]:
    """The files of a run's own code that are different now, or missing.

    Args:
        code: As `own_code` returned it.
    """
    return [
        file for file, digest in code.items() if not Path(file).is_file() or _digest(Path(file).read_bytes()) != digest
    ]


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:12]


def _files(name: str) -> Iterator[Path]:
    """The files that the import of a module, or of a class in it, runs."""
    folder = Path()
    for part in name.split("."):
        module, folder = folder / f"{part}.py", folder / part
        if folder == Path("bytelm"):  # a run's record has its version
            return
        if (package := folder / "__init__.py").is_file():
            yield package
        elif module.is_file():
            yield module
            return
        elif not folder.is_dir():
            return


def _imports(file: Path, content: bytes) -> Iterator[str]:
    """Names that a file imports; none of a file that is not Python, which the import of its class rejects."""
    try:
        tree = ast.parse(content)
    except (SyntaxError, ValueError, RecursionError):
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = file.parts[: len(file.parts) - node.level] if node.level else ()
            for alias in node.names:
                yield ".".join([*above, *filter(None, [node.module]), alias.name])
