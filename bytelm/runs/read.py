"""Reads the folders of runs: config.yaml, record.json, and whether a process works on the run.

One damaged file must not stop the commands that read all runs: a message names it, and its run is left out. Values are
checked here; the other modules can rely on their types.
"""

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from bytelm.config.messages import note
from bytelm.errors import StorageError
from bytelm.runs import record as records
from bytelm.runs.folder import CONFIG, is_running, name_in_runs
from bytelm.runs.score import VAL_BPB, VAL_LOSS, Score
from bytelm.system.process import utc
from bytelm.units import Duration

DEEPEST = 100  # levels of a config's nesting


@dataclass
class Run:
    """A run, read from its folder.

    Attributes:
        folder: runs/<study>/<experiment>/version_N.
        config: Its resolved config; empty if it has none.
        record: The contents of record.json; for a run without one, the known values.
        decision: `keep` or `discard`; None for a running run.
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
        return name_in_runs(self.folder.parent.parent)

    @property
    def status(self) -> str:
        """completed, error, timeout, diverged, interrupted or running."""
        return self.record["status"]

    @property
    def score(self) -> float | None:
        """The score that the run is ranked by; None if it has no rank."""
        return self.ranked_by.of(self.record)

    @property
    def has_loss_alone(self) -> bool:
        """Whether the run has a val_loss and no val_bpb."""
        return VAL_BPB.of(self.record) is None and VAL_LOSS.of(self.record) is not None

    @property
    def limits(self) -> list[str]:
        """The limits of its budget, as in the config; those of the record, if the run was made from objects."""
        limit = (self.config.get("time_budget") or {}).get("limit")
        if limit is None:
            limit = [text for text in (self.record.get("limit") or "").split(", ") if text]
        return limit if isinstance(limit, list) else [limit]

    @property
    def budget(self) -> str | None:
        """The limits as one text."""
        return ", ".join(self.limits) or None

    @property
    def corpus(self) -> Mapping[str, Any]:
        """Its corpus, as in the record; empty if it ended before it had read it."""
        return self.record.get("corpus") or {}

    @property
    def competes_with(self) -> tuple[Any, ...]:
        """A value that is equal for all runs that can be compared: study, budget and corpus."""
        return self.folder.parent.parent, self.budget, self.corpus.get("sha256")


def find_runs(root: Path, tell: Callable[[str], None] = note) -> list[Run]:
    """All runs below a folder, in the order in which they ended.

    Args:
        root: `runs`, or the folder of a study, an experiment, or a run.
        tell: Is called with a line for each run that is left out because one of its files is damaged.
    """
    runs = []
    for folder in sorted(_run_folders(root)):  # notes then have the same order on every file system
        try:
            if (run := read_run(folder)) is not None:
                runs.append(run)
        except StorageError as error:
            tell(f"{error}; this run is left out")
    return sorted(runs, key=lambda run: (run.record["ended_at"] or "~", run.folder))


def read_run(folder: Path) -> Run | None:
    """Reads a run; None if the folder contains only predictions.

    Args:
        folder: runs/<study>/<experiment>/version_N.

    Raises:
        StorageError: Its config or its record is damaged.
    """
    config_file, record_file = folder / CONFIG, folder / records.FILE
    config = read_config(config_file) if _is_there(config_file) else {}
    record = records.read(folder) if _is_there(record_file) else None
    if record is None and "return_predictions" in config:
        return None  # predict's config; only fit makes runs
    if is_running(folder):
        record = records.of_running(record, config_file.stat().st_mtime if config else None)
    elif record is None:
        record = records.of_lost_run(folder, config)
    elif record.get("ended_at") is None:
        record["ended_at"] = utc(record_file.stat().st_mtime)
    return Run(folder, config, record)


def read_config(file: Path) -> dict[str, Any]:
    """A run's resolved config.

    Args:
        file: config.yaml in the run's folder.

    Raises:
        StorageError: It cannot be read, or is damaged; the message names it.
    """
    try:
        text = file.read_text(encoding="utf-8")
        _check_nesting(text)
        config = yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
        _check_config(config)
    except OSError as error:
        raise StorageError(f"{file} cannot be read: {error.strerror or error}") from error
    except (ValueError, yaml.YAMLError, LookupError, AttributeError, TypeError, RecursionError) as error:
        raise StorageError(f"{file} is damaged: {_reason(error)}") from error
    return config


def _run_folders(root: Path) -> Iterator[Path]:
    for folder, inner, files in os.walk(root):  # ignores folders that disappear meanwhile
        if Path(folder).name.startswith("version_") and {CONFIG, records.FILE} & {*files, *inner}:
            inner.clear()
            yield Path(folder)


def _is_there(file: Path) -> bool:
    """Whether a file or a link of that name exists; a broken link must not count as a missing file."""
    return os.path.lexists(file)


def _check_nesting(text: str) -> None:
    """Rejects deep nesting and aliases, which can be endless. bytelm writes neither."""
    depth = 0
    for event in yaml.parse(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)):
        if isinstance(event, yaml.AliasEvent):
            raise ValueError(f"line {event.start_mark.line + 1}: an alias")  # type: ignore[union-attr]
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > DEEPEST:
            raise ValueError(f"more than {DEEPEST} levels of nesting")


def _check_config(config: Any) -> None:
    if not isinstance(config, dict) or not config:
        raise ValueError("it is not a mapping of keys and values")
    _check_values(config)
    for section in ("trainer", "model", "data", "time_budget", "lr_schedule"):
        if not isinstance(config.get(section), dict | None):
            raise ValueError(f"{section} is not a mapping")
    limit = (config.get("time_budget") or {}).get("limit")
    for one in limit if isinstance(limit, list) else [limit]:
        if one is not None:
            Duration.parse(one)


def _check_values(value: Any, key: str = "") -> None:
    if isinstance(value, list):
        for inner in value:
            _check_values(inner, key)
    if not isinstance(value, dict):
        return
    for name, inner in value.items():
        if not isinstance(name, str):
            raise ValueError(f"{name!r} is a key")
        _check_values(inner, f"{key}.{name}" if key else name)
    if "class_path" in value:
        if not isinstance(value["class_path"], str):
            raise ValueError(f"{key}.class_path is not a text")
        if not isinstance(value.get("init_args"), dict | None):
            raise ValueError(f"{key}.init_args is not a mapping")


def _reason(error: Exception) -> str:
    if isinstance(error, yaml.MarkedYAMLError) and error.problem:
        mark = error.problem_mark or error.context_mark
        return f"line {mark.line + 1}: {error.problem}" if mark else error.problem
    return " ".join(str(error).split())
