"""Cell: one use of a feature of Lightning, and a check that it behaves as Lightning documents."""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

NOTE = "bytelm: note: "  # begins a line on standard error


@dataclass(frozen=True)
class Check:
    """A check that a run behaved as Lightning documents.

    Attributes:
        text: The observed effect, in a few words, for the table.
        look: Returns the observed and the expected values of a run.
    """

    text: str
    look: Callable[["Run"], tuple[Any, Any]]


@dataclass(frozen=True)
class Cell:
    """One use of a feature of Lightning.

    Attributes:
        group: Heading of its table.
        name: Its subject: an option of the Trainer, a class or a registered name; a test checks that all have a cell.
        options: The options that it tests, on the command line.
        more: Further options, which the run for comparison has too.
        documented: The documented behaviour, in a few words.
        check: The check of its effect; `never`, if it is to be rejected.
        command: Subcommand; others than fit run on a trained model.
        status: Exit status of a run that works.
        needs: A package without which it cannot work.
        key: The name that a rejection has to contain; default: the end of the first option's name.
        in_ci: Whether the tests run it.
        everywhere: Whether it has the same result on every machine; the others need a device or a package.
        observed: Whether the run has the Observer among its callbacks.
    """

    group: str
    name: str
    options: tuple[str, ...]
    documented: str
    check: Check
    more: tuple[str, ...] = ()
    command: str = "fit"
    status: int = 0
    needs: str | None = None
    key: str | None = None
    in_ci: bool = False
    everywhere: bool = True
    observed: bool = True

    @property
    def written(self) -> str:
        """The options as a user writes them, without the time budget, which every run has."""
        given = [*self.options, *self.more]
        while "--time_budget.limit" in given:
            del given[(i := given.index("--time_budget.limit")) : i + 2]
        options = " ".join(f"'{word}'" if {" ", "{", "["} & set(word) else word for word in given)
        return options if self.command == "fit" else f"{self.command} {options}"

    @property
    def named(self) -> str:
        """The name that a rejection has to contain."""
        return self.key or self.options[0].partition("=")[0].rstrip("+").rpartition(".")[2].lstrip("-")


def flags(prefix: str, options: dict[str, str]) -> list[str]:
    """Returns the options of a class as words of a command line.

    Args:
        prefix: Flag of the class, such as `--trainer.plugins`.
        options: Values by name.
    """
    return [word for name, value in options.items() for word in (f"{prefix}.{name}", value)]


@dataclass
class Run:
    """A run that has ended.

    Attributes:
        folder: Its working directory.
        status: Exit status; None where it was still running after the time limit.
        out: Its standard output.
        err: Its standard error.
        plain: The same run without the options that the cell tests.
        again: Runs another command in the same folder: `again("validate", "--ckpt_path", "last")`.
    """

    folder: Path
    status: int | None
    out: str
    err: str
    plain: Callable[[], "Run"]
    again: Callable[..., "Run"]

    @cached_property
    def ranks(self) -> list[dict[str, Any]]:
        """The records of the Observer, by rank."""
        return [json.loads(file.read_text()) for file in sorted(self.folder.glob("seen-*.json"))]

    @property
    def seen(self) -> dict[str, Any]:
        """The record of the Observer of rank 0."""
        return self.ranks[0] if self.ranks else {}

    @property
    def version(self) -> Path:
        """The run's folder."""
        return self.folder / "runs" / "tiny" / "version_0"

    @property
    def record(self) -> dict[str, Any]:
        """record.json."""
        record: dict[str, Any] = json.loads((self.version / "record.json").read_text())
        return record

    @property
    def score(self) -> str | None:
        """The val_bpb that was printed."""
        return next((line.split()[1] for line in self.out.splitlines() if line.startswith("val_bpb:")), None)

    @cached_property
    def steps(self) -> list[int]:
        """The batches of each step of validation: at which steps of training they began."""
        return [step for step, _ in self.seen["validations"]]

    @property
    def validated(self) -> list[int]:
        """Batches of each validation."""
        return [batches for _, batches in self.seen["validations"]]

    def files(self, pattern: str) -> list[str]:
        """Names of the files below the working directory that match a pattern."""
        return sorted(str(path.relative_to(self.folder)) for path in self.folder.glob(pattern) if path.is_file())

    def text(self, pattern: str) -> str:
        """Contents of the files that match a pattern."""
        return "\n".join((self.folder / file).read_text(errors="replace") for file in self.files(pattern))

    def summary(self, module: str) -> bool:
        """Whether Lightning's table of modules was printed, with the parameters of one."""
        return re.search(rf"[|│] {module} +[|│] \w+ +[|│] +[\d.]+ K? +[|│]", self.out + self.err) is not None

    def tags(self) -> dict[str, list[tuple[int, float]]]:
        """Scalars in TensorBoard's log: of each tag, the steps and values."""
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        log = EventAccumulator(str(self.version), size_guidance={"scalars": 0})
        log.Reload()
        return {tag: [(e.step, e.value) for e in log.Scalars(tag)] for tag in log.Tags()["scalars"]}
