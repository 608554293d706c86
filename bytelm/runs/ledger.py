"""The ledger: every run below a folder, one row each, as ledger.csv for people and programs.

The runs' folders are the truth: the ledger is read from their record.json and config.yaml, and `python -m bytelm
ledger` makes it anew. Runs of the same study (the folder that holds their experiments) with the same corpus and budget
compete: one that was the best when it ended, by the score that score.py tells, is marked `keep`, all others `discard`.
"""

import csv
import math
import os
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from bytelm.config.command import CommandParser
from bytelm.errors import StorageError
from bytelm.runs import record as records
from bytelm.runs.folder import RUNS, is_running, lock
from bytelm.runs.score import RANKED, VAL_BPB, VAL_LOSS, Score, score_of
from bytelm.system.files import replacing
from bytelm.system.process import utc

LEDGER = "ledger.csv"
FIGURES = (
    "val_bpb",
    "train_loss",
    "total_steps",
    "training_time_secs",
    "total_time_secs",
    "num_params_M",
    "tokens_per_sec",
    "peak_memory_mb",
    "seed",
    "started_at",
    "ended_at",
)
COLUMNS = ("run", "study", "experiment", "status", "decision", *FIGURES, "budget", "corpus", "reason")


@dataclass
class Run:
    """A run, as its folder tells.

    Attributes:
        folder: runs/<study>/<experiment>/version_N.
        config: Its resolved config.
        record: What record.json says; of a run that has left none, what is known all the same.
        decision: `keep` or `discard`; None for one that is still running.
        ranked_by: The score of the runs that it competes with.
    """

    folder: Path
    config: dict[str, Any]
    record: Mapping[str, Any]
    decision: str | None = None
    ranked_by: Score = VAL_BPB

    @property
    def experiment(self) -> str:
        return self.folder.parent.name

    @property
    def study(self) -> str:
        return self.folder.parent.parent.name

    @property
    def status(self) -> str:
        """completed, error, timeout, diverged, interrupted or running."""
        return self.record["status"]

    @property
    def score(self) -> float | None:
        """What it is ranked by; None where it has no rank."""
        return self.ranked_by.of(self.record)

    @property
    def has_loss_alone(self) -> bool:
        """Whether it was completed without a val_bpb."""
        return VAL_BPB.of(self.record) is None and VAL_LOSS.of(self.record) is not None

    @property
    def budget(self) -> str | None:
        """The limits, as in the config."""
        limit = (self.config.get("time_budget") or {}).get("limit")
        return ", ".join(map(str, limit)) if isinstance(limit, list) else limit

    @property
    def competes_with(self) -> tuple[Any, ...]:
        """What is the same for all runs that can be compared with this one."""
        return self.folder.parent.parent, self.budget, (self.record.get("corpus") or {}).get("sha256")

    def row(self) -> dict[str, Any]:
        """The values of all columns that a ledger may have."""
        return {
            "run": str(self.folder),
            "study": self.study,
            "experiment": self.experiment,
            "status": self.status,
            "decision": self.decision,
            **{key: self.record.get(key) for key in (*FIGURES, VAL_LOSS.name)},
            "budget": self.budget,
            "corpus": (self.record.get("corpus") or {}).get("name"),
            "reason": self.record.get("reason"),
        }


def read_runs(root: Path) -> list[Run]:
    """All runs below a folder, in the order in which they ended.

    Args:
        root: `runs`, the folder of a study or of an experiment, or that of a run.
    """
    found = []
    for folder, inner, files in os.walk(root):  # which does not mind folders that vanish meanwhile
        if Path(folder).name.startswith("version_") and {"config.yaml", "record.json"} & set(files):
            inner.clear()
            found.append(Path(folder))
    runs = sorted((_read(folder) for folder in found), key=lambda run: (run.record["ended_at"] or "~", run.folder))
    decide(runs, lambda run: run.competes_with)
    return runs


def decide(runs: Iterable[Run], contest: Callable[[Run], Any]) -> None:
    """Marks what runs are ranked by, what to keep and what to discard.

    Args:
        runs: In the order in which they ended.
        contest: Tells what a run competes in.
    """
    contests: dict[Any, list[Run]] = {}
    for run in runs:
        contests.setdefault(contest(run), []).append(run)
    for rivals in contests.values():
        ranked_by, best = score_of(run.record for run in rivals), math.inf
        for run in rivals:
            run.ranked_by = ranked_by
            if run.status != "running":
                score = math.inf if run.score is None else run.score
                run.decision = "keep" if score < best else "discard"
                best = min(best, score)


def best_of(runs: Iterable[Run]) -> Run | None:
    """The run with the lowest score; None if none has one."""
    some = list(runs)
    score = score_of(run.record for run in some)  # those of a study may compete in several contests
    ranked = [run for run in some if run.ranked_by == score and run.score is not None]
    return min(ranked, key=lambda run: run.score or 0.0, default=None)


def write_ledger(root: Path) -> list[Run]:
    """Makes `root`/ledger.csv anew; returns the runs that it lists."""
    with open(root / f".{LEDGER}.lock", "ab") as turn:  # workers may come at the same moment
        while not lock(turn.fileno()):
            time.sleep(0.01)
        runs = read_runs(root)
        with replacing(root / LEDGER) as partial, open(partial, "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, columns_of(runs), extrasaction="ignore")
            writer.writeheader()
            writer.writerows(run.row() for run in runs)
    return runs


def columns_of(runs: Iterable[Run]) -> list[str]:
    """The columns of a ledger: val_loss is one where some run has no val_bpb; elsewhere it would say the same twice."""
    columns = list(COLUMNS)
    if any(run.has_loss_alone for run in runs):
        columns.insert(columns.index(VAL_BPB.name) + 1, VAL_LOSS.name)
    return columns


def _read(folder: Path) -> Run:
    config_file, record_file = folder / "config.yaml", folder / records.FILE
    config = {}
    if config_file.exists():
        config = yaml.load(
            config_file.read_text(encoding="utf-8"), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)
        )
    record = records.read(folder) if record_file.exists() else None
    if is_running(folder):
        record = records.of_running(record, config_file.stat().st_mtime if config else None)
    elif record is None:
        record = records.of_lost_run(folder, config)
    elif record.get("ended_at") is None:
        record["ended_at"] = utc(record_file.stat().st_mtime)
    return Run(folder, config, record)


def main(args: list[str]) -> None:
    """Runs the command.

    Args:
        args: What follows `python -m bytelm ledger`.
    """
    parser = CommandParser("ledger", description=f"Makes the ledger of all runs anew, from their folders. {RANKED}")
    parser.add_argument("runs", nargs="?", default=RUNS, help="Folder with runs; the ledger is written there.")
    root = Path(parser.parse_args(args).runs)
    if not root.is_dir():
        raise StorageError(f"{root}: there is no such folder; accepted: {RUNS}, or a folder in it")
    runs = write_ledger(root)
    counts = Counter(run.status for run in runs)
    print(f"runs: {len(runs)} ({', '.join(f'{n} {status}' for status, n in counts.items())})")
    print(f"ledger: {root / LEDGER}")
