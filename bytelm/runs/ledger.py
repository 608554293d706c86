"""The ledger: ledger.csv, with a row for every run below a folder.

The ledger is read from the runs' folders, and `python -m bytelm ledger` writes it again at any time. Runs of the same
study (the folder that holds their experiments) with the same corpus and budget compete: a run that was the best when it
ended, by the score of score.py, is marked `keep`, all others `discard`.
"""

import csv
import math
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from bytelm.config.command import CommandParser
from bytelm.config.messages import note
from bytelm.errors import StorageError, as_storage_error
from bytelm.runs.folder import RUNS
from bytelm.runs.read import Run, find_runs
from bytelm.runs.record import wall_time
from bytelm.runs.score import RANKED, VAL_BPB, VAL_LOSS, score_of
from bytelm.system.files import replacing
from bytelm.system.locks import wait_for_lock

LEDGER = "ledger.csv"
FIGURES = (
    "val_bpb",
    "train_loss",
    "total_steps",
    "training_time_secs",
    "total_time_secs",
    "wall_time_secs",
    "num_params_M",
    "tokens_per_sec",
    "peak_memory_mb",
    "seed",
    "started_at",
    "ended_at",
)
COLUMNS = ("run", "study", "experiment", "status", "decision", *FIGURES, "budget", "corpus", "reason")


def read_runs(root: Path, tell: Callable[[str], None] = note) -> list[Run]:
    """All runs below a folder, in the order in which they ended, with their decisions.

    Args:
        root: `runs`, or the folder of a study, an experiment, or a run.
        tell: Is called with a line for each run that is left out because one of its files is damaged.
    """
    runs = find_runs(root, tell)
    decide(runs, lambda run: run.competes_with)
    return runs


def decide(runs: Iterable[Run], contest: Callable[[Run], Any]) -> None:
    """Sets the score that runs are ranked by, and their decisions.

    Args:
        runs: In the order in which they ended.
        contest: Returns the contest of a run; runs with equal values compete.
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
    """The run with the lowest score; None if no run has one."""
    some = list(runs)
    score = score_of(run.record for run in some)  # runs of a study can compete in several contests
    ranked = [run for run in some if run.ranked_by == score and run.score is not None]
    return min(ranked, key=lambda run: run.score or 0.0, default=None)


def write_ledger(root: Path, tell: Callable[[str], None] = note) -> list[Run]:
    """Writes `root`/ledger.csv, and returns the runs in it.

    Args:
        root: As for `read_runs`.
        tell: As for `read_runs`.

    Raises:
        StorageError: It cannot be written.
    """
    with as_storage_error(f"{root / LEDGER}: it cannot be written"), open(root / f".{LEDGER}.lock", "ab") as turn:
        wait_for_lock(turn.fileno())  # workers may write it at the same time
        runs = read_runs(root, tell)
        # A folder's name may not be UTF-8; its bytes are written unchanged.
        with (
            replacing(root / LEDGER) as partial,
            open(partial, "w", newline="", encoding="utf-8", errors="surrogateescape") as file,
        ):
            writer = csv.DictWriter(file, columns_of(runs))
            writer.writeheader()
            writer.writerows(_row(run, writer.fieldnames) for run in runs)
    return runs


def columns_of(runs: Iterable[Run]) -> list[str]:
    """The columns of a ledger; val_loss is one of them only if a run has no val_bpb."""
    columns = list(COLUMNS)
    if any(run.has_loss_alone for run in runs):
        columns.insert(columns.index(VAL_BPB.name) + 1, VAL_LOSS.name)
    return columns


def _row(run: Run, columns: Iterable[str]) -> dict[str, Any]:
    known = {
        "run": str(run.folder),
        "study": run.study,
        "experiment": run.experiment,
        "decision": run.decision,
        "budget": run.budget,
        "corpus": run.corpus.get("name"),
        "wall_time_secs": wall_time(run.record) or None,  # also of a run of one process, whose record lacks the key
    }
    return {column: known[column] if column in known else run.record.get(column) for column in columns}


def main(args: list[str]) -> None:
    """Runs the command.

    Args:
        args: Arguments after `python -m bytelm ledger`.
    """
    description = f"Writes the ledger of all runs, from their folders. {RANKED}"
    parser = CommandParser("ledger", description=description)
    parser.add_argument("runs", nargs="?", default=RUNS, help="Folder with runs; the ledger is written there.")
    root = Path(parser.parse_args(args).runs)
    if not root.is_dir():
        raise StorageError(f"{root}: no such folder; accepted: {RUNS}, or a folder in it")
    runs = write_ledger(root)
    counts = Counter(run.status for run in runs)
    print(f"runs: {len(runs)} ({', '.join(f'{n} {status}' for status, n in counts.items())})")
    print(f"ledger: {root / LEDGER}")
