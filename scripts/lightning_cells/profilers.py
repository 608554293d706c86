"""Profilers of lightning.pytorch.profilers."""

from typing import Any

from lightning_cells.cell import Cell, Check
from lightning_cells.checks import never, says, trained

GROUP = "Profilers"
FILE = ("--trainer.profiler.dirpath", "mine", "--trainer.profiler.filename", "report")


def profiler(name: str, value: str, documented: str, check: Check, *options: str, **details: Any) -> Cell:
    """A cell of a profiler, with its options."""
    return Cell(GROUP, name, ("--trainer.profiler", value, *options), documented, check, **details)


def written(word: str) -> Check:
    """A report with this word is written to the file that is named."""
    return Check(f"`{word}` in mine/*.txt", lambda run: (
        (word in run.text("mine/*.txt"), run.seen["steps"]), (True, 6)))  # fmt: skip


CELLS = (
    profiler("simple", "simple", "prints the time of each hook", says("Profiler Report", "run_training_batch"),
             in_ci=True),
    profiler("advanced", "advanced", "prints the functions of each hook", says("Profiler Report", "cumtime")),
    profiler("pytorch", "pytorch", "prints the time of torch's operators", says("Profiler Report", "Self CPU")),
    profiler("xla", "xla", "for TPUs", never),
    profiler("nonsense", "nonsense", "no profiler", never),
    profiler("SimpleProfiler", "SimpleProfiler", "writes the report to a file", written("run_training_batch"), *FILE),
    profiler("AdvancedProfiler", "AdvancedProfiler", "writes the report to a file", written("cumtime"), *FILE),
    profiler("PyTorchProfiler", "PyTorchProfiler", "writes the report to a file", written("Self CPU"), *FILE),
    profiler("PassThroughProfiler", "PassThroughProfiler", "profiles nothing", trained(6)),
    profiler("XLAProfiler", "XLAProfiler", "for TPUs", never),
    profiler("Profiler", "lightning_cells.yours.OwnProfiler", "a profiler of your own", says("profiled True")),
)  # fmt: skip
