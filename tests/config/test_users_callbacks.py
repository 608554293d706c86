"""The import name `callbacks` is the user's: a file or folder of that name works beside bytelm.callbacks.

The checkout's own folder callbacks/ is imported as bytelm.callbacks: from a checkout on the import path, from an
editable install, and from a wheel.
"""

import json
import os
import shutil
import subprocess
import sys
import textwrap
import zipfile
from importlib.metadata import version
from pathlib import Path

import programs
import pytest

PROJECT = Path(__file__).resolve().parents[2]
MINE = """
from lightning.pytorch import Callback

from bytelm.callbacks import TimeBudget


class Mine(Callback):
    def on_train_end(self, trainer, pl_module):
        budget = TimeBudget.of(trainer)
        print(f"mine: {__name__}, {type(budget).__module__}")
"""
PLACES = {  # of the class, and its import path
    "a file": ("callbacks.py", "callbacks.Mine"),
    "a folder": ("callbacks/time_budget.py", "callbacks.time_budget.Mine"),  # also the name of a module of bytelm's
}


def python(*command, path=None):
    """Runs Python in the working folder; returns its output."""
    env = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    if path is not None:
        env["PYTHONPATH"] = str(path)
    if path == PROJECT:  # bytelm's location for programs.run
        result = programs.run([sys.executable, *command], env=env)
    else:
        result = subprocess.run([sys.executable, *command], env=env, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def checkout(to):
    """Copies what an installation takes from the checkout; skips the test if it cannot be installed here."""
    if int(version("setuptools").partition(".")[0]) < 77:
        pytest.skip("needs setuptools 77")
    to.mkdir()
    for name in ("bytelm", "callbacks"):
        shutil.copytree(PROJECT / name, to / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md"):
        shutil.copy(PROJECT / name, to)
    return to


def train(place, path=None):
    """Trains with the user's callback; returns the name of its module and of the module of bytelm's time budget."""
    file, name = PLACES[place]
    Path(file).parent.mkdir(exist_ok=True)
    Path(file).write_text(MINE)
    output = python("-m", "bytelm", "fit", "--config", "tiny.yaml", f"--trainer.callbacks+={name}", path=path)
    (line,) = [line for line in output.splitlines() if line.startswith("mine: ")]
    assert json.loads(Path("runs/tiny/version_0/record.json").read_text())["status"] == "completed"
    return line


@pytest.mark.parametrize("place", PLACES)
def test_a_checkout_on_the_import_path_leaves_the_name_to_the_user(folder, place):
    module = PLACES[place][1].rpartition(".")[0]
    assert train(place, PROJECT) == f"mine: {module}, bytelm.callbacks.time_budget"


@pytest.mark.slow
def test_an_editable_install_leaves_the_name_to_the_user(folder):
    if Path(python("-c", "import bytelm; print(bytelm.__file__)").strip()).parents[1] != PROJECT:
        pytest.skip("this checkout is not what is installed")
    assert train("a file") == "mine: callbacks, bytelm.callbacks.time_budget"


def test_nothing_of_bytelm_is_found_under_the_name(folder):
    code = "import callbacks; print(callbacks.__path__, hasattr(callbacks, 'Constant'))"
    assert python("-c", code, path=PROJECT).strip() == "[] False"


def test_an_editable_install_is_found_from_the_folder_above_the_checkout(folder, monkeypatch):
    source = checkout(folder / "bytelm")  # a folder without __init__.py, of the package's name
    monkeypatch.chdir(source)
    python("-W", "ignore", "-c", "from setuptools.build_meta import build_editable; build_editable('..')")
    monkeypatch.chdir(folder)
    (wheel,) = Path().glob("*.whl")
    zipfile.ZipFile(wheel).extractall("installed")
    script = """
        import site, sys
        from pathlib import Path
        # Nothing of the project that the tests run from.
        sys.path[:] = [entry for entry in sys.path if not Path(entry, "bytelm/__init__.py").is_file()]
        site.addsitedir("installed")
        import importlib.util
        import bytelm.errors
        print(bytelm.__file__, importlib.util.find_spec("bytelm.callbacks").origin, sep="\\n")
    """
    Path("script.py").write_text(textwrap.dedent(script))
    found = [Path(line) for line in python("script.py").splitlines()]
    assert found == [source / "bytelm/__init__.py", source / "bytelm/callbacks/__init__.py"]


@pytest.mark.slow
def test_a_wheel_has_the_callbacks_once_and_leaves_the_name_to_the_user(folder):
    source = checkout(folder / "source")
    pip = ["-m", "pip", "--disable-pip-version-check", "--quiet"]
    python(*pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", "wheels", str(source))
    (wheel,) = Path("wheels").iterdir()
    names = zipfile.ZipFile(wheel).namelist()
    assert [name for name in names if name.endswith("time_budget.py")] == ["bytelm/callbacks/time_budget.py"]
    assert {name.partition("/")[0].partition("-")[0] for name in names} == {"bytelm"}
    modules = {str(path.relative_to(PROJECT)) for path in (PROJECT / "bytelm").rglob("*.py")}
    modules |= {f"bytelm/{path.relative_to(PROJECT)}" for path in (PROJECT / "callbacks").glob("*.py")}
    assert {name for name in names if name.endswith(".py")} == modules

    python(*pip, "install", "--no-deps", "--target", "installed", str(wheel))
    shutil.rmtree(source)
    assert train("a file", folder / "installed") == "mine: callbacks, bytelm.callbacks.time_budget"
