"""The core uses contracts: it names particular parts, optimizers and schedules only in the defaults of signatures."""

import ast
import re
from pathlib import Path

import pytest

import bytelm.cli  # noqa: F401 (loads all parts)
from bytelm import optim
from bytelm.callbacks import LRSchedule
from bytelm.parts.contract import KINDS

PACKAGE = Path(__file__).resolve().parents[1] / "bytelm"
CORE = [
    PACKAGE / "gpt.py",
    PACKAGE / "language_model.py",
    PACKAGE / "cli.py",
    PACKAGE / "runs" / "checkpoints.py",
    PACKAGE / "runs" / "checkpoint_checks.py",
    *sorted((PACKAGE / "data").glob("*.py")),
]


def below(cls):
    for subclass in cls.__subclasses__():
        if subclass.__module__.startswith("bytelm."):
            yield subclass.__name__
            yield from below(subclass)


NAMES = {name for kind in (*KINDS, LRSchedule) for name in below(kind)} | {
    name for name in optim.__all__ if isinstance(getattr(optim, name), type) and name[0].isupper()
} - {"Optimizer", "ParamGroup", "ParamGroups"}


def without_imports_and_defaults(source):
    """The text of a module, less its imports and the defaults of its signatures."""
    lines = source.splitlines(keepends=True)
    starts = [0]
    for line in lines:
        starts.append(starts[-1] + len(line.encode()))
    left_out = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            left_out.append(node)
        elif isinstance(node, ast.FunctionDef):
            left_out += [default for default in (*node.args.defaults, *node.args.kw_defaults) if default is not None]
    text = bytearray(source.encode())
    for node in left_out:
        begin, end = starts[node.lineno - 1] + node.col_offset, starts[node.end_lineno - 1] + node.end_col_offset
        text[begin:end] = b" " * (end - begin)
    return text.decode()


def test_the_names_are_those_of_the_parts():
    assert {"SDPA", "NGramMemory", "HashedNGrams", "CrossEntropy", "MuonAdamW", "Cosine", "RMSNorm"} <= NAMES


@pytest.mark.parametrize("path", CORE, ids=[str(path.relative_to(PACKAGE)) for path in CORE])
def test_the_core_names_no_particular_part(path):
    found = []
    for number, line in enumerate(without_imports_and_defaults(path.read_text()).splitlines(), start=1):
        found += [f"{number}: {line.strip()}" for name in NAMES if re.search(rf"(?<!nn\.)\b{name}\b", line)]
    assert found == []
