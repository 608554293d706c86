"""The folder of a match. It contains the whole state, from which a restarted service continues.

| in `runs/<study>/` | contents |
| --- | --- |
| `run-N.yaml`, `run-N.py` | the resolved config of an accepted run, or its program |
| `run-N/version_0/` | the run |
| `baseline.yaml`, `baseline/version_N/` | the same for the baseline, which does not count as a run |
| `rest.yaml` | the baseline's settings that hold for all runs |
| `match.json` | the start of the match: the start of its first run |
"""

import json
import os
import shutil
import time
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from bytelm.config.text import dump
from bytelm.config.untrusted_config import shared_config
from bytelm.errors import ConfigError, StorageError, as_storage_error
from bytelm.experiments.job import LOG
from bytelm.runs import record as records
from bytelm.runs.folder import CONFIG, RUNS
from bytelm.runs.ledger import decide, read_runs
from bytelm.runs.read import Run
from bytelm.system.files import write_text
from bytelm.system.locks import is_free, lock
from bytelm.system.process import ENDING_SECONDS, utc

BASELINE = "baseline"
CUT_BEFORE = "the service ended before the run had begun"
CUT = "the service ended while the program ran"
SUFFIXES = (".yaml", ".py")  # of accepted configs and programs
DAMAGED = "its config or its record is damaged"


