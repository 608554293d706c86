"""Service: the rules of a training challenge: a baseline to beat, a number of runs, a time, one run at a time.

A submitted config is read strictly, may contain only keys and values that untrusted_config.py accepts, and is built by
a Checker; only then does it count as a run. It is trained in its own process (job.py), in the folder of the match
(match_folder.py).

`python -m bytelm serve` offers it over HTTP (api.py).
"""

import json
import math
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import bytelm.cli  # noqa: F401 (loads the parts that a config may name)
from bytelm.config import base
from bytelm.config.base import files_of
from bytelm.config.messages import note
from bytelm.config.renamed import current_names
from bytelm.config.text import BadText, dump, read
from bytelm.config.untrusted_config import WHOLE, check_limit, check_resolved, check_written, own_config
from bytelm.errors import ConfigError, StorageError
from bytelm.experiments.check import Checker
from bytelm.experiments.job import LOG, Job, tail
from bytelm.experiments.service.match_folder import BASELINE, MatchFolder, number_of
from bytelm.experiments.service.paths import without_paths
from bytelm.experiments.service.program import ProgramJob
from bytelm.experiments.service.validation_time import training_seconds
from bytelm.runs.folder import RUNS
from bytelm.runs.ledger import best_of, write_ledger
from bytelm.runs.read import Run
from bytelm.units import Duration, Size

NO_NETWORK = "model.gpt: it is required"  # how the message begins
CHECK_SECONDS = 60.0  # a network that takes longer to build cannot be trained within minutes


class Rejection(Exception):
    """The reason why a config is not trained."""


class UsedUp(Rejection):
    """No runs or no time are left."""


class Busy(Rejection):
    """Another config is being trained or checked."""


class Unusable(Rejection):
    """The config cannot run, or not on this machine."""


@dataclass(frozen=True)
class Training:
    """A run in progress.

    Attributes:
        run_id: Its name.
        job: Its process.
        watcher: The thread that waits for the process to end.
    """

    run_id: str
    job: Job | ProgramJob
    watcher: threading.Thread


