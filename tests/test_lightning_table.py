"""docs/lightning.md has a row for each feature of Lightning; the cheap cells behave as their rows state."""

import inspect
import sys
from pathlib import Path
from typing import get_args

import pytest
from lightning.fabric.plugins.precision.precision import _PRECISION_INPUT
from lightning.pytorch import Trainer, callbacks, loggers, plugins, profilers, strategies
from lightning.pytorch.accelerators import AcceleratorRegistry
from lightning.pytorch.plugins import environments
from thinned import thinned

PROJECT = Path(__file__).resolve().parents[1]
sys.path.append(str(PROJECT / "scripts"))

from lightning_cells import document  # noqa: E402
from lightning_cells.cell import Cell, Check, Run  # noqa: E402
from lightning_cells.running import Bench, Result  # noqa: E402
from lightning_cells.table import CELLS, MODULES  # noqa: E402

PAGE = PROJECT / "docs" / "lightning.md"
IN_CI = [pytest.param(cell, id=cell.written) for cell in CELLS if cell.in_ci]
OWN_GROUPS = {"callbacks", "logger", "profiler", "strategy", "plugins", "precision"}  # options with tables of their own


def names(module) -> set[str]:
    """The subjects of the cells of a module."""
    return {cell.name for cell in module.CELLS}


def classes(package) -> set[str]:
    """The names that a package exports."""
    exported = getattr(package, "__all__", [name for name in dir(package) if not name.startswith("_")])
    return {name for name in exported if inspect.isclass(getattr(package, name))}


def modules() -> dict:
    return {module.__name__.rpartition(".")[2]: module for module in MODULES}


def test_all_options_of_the_trainer_have_cells():
    options = set(inspect.signature(Trainer.__init__).parameters) - {"self"} - OWN_GROUPS
    assert options - names(modules()["trainer_options"]) == set()


@pytest.mark.parametrize(
    ("cells", "package"),
    [
        ("callbacks", callbacks),
        ("loggers", loggers),
        ("profilers", profilers),
        ("strategies", strategies),
        ("plugins", plugins),
        ("plugins", environments),
    ],
    ids=lambda value: value if isinstance(value, str) else value.__name__,
)
def test_all_classes_have_cells(cells, package):
    assert len(classes(package)) > 4
    assert classes(package) - names(modules()[cells]) == set()


def test_all_registered_names_have_cells():
    assert set(strategies.StrategyRegistry.available_strategies()) - names(modules()["strategies"]) == set()
    given = {cell.options[1] for cell in CELLS if cell.name == "accelerator"}
    assert set(AcceleratorRegistry.available_accelerators()) - given == set()


def test_all_precisions_have_cells():
    values = {str(value) for literal in get_args(_PRECISION_INPUT) for value in get_args(literal)}
    assert len(values) > 9
    assert values - names(modules()["precisions"]) == set()


def test_all_cells_have_rows():
    lines = [line for line in document.table_of(PAGE).splitlines() if line.startswith("| `")]
    assert [line.partition(" | **")[0] for line in lines] == [
        document.row(cell, Result("works")).partition(" | **")[0] for cell in CELLS
    ]
    outcomes = {line.rpartition(" | **")[2].partition("**")[0].partition(" ")[0] for line in lines}
    assert outcomes == {"works", "rejected", "needs"}


def test_rows_are_unique():
    rows = [(cell.written, cell.documented) for cell in CELLS]
    assert len(set(rows)) == len(rows)


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    return Bench(tmp_path_factory.mktemp("cells"))


@pytest.mark.parametrize("cell", thinned(IN_CI, 8))
def test_a_cell_behaves_as_its_row_states(bench, cell):
    result = bench.run(cell)
    assert document.row(cell, result) in document.table_of(PAGE).splitlines(), result


def judged(folder, look=lambda run: (1, 1), status=0, err="", **details) -> Result:
    """The result of a run that ended so."""
    cell = Cell("", "", ("--trainer.devices", "0"), "", Check("", look), **details)
    return Bench(folder).judge(cell, Run(folder, status, "", err, None, None))


def test_an_option_without_its_effect_is_ignored(folder):
    assert judged(folder, lambda run: (6, 7)) == Result("ignored", "observed 6, expected 7")
    assert judged(folder, lambda run: (run.seen["steps"], 7)) == Result("ignored", "KeyError: 'steps'")
    assert judged(folder) == Result("works")


def test_a_rejection_is_one_line_that_names_the_option(folder):
    line = "bytelm: error: trainer.devices: 0 cannot be used"
    assert judged(folder, status=2, err=line) == Result("rejected", "trainer.devices: 0 cannot be used")
    assert judged(folder, status=2, err=f"bytelm: note: an option\n{line}").outcome == "rejected"
    assert judged(folder, status=2, err=line, key="num_nodes").outcome == "fails"
    assert judged(folder, status=2, err=f"a warning\n{line}").outcome == "fails"
    (folder / "runs").mkdir()
    assert judged(folder, status=2, err=line).outcome == "fails"


def test_tracebacks_other_statuses_and_runs_that_continue_are_faults(folder):
    assert judged(folder, status=1, err="Traceback (most recent call last):\nKeyError: 'RANK'").outcome == "traceback"
    assert judged(folder, status=3, err="bytelm: error: something").outcome == "fails"
    assert judged(folder, status=None).outcome == "hangs"
    assert all(Result(outcome).is_fault for outcome in ("ignored", "traceback", "fails", "hangs"))


def test_a_row_is_kept_only_where_the_machine_explains_the_other_outcome():
    here = Cell("Group", "", ("--a", "1"), "does", Check("seen", lambda run: (0, 0)))
    needing = Cell("Group", "", ("--b", "1"), "does", Check("seen", lambda run: (0, 0)), needs="wandb")
    rejected = [(cell, Result("rejected", "a line")) for cell in (here, needing)]
    there = document.rendered(rejected, "")
    works = [(cell, Result("works")) for cell in (here, needing)]
    diff = "\n".join(document.difference(there, document.rendered(works, there)))
    assert "-| `--a 1` | does | **rejected**: `a line` |\n+| `--a 1` | does | **works**: seen |" in diff
    assert "--b" not in diff
    other_line = [(cell, Result("rejected", "another line")) for cell in (here, needing)]
    diff = "\n".join(document.difference(there, document.rendered(other_line, there)))
    assert "+| `--a 1` | does | **rejected**: `another line` |" in diff
    assert "+| `--b 1` | does | **rejected**: `another line` |" in diff
