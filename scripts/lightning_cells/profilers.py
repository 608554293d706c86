"""Profilers of lightning.pytorch.profilers."""

from typing import Any

from lightning_cells.cell import Cell, Check, Run
from lightning_cells.trainer_options import never

GROUP = "Profilers"


def profiler(name: str, value: str, documented: str, check: Check, *more: str, **details: Any) -> Cell:
    """A cell of a profiler."""
    return Cell(GROUP, name, ("--trainer.profiler", value, *more), documented, check, **{"key": "profiler", **details})


def printed(*words: str) -> Check:
    """A report with these words is printed."""

    def check(run: Run) -> tuple[Any, Any]:
        said = run.out + run.err
        return ([word for word in words if word in said], run.seen["steps"]), ([*words], 6)

    return check


def written(word: str) -> Check:
    """A report with this word is written to the file that is named."""
    return lambda run: ((word in run.text("mine/*.txt"), run.seen["steps"]), (True, 6))


FILE = ("--trainer.profiler.dirpath", "mine", "--trainer.profiler.filename", "report")

CELLS = (
    profiler("simple", "simple", "prints the time of each hook", printed("Profiler Report", "run_training_batch"),
             in_ci=True),
    profiler("advanced", "advanced", "prints the functions of each hook", printed("Profiler Report", "cumtime")),
    profiler("pytorch", "pytorch", "prints the time of torch's operators", printed("Profiler Report", "Self CPU")),
    profiler("xla", "xla", "for TPUs", never, needs="torch_xla", everywhere=False),
    profiler("nonsense", "nonsense", "no profiler", never),
    profiler("SimpleProfiler", "SimpleProfiler", "writes the report to a file", written("run_training_batch"), *FILE),
    profiler("AdvancedProfiler", "AdvancedProfiler", "writes the report to a file", written("cumtime"), *FILE),
    profiler("PyTorchProfiler", "PyTorchProfiler", "writes the report to a file", written("Self CPU"), *FILE),
    profiler("PassThroughProfiler", "PassThroughProfiler", "profiles nothing", lambda run: (
        (run.seen["steps"], "Report" in run.out + run.err), (6, False))),
    profiler("XLAProfiler", "XLAProfiler", "for TPUs", never, needs="torch_xla", everywhere=False, key="XLAProfiler"),
    profiler("Profiler", "lightning_cells.yours.OwnProfiler", "a profiler of your own", printed("profiled True")),
)  # fmt: skip
