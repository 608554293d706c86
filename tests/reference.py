"""Reference material that tests compare with: the challenge's protocol, its winning script and its corpus."""

import importlib.util
import os
import sys
from pathlib import Path

import pytest

REFERENCE = Path(os.environ.get("BYTELM_REFERENCE", Path(__file__).resolve().parents[1].parent / "shared"))
CORPUS = REFERENCE / "data" / "shakespeare.txt"

needs_reference = pytest.mark.skipif(
    not (REFERENCE / "harness").is_dir(), reason=f"no reference material in {REFERENCE} (see BYTELM_REFERENCE)"
)


def harness_module(name):
    """A module of the reference protocol, imported from its file."""
    spec = importlib.util.spec_from_file_location(name, REFERENCE / "harness" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def winning_script():
    """The names that the challenge's winning script defines; its training is not started."""
    source = harness_module("run_challenge_script").challenge_script()
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "prepare", harness_module("prepare"))
        patch.setenv("HARNESS_CORPUS", str(CORPUS))
        names = {"__name__": "winning_script"}
        exec(compile(source, "winning_script.py", "exec"), names)
    return names
