"""Service: the rules of a training challenge: a baseline to beat, so many runs, so much time, one run at a time.

A config that is sent in is read strictly, may say only what strangers.py accepts, is built by a Checker, and only then
counts as a run; it is trained as a process of its own (job.py). The study's folder is the truth, so that a service that
is started again, after whatever end, goes on where it was:

| in runs/<study>/ | what |
| --- | --- |
| `run-N.yaml` | the resolved config of a run that was accepted |
| `run-N/version_0/` | the run |
| `baseline.yaml`, `baseline/version_N/` | the same of the baseline, which costs no run |
| `match.json` | when the match began: with the first run |

`python -m bytelm serve` offers it over HTTP (api.py).
"""

import json
import math
import os
import shutil
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import bytelm.cli  # noqa: F401 (loads the parts that a config may name)
from bytelm.config.base import files_of
from bytelm.config.renamed import current_names
from bytelm.config.text import BadText, dump, read
from bytelm.config.untrusted_config import check_limit, check_resolved, check_written, own_config, shared_config
from bytelm.errors import ConfigError, StorageError
from bytelm.experiments.check import Checker
from bytelm.experiments.job import LOG, Job, tail
from bytelm.runs import record
from bytelm.runs.folder import RUNS, is_free, lock
from bytelm.runs.ledger import Run, best_of, decide, read_runs, write_ledger
from bytelm.system.files import replacing
from bytelm.system.process import ENDING_SECONDS, utc
from bytelm.units import Duration

BASELINE = "baseline"
CHECK_SECONDS = 60.0  # a network that takes longer to build is none to be trained within minutes


class Refusal(Exception):
    """Why a config is not trained."""


class UsedUp(Refusal):
    """There are no runs left, or no time."""


class Busy(Refusal):
    """Something else is being trained or checked."""


class Unusable(Refusal):
    """The config cannot run, or not here."""


@dataclass(frozen=True)
class Training:
    """A run that is under way.

    Attributes:
        run_id: Its name.
        job: Its process.
        watcher: The thread that waits for its end.
    """

    run_id: str
    job: Job
    watcher: threading.Thread