class MatchFolder:
    """The folder; one service at a time uses it.

    Args:
        study: Its name in runs/.
        tell: Called with a line for each damaged file.
    """

    def __init__(self, study: str, tell: Callable[[str], None]) -> None:
        self.path = Path(RUNS, study)
        self._tell = tell
        self._claim: int | None = None  # descriptor of a file whose lock keeps others out

    def claim(self) -> None:
        """Claims the folder, and waits until a run of a service that was killed has ended.

        Raises:
            StorageError: The folder cannot be used, or another service uses it.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._claim = os.open(self.path / ".lock", os.O_CREAT | os.O_RDWR, 0o644)
        except OSError as error:
            raise StorageError(f"study: {str(self.path)!r} cannot be used: {error}") from error
        if not lock(self._claim):
            raise StorageError(f"{self.path}: another service works there; --study names another folder")
        give_up = (
            time.monotonic() + ENDING_SECONDS + 10
        )  # such a run ends by itself, and holds its log's lock until then
        for log in self.path.glob(f"*/{LOG}"):
            while not is_free(log):
                if time.monotonic() > give_up:
                    raise StorageError(f"{log.parent}: another process works on this run")
                time.sleep(0.2)

    def release(self) -> None:
        """Releases the folder for other services."""
        if self._claim is not None:
            os.close(self._claim)
            self._claim = None

    # Configs

    def config(self, run_id: str) -> Path:
        """Returns the config file of a run, of the `baseline`, or of the `rest`."""
        return self.path / f"{run_id}.yaml"

    def write_config(self, run_id: str, config: Mapping[str, Any]) -> None:
        """Writes one of these files."""
        write_text(self.config(run_id), dump(dict(config)))

    def write_accepted(self, run_id: str, suffix: str, text: str) -> Path:
        """Writes the config or the program of an accepted run, and returns its file."""
        file = self.path / f"{run_id}{suffix}"
        write_text(file, text)
        return file

    def write_sent(self, config: Mapping[Any, Any], differs_from_baseline: bool = False) -> list[str]:
        """Writes a submitted config; returns the options that run it, with those of the baseline that it does not set.

        Args:
            config: The config.
            differs_from_baseline: Whether they are all of the baseline's; otherwise those that apply to all runs.
        """
        write_text(self.sent, json.dumps(config))
        before = BASELINE if differs_from_baseline else "rest"
        return ["--config", str(self.config(before)), "--config", str(self.sent)]

    @property
    def sent(self) -> Path:
        """The file of the submitted config that is being checked."""
        return self.path / ".sent.yaml"

    def keep_baseline(self, config: Mapping[str, Any], given: str) -> None:
        """Writes the baseline's config, and the part of it that applies to all runs.

        Args:
            config: Its resolved config.
            given: Its file, for the message.

        Raises:
            ConfigError: The study started with another baseline.
        """
        kept = self.config(BASELINE)
        if kept.exists() and kept.read_bytes() != dump(dict(config)).encode():
            raise ConfigError("baseline", given, f"the study began with another one, {kept}; use that or another study")
        self.write_config(BASELINE, config)
        self.write_config("rest", shared_config(config))

    def accepted(self) -> list[str]:
        """Returns the names of the accepted runs, in order."""
        files = [path for path in self.path.glob("run-*") if path.suffix in SUFFIXES]
        return sorted({path.stem for path in files if path.stem.removeprefix("run-").isdecimal()}, key=number_of)

    # The time

    def began(self) -> float | None:
        """Returns the start of the match, in seconds since 1970; None before the first run.

        If its file is damaged, the time at which the first config was accepted.
        """
        file = self.path / "match.json"
        if not file.exists():
            return None
        try:
            return datetime.fromisoformat(json.loads(file.read_text(encoding="utf-8"))["started_at"]).timestamp()
        except (OSError, ValueError, LookupError, TypeError, OverflowError, RecursionError) as error:
            self._tell(f"{file} cannot be used ({error}); the match began with the first config in its folder")
            return min(map(self._accepted_at, self.accepted()), default=None)

    def begin(self, now: float) -> None:
        """Writes the start of the match."""
        write_text(self.path / "match.json", json.dumps({"started_at": utc(now)}) + "\n")

    # Runs

    def ended(self) -> dict[str, Run]:
        """Returns the ended runs, by name; for the baseline, which may have several runs, the last one.

        Raises:
            StorageError: A record cannot be written.
        """
        runs = {run.experiment: run for run in self._read()}
        for run_id in self.accepted():
            if run_id not in runs:
                left = [
                    path for name in (CONFIG, records.FILE) for path in (self.path / run_id).glob(f"version_*/{name}")
                ]
                reason = CUT if (self.path / f"{run_id}.py").exists() else CUT_BEFORE
                runs[run_id] = self._damaged(run_id) if left else self.leave_record(run_id, "interrupted", reason)
        return {run_id: run for run_id, run in runs.items() if run.status != "running"}

    def leave_record(self, run_id: str, status: records.Status, reason: str | None) -> Run:
        """Writes the record of a run that ended before it could write one."""
        record = self._short_record(run_id, status, reason)
        folder = self.path / run_id / "version_0"
        with as_storage_error(f"{folder}: its record cannot be written"):
            records.write(folder, record)
        return Run(folder, {}, record, "discard")

    def drop_checkpoints(self, run_ids: Iterable[str]) -> None:
        """Removes the weights of runs."""
        for run_id in run_ids:
            for folder in (self.path / run_id).glob("version_*/checkpoints"):
                shutil.rmtree(folder, ignore_errors=True)

    def _read(self) -> list[Run]:
        runs = read_runs(self.path, self._tell)
        decide(runs, lambda run: None)  # all compete, whatever budget they have requested
        return runs

    def _damaged(self, run_id: str) -> Run:
        return Run(self.path / run_id / "version_0", {}, self._short_record(run_id, "error", DAMAGED), "discard")

    def _short_record(self, run_id: str, status: records.Status, reason: str | None) -> records.Record:
        return records.of_unstarted_run(status, reason, self._accepted_at(run_id))

    def _accepted_at(self, run_id: str) -> float:
        files = (self.path / f"{run_id}{suffix}" for suffix in SUFFIXES)
        return next(file.stat().st_mtime for file in files if file.exists())


def number_of(run_id: str) -> int:
    """N of `run-N`."""
    return int(run_id.removeprefix("run-"))