class Service:
    """A match. Use it in a `with` block, which ends the current run.

    Args:
        baseline: Config file.
        study: Folder in runs/.
        max_runs: Maximum number of runs.
        match_time: Seconds of the match, from the first run.
        run_timeout: Maximum seconds of a run.
        memory_limit: Maximum memory of a run, or of a check; None for no limit.

    Attributes:
        baseline_text: The baseline's config: the text of its file, or, if it has bases, the merged config.
    """

    def __init__(
        self,
        baseline: str,
        study: str,
        max_runs: int,
        match_time: float,
        run_timeout: float,
        memory_limit: Size | None = None,
    ) -> None:
        self.baseline = baseline
        self.study = study
        self.folder = MatchFolder(study, self._note)
        self.max_runs = max_runs
        self.match_time = match_time
        self.run_timeout = run_timeout
        self.memory_limit = memory_limit
        self.baseline_text = ""
        self._checker = Checker(memory_limit)
        self._baseline_config: dict[str, Any] = {}
        self._began: float | None = None  # start of the match, in seconds since 1970
        self._accepted: list[str] = []  # run-0, run-1, …
        self._ended: dict[str, Run] = {}  # runs by name
        self._lock = threading.Lock()  # held while a run is started
        self._training: Training | None = None
        self._busy: str | None = None  # the current work
        self._closing = False
        self._noted: set[str] = set()

    def __enter__(self) -> "Service":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def open(self, score_baseline: bool = True) -> None:
        """Claims the folder, reads the earlier runs in it, and trains the baseline if it has no score.

        Args:
            score_baseline: Whether the baseline is trained.

        Raises:
            ConfigError: The baseline cannot run, or is not the study's.
            StorageError: The folder cannot be used, or another service uses it.
        """
        self.folder.claim()
        config, reason = self._checker.check(["--config", self.baseline])
        if config is None:
            raise ConfigError("baseline", self.baseline, reason)
        self._keep_baseline(config)
        self._began = self.folder.began()
        self._accepted = self.folder.accepted()
        self._ended = self.folder.ended()
        if score_baseline and (BASELINE not in self._ended or self._ended[BASELINE].score is None):
            check_limit(config, training_seconds(config, self.run_timeout, None), config)
            self._train(BASELINE, self._config_job(BASELINE, self.run_timeout))

    def close(self) -> None:
        """Ends the current run, and waits until its record is written."""
        with self._lock:
            self._closing = True
            training = self._training
        self._checker.end()
        if training is not None:
            training.job.end()
            training.watcher.join()
        self.folder.release()

    def _keep_baseline(self, config: Mapping[str, Any]) -> None:
        self.folder.keep_baseline(config, self.baseline)
        self._baseline_config = dict(config)
        self.baseline_text = Path(self.baseline).read_text(encoding="utf-8")
        if len(files_of(self.baseline)) > 1:  # clients do not have its bases
            self.baseline_text = dump(own_config(config))

    # State

    @property
    def runs_remaining(self) -> int:
        return max(self.max_runs - len(self._accepted), 0)

    @property
    def match_time_remaining(self) -> float:
        """Seconds left; the whole time before the first run."""
        used = 0.0 if self._began is None else max(time.time() - self._began, 0.0)
        return max(self.match_time - used, 0.0)

    @property
    def active(self) -> tuple[str, float] | None:
        """Returns the current run, and its duration in seconds."""
        training = self._training
        return None if training is None else (training.run_id, training.job.elapsed)

    @property
    def best(self) -> Run | None:
        """The run with the lowest score."""
        return best_of(self._ended[run_id] for run_id in list(self._accepted) if run_id in self._ended)

    @property
    def ended(self) -> list[Run]:
        """The baseline and the accepted runs that have ended, in order."""
        return [self._ended[run_id] for run_id in [BASELINE, *self._accepted] if run_id in self._ended]

    def runs(self) -> list[dict[str, Any]]:
        """Returns the records of all accepted runs, in order."""
        return [report for run_id in list(self._accepted) if (report := self.report(run_id)) is not None]

    def report(self, run_id: str, log: bool = False) -> dict[str, Any] | None:
        """Returns the report of a run; None if there is no run of that name.

        Args:
            run_id: `run-N`, or `baseline`.
            log: Whether to add the end of its output.
        """
        training = self._training
        if training is not None and training.run_id == run_id:
            report: dict[str, Any] = {"status": "running", "elapsed_secs": round(training.job.elapsed, 1)}
            printed: Callable[[], str] = training.job.tail
        elif (run := self._ended.get(run_id)) is not None:
            record = {key: finite(value) for key, value in run.record.items()}
            kept = record.get("checkpoint")
            record["checkpoint"] = kept if kept and Path(kept).exists() else None
            report = {**record, "status": run.status, "decision": run.decision}
            printed = partial(tail, self.folder.path / run_id / LOG)
        else:
            return None
        return {"run_id": run_id, **report, **({"log": printed()} if log else {})}

    # Submitted configs

    def check_free(self) -> None:
        """Checks that a run could start now.

        Raises:
            UsedUp: No runs or no time are left.
            Busy: Another config is being trained or checked.
        """
        if not self.runs_remaining:
            raise UsedUp(f"all {self.max_runs} runs are used up")
        if not self.match_time_remaining:
            raise UsedUp(self._over())
        if self._busy is not None:
            raise Busy(self._busy)

    def submit(self, body: bytes) -> str:
        """Starts a run, and returns its name.

        Args:
            body: A config, as YAML or JSON.

        Raises:
            BadText: The body is not a config.
            Rejection: The config is not trained; the subclass gives the reason.
            StorageError: The folder is not writable.
        """
        config = _read_sent(body)
        with self._checking(f"another config is being checked; it takes up to {CHECK_SECONDS:g} s"):
            resolved = self._resolve(config)
            return self._accept(".yaml", dump(resolved), self._config_job)

    @contextmanager
    def _checking(self, busy: str) -> Iterator[None]:
        """Keeps others out, until the block has started a run or failed.

        Args:
            busy: The reason that other requests get.
        """
        with self._lock:
            self.check_free()
            self._busy = busy
        try:
            yield
        except BaseException as error:
            self._busy = None
            if isinstance(error, OSError):
                raise StorageError(f"{self.folder.path}: it cannot be written to ({error.strerror})") from error
            raise

    def _resolve(self, config: Mapping[Any, Any]) -> dict[str, Any]:
        differs = config.get(base.KEY) == BASELINE
        sent = {key: value for key, value in config.items() if not differs or key != base.KEY}
        try:
            check_written(sent, self._baseline_config, self.folder.path)
            resolved, reason = self._checker.check(self.folder.write_sent(sent, differs), CHECK_SECONDS)
            if resolved is None:
                reason = reason.removesuffix(f" (in {self.folder.sent})")
                raise Unusable(f"{NO_NETWORK}; {WHOLE}" if reason.startswith(NO_NETWORK) else without_paths(reason))
            check_resolved(resolved, self._baseline_config)
            most = training_seconds(resolved, self._most_seconds(), self._ended.get(BASELINE))
            check_limit(resolved, most, self._baseline_config)
        except ConfigError as error:
            raise Unusable(str(error)) from error
        return resolved

    def _over(self) -> str:
        return f"the match is over: its {Duration(self.match_time, 'seconds')} are used up"

    def _most_seconds(self) -> float:
        return min(self.run_timeout, self.match_time_remaining)

    @property
    def next_run_id(self) -> str:
        """The name that the next run gets."""
        return f"run-{max(map(number_of, self._accepted), default=-1) + 1}"

    def _accept(self, suffix: str, text: str, job: Callable[[str, float], Job | ProgramJob]) -> str:
        """Starts a run, and returns its name.

        Args:
            suffix: `.yaml` or `.py`.
            text: Its config or its program.
            job: Starts its process, of this name and with this time limit in seconds.
        """
        with self._lock:
            if self._closing:
                raise Busy("the service is ending")
            run_id = self.next_run_id
            if not self.match_time_remaining:
                raise UsedUp(self._over())
            self._begin()
            file = self.folder.write_accepted(run_id, suffix, text)
            try:
                self._train(run_id, job(run_id, self._most_seconds()))
            except BaseException:
                file.unlink()  # the run has not started, and does not count
                raise
            self._accepted.append(run_id)
            return run_id

    def _begin(self) -> None:
        """Starts the clock of the match, unless it has been started."""
        if self._began is None:
            now = time.time()
            self.folder.begin(now)
            self._began = now

    # Training

    def _config_job(self, run_id: str, timeout: float) -> Job:
        options = ["--config", str(self.folder.config(run_id))]
        return Job(options, f"{self.study}/{run_id}", timeout, self.memory_limit)

    def _train(self, run_id: str, job: Job | ProgramJob) -> None:
        watcher = threading.Thread(target=self._watch, args=(run_id, job), name=run_id)
        self._training = Training(run_id, job, watcher)
        self._busy = f"{run_id} is being trained"
        watcher.start()

    def _watch(self, run_id: str, job: Job | ProgramJob) -> None:
        try:
            with job:
                outcome = job.wait()
                if outcome.folder is None:
                    self.folder.leave_record(run_id, "error", outcome.reason)
            write_ledger(Path(RUNS), self._note)
        except StorageError as error:
            note(str(error))
        finally:
            try:
                self._ended |= self.folder.ended()  # a run whose folder cannot be read now is kept
                self._drop_checkpoints()
            except StorageError as error:
                note(str(error))
            finally:
                self._training = self._busy = None

    def _drop_checkpoints(self) -> None:
        """Keeps only the weights of the best run: those of many large networks would fill the disk."""
        best = self.best
        others = [run_id for run_id in self._accepted if best is None or run_id != best.experiment]
        self.folder.drop_checkpoints(run_id for run_id in others if run_id in self._ended)

    def _note(self, text: str) -> None:
        """Prints a warning to the service's operator, once for each text."""
        if text not in self._noted:
            self._noted.add(text)
            note(text)


def _read_sent(body: bytes) -> dict[Any, Any]:
    accepted = "accepted: a config as YAML or JSON"
    try:
        text = body.decode()
    except UnicodeDecodeError as error:
        raise BadText(f"it is not UTF-8 ({error.reason}); {accepted}") from error
    config = read(text, aliases=False)  # a few aliases can stand for more values than fit into memory
    if not config:
        raise BadText(f"it is empty; {accepted}")
    config = current_names(config, trusted=False)
    try:
        json.dumps(config, default=repr).encode()
    except (TypeError, ValueError) as error:  # a key of another type; a number of thousands of digits
        raise BadText(f"{error}; {accepted}") from error
    return config


def finite(value: Any) -> Any:
    """Returns a value for JSON, with None in place of NaN and infinity."""
    return None if isinstance(value, float) and not math.isfinite(value) else value