class Service:
    """A match. To be used in a `with` block, which ends the run that is under way.

    Args:
        baseline: Config file.
        study: Folder in runs/.
        max_runs: How many runs there are.
        match_time: Seconds from the first run on.
        run_timeout: Seconds that a run may take.

    Attributes:
        baseline_text: The baseline's config: the text of its file, or of a file with bases all that it comes to.
    """

    def __init__(self, baseline: str, study: str, max_runs: int, match_time: float, run_timeout: float) -> None:
        self.baseline = baseline
        self.study = study
        self.folder = Path(RUNS, study)
        self.max_runs = max_runs
        self.match_time = match_time
        self.run_timeout = run_timeout
        self.baseline_text = ""
        self._checker = Checker()
        self._claim: int | None = None  # a file's descriptor, whose lock keeps others out of the folder
        self._baseline_config: dict[str, Any] = {}
        self._began: float | None = None  # the match, in seconds since 1970
        self._accepted: list[str] = []  # run-0, run-1, …
        self._ended: dict[str, Run] = {}  # by their names
        self._lock = threading.Lock()  # of whoever lets a run begin
        self._training: Training | None = None
        self._busy: str | None = None  # with what
        self._closing = False

    def __enter__(self) -> "Service":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def open(self, score_baseline: bool = True) -> None:
        """Takes possession of the folder, finds out what was done in it, and trains the baseline if it has no score.

        Args:
            score_baseline: Whether it does the last.

        Raises:
            ConfigError: The baseline cannot run, or is not that of the study.
            StorageError: The folder cannot be used, or another service does.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._claim = os.open(self.folder / ".lock", os.O_CREAT | os.O_RDWR, 0o644)
        except OSError as error:
            raise StorageError(f"study: {str(self.folder)!r} cannot be used: {error}") from error
        if not lock(self._claim):
            raise StorageError(f"{self.folder}: another service is at work there; --study names another folder")
        config, reason = self._checker.check(["--config", self.baseline])
        if config is None:
            raise ConfigError("baseline", self.baseline, reason)
        self._keep_baseline(config)
        self._read_folder()
        if score_baseline and (BASELINE not in self._ended or self._ended[BASELINE].score is None):
            check_limit(config, self.run_timeout, config)
            self._train(BASELINE, self.run_timeout)

    def close(self) -> None:
        """Ends the run that is under way, and waits until that is on record."""
        with self._lock:
            self._closing = True
            training = self._training
        self._checker.end()
        if training is not None:
            training.job.end()
            training.watcher.join()
        if self._claim is not None:
            os.close(self._claim)
            self._claim = None

    # What there is

    @property
    def runs_remaining(self) -> int:
        return max(self.max_runs - len(self._accepted), 0)

    @property
    def match_time_remaining(self) -> float:
        """Seconds; all of them before the first run."""
        used = 0.0 if self._began is None else time.time() - self._began
        return max(self.match_time - used, 0.0)

    @property
    def active(self) -> tuple[str, float] | None:
        """The run that is under way, and for how many seconds it has been."""
        training = self._training
        return None if training is None else (training.run_id, training.job.elapsed)

    @property
    def best(self) -> Run | None:
        """The run with the lowest score."""
        return best_of(self._ended[run_id] for run_id in list(self._accepted) if run_id in self._ended)

    def runs(self) -> list[dict[str, Any]]:
        """The records of all runs that were accepted, in this order."""
        return [report for run_id in list(self._accepted) if (report := self.report(run_id)) is not None]

    def report(self, run_id: str, log: bool = False) -> dict[str, Any] | None:
        """What is known of a run; None if there is none by that name.

        Args:
            run_id: `run-N`, or `baseline`.
            log: Whether to add the end of what it has printed.
        """
        training = self._training
        if training is not None and training.run_id == run_id:
            report: dict[str, Any] = {"status": "running", "elapsed_secs": round(training.job.elapsed, 1)}
            printed: Callable[[], str] = training.job.tail
        elif (run := self._ended.get(run_id)) is not None:
            record = {key: _finite(value) for key, value in run.record.items()}
            kept = record.get("checkpoint")
            record["checkpoint"] = kept if kept and Path(kept).exists() else None
            report = {**record, "status": run.status, "decision": run.decision}
            printed = partial(tail, self.folder / run_id / LOG)
        else:
            return None
        return {"run_id": run_id, **report, **({"log": printed()} if log else {})}

    # What is sent in

    def check_free(self) -> None:
        """Whether a run could begin now.

        Raises:
            UsedUp: No runs are left, or no time.
            Busy: There is something else to do.
        """
        if not self.runs_remaining:
            raise UsedUp(f"all {self.max_runs} runs are used up")
        if not self.match_time_remaining:
            raise UsedUp(self._over())
        if self._busy is not None:
            raise Busy(self._busy)

    def submit(self, body: bytes) -> str:
        """Begins a run, and returns its name.

        Args:
            body: A config, as YAML or JSON.

        Raises:
            BadText: It is no config.
            Refusal: It is not trained; the kind says why.
        """
        try:
            text = body.decode()
        except UnicodeDecodeError as error:
            raise BadText(f"it is not UTF-8 ({error.reason}); accepted: a config as YAML or JSON") from error
        config = read(text, aliases=False)  # a few of them can stand for more values than fit into memory
        config = current_names(config, trusted=False)
        try:
            json.dumps(config, default=repr)
        except ValueError as error:  # a whole number of thousands of digits
            raise BadText(f"{error}; accepted: a config as YAML or JSON") from error
        if not config:
            raise BadText("it is empty; accepted: a config as YAML or JSON")
        with self._lock:
            self.check_free()
            self._busy = "another config is being checked; it takes seconds"
        try:
            resolved = self._resolve(config)
            with self._lock:
                return self._accept(resolved)
        except BaseException:
            self._busy = None
            raise

    def _resolve(self, config: Mapping[Any, Any]) -> dict[str, Any]:
        try:
            check_written(config, self._baseline_config, self.folder)
            sent = self.folder / ".sent.yaml"
            _write(sent, json.dumps(config))
            options = ["--config", str(self.folder / "rest.yaml"), "--config", str(sent)]
            resolved, reason = self._checker.check(options, CHECK_SECONDS)
            if resolved is None:
                raise Unusable(reason)
            check_resolved(resolved, self._baseline_config)
            check_limit(resolved, self._most_seconds(), self._baseline_config)
        except ConfigError as error:
            raise Unusable(str(error)) from error
        return resolved

    def _over(self) -> str:
        return f"the match is over: its {Duration(self.match_time, 'seconds')} are used up"

    def _most_seconds(self) -> float:
        return min(self.run_timeout, self.match_time_remaining)

    def _accept(self, resolved: Mapping[str, Any]) -> str:
        if self._closing:
            raise Busy("the service is being ended")
        number = max((_number(run_id) for run_id in self._accepted), default=-1) + 1
        run_id = f"run-{number}"
        if not self.match_time_remaining:
            raise UsedUp(self._over())
        if self._began is None:
            began = time.time()
            _write(self.folder / "match.json", json.dumps({"started_at": utc(began)}) + "\n")
            self._began = began
        config = self.folder / f"{run_id}.yaml"
        _write(config, _dump(resolved))
        try:
            self._train(run_id, self._most_seconds())
        except BaseException:
            config.unlink()  # it has not begun, and so does not count
            raise
        self._accepted.append(run_id)
        return run_id

    # What is trained

    def _train(self, run_id: str, timeout: float) -> None:
        job = Job(["--config", str(self.folder / f"{run_id}.yaml")], f"{self.study}/{run_id}", timeout)
        watcher = threading.Thread(target=self._watch, args=(run_id, job), name=run_id)
        self._training = Training(run_id, job, watcher)
        self._busy = f"{run_id} is being trained"
        watcher.start()

    def _watch(self, run_id: str, job: Job) -> None:
        try:
            with job:
                outcome = job.wait()
                if outcome.folder is None:
                    self._leave_record(run_id, "error", outcome.reason)
            write_ledger(Path(RUNS))
        finally:
            try:
                self._ended |= self._read_ended()  # where a folder cannot be read, no run is forgotten
                self._drop_checkpoints()
            finally:
                self._training = self._busy = None

    # The folder

    def _keep_baseline(self, config: Mapping[str, Any]) -> None:
        kept, text = self.folder / f"{BASELINE}.yaml", _dump(config)
        if kept.exists() and kept.read_text(encoding="utf-8") != text:
            reason = f"the study was begun with another one, {kept}; accepted: that, or another study"
            raise ConfigError("baseline", self.baseline, reason)
        _write(kept, text)
        _write(self.folder / "rest.yaml", _dump(shared_config(config)))
        self._baseline_config = dict(config)
        self.baseline_text = Path(self.baseline).read_text(encoding="utf-8")
        if len(files_of(self.baseline)) > 1:  # a client does not have its bases
            self.baseline_text = _dump(own_config(config))

    def _read_folder(self) -> None:
        # The run of a service that was killed ends by itself, and holds its log's lock until then.
        give_up = time.monotonic() + ENDING_SECONDS + 10
        for log in self.folder.glob(f"*/{LOG}"):
            while not is_free(log):
                if time.monotonic() > give_up:
                    raise StorageError(f"{log.parent}: another process is at work on this run")
                time.sleep(0.2)
        if (match := self.folder / "match.json").exists():
            self._began = datetime.fromisoformat(json.loads(match.read_text())["started_at"]).timestamp()
        names = [path.stem for path in self.folder.glob("run-*.yaml") if path.stem.removeprefix("run-").isdecimal()]
        self._accepted = sorted(names, key=_number)
        self._ended = self._read_ended()
        if unbegun := [run_id for run_id in self._accepted if run_id not in self._ended]:
            for run_id in unbegun:
                self._leave_record(run_id, "interrupted", "the service was ended before the run had begun")
            self._ended = self._read_ended()

    def _read_ended(self) -> dict[str, Run]:
        runs = read_runs(self.folder)
        decide(runs, lambda run: None)  # all compete, whatever budget they have asked for
        return {run.experiment: run for run in runs}  # of the baseline, which may have taken several, the last

    def _drop_checkpoints(self) -> None:
        """Weights are kept of the best run alone: those of many large networks would fill the disk."""
        best = self.best
        for run_id in self._accepted:
            if run_id in self._ended and (best is None or run_id != best.experiment):
                shutil.rmtree(self.folder / run_id / "version_0" / "checkpoints", ignore_errors=True)

    def _leave_record(self, run_id: str, status: record.Status, reason: str | None) -> None:
        """The record of a run that has not come as far as to leave one."""
        accepted_at = (self.folder / f"{run_id}.yaml").stat().st_mtime
        record.write(self.folder / run_id / "version_0", record.of_unstarted_run(status, reason, accepted_at))


def _write(path: Path, text: str) -> None:
    with replacing(path) as unfinished:
        unfinished.write_text(text, encoding="utf-8")


def _dump(config: Mapping[str, Any]) -> str:
    return dump(dict(config))


def _number(run_id: str) -> int:
    return int(run_id.removeprefix("run-"))


def _finite(value: Any) -> Any:
    """A value as JSON knows it, which has no NaN."""
    return None if isinstance(value, float) and not math.isfinite(value) else value
