"""Study: the queue of runs, which Optuna keeps.

Every run is a trial. The runs of a list or a grid are queued in order; those of a random or a TPE search are drawn one
by one. The queue is a journal file in the study's folder (journal.py), or a storage of Optuna that several machines
share; each worker takes its next trial from it. The results of runs are read from their folders, not from the queue.

A run holds a lock on its log while it runs. A running trial without this lock was interrupted, and the next worker
that requests a run resumes it.
"""

import json
import os
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, BinaryIO

import optuna
from optuna.exceptions import StorageInternalError, UpdateFinishedTrialError
from optuna.pruners import BasePruner
from optuna.samplers import BaseSampler
from optuna.storages import BaseStorage, JournalStorage
from optuna.trial import FrozenTrial, Trial, TrialState
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, SQLAlchemyError

from bytelm.config.checks import check_experiment
from bytelm.errors import ConfigError, StorageError, as_storage_error
from bytelm.experiments.database import Database
from bytelm.experiments.job import LOG
from bytelm.experiments.journal import Journal
from bytelm.experiments.pruning import CONTEST, RUNGS, decide
from bytelm.experiments.task import Plan, Task
from bytelm.runs.folder import RUNS
from bytelm.system.locks import is_free, lock, wait_for_lock

JOURNAL = "study.journal"
QUEUEING = ".queueing.lock"
DRAWING = ".drawing.lock"
ENDED_EARLY = "pruned"  # attribute of a run that was pruned; other pruned trials are dropped ones, which are not runs
SAMPLER_SEEDS = 2**32  # of NumPy's generators
SPACE = "space"  # attribute of the study: the space of a search that has begun
SAMPLERS: dict[str, Callable[..., BaseSampler]] = {
    "tpe": optuna.samplers.TPESampler,
    "gp": optuna.samplers.GPSampler,
}
ANOTHER = "use that space, or another --study"
MOST_REPEATS = 100  # repeated draws in a row, after which all points of the space count as drawn


@dataclass(frozen=True)
class Claim:
    """A run that this process has taken from the queue.

    Attributes:
        number: Number of the trial.
        task: The task.
        experiment: Its folder in runs/.
        was_cut: Whether another worker had taken it, and works on it no more.
    """

    number: int
    task: Task
    experiment: str
    was_cut: bool = field(default=False, compare=False)


class Study:
    """The queue.

    Args:
        name: Name of the study, and of its folder in runs/.
        plan: The runs of the study.
        storage: A file or a database's URL; default a file in the study's folder.
        sampler_seed: Seed of the draws.

    Raises:
        ConfigError: The name or the storage is invalid.
        StorageError: The study's folder or its storage cannot be used.
    """

    def __init__(self, name: str, plan: Plan, storage: str | None = None, sampler_seed: int | None = None) -> None:
        check_experiment(name, "study")
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.name = name
        self.plan = plan
        self.folder = Path(RUNS, name)
        with as_storage_error(f"{self.folder}: the folder cannot be created"):
            self.folder.mkdir(parents=True, exist_ok=True)
        try:
            # Workers that make the tables of a database at once fail.
            with _turn(Path(RUNS, ".storage.lock")) if _is_database(storage) else nullcontext():
                self._storage = _open(storage, self.folder)
                self._study = optuna.create_study(study_name=name, storage=self._storage, load_if_exists=True)
        except BaseException:
            with suppress(OSError):  # not empty: the study began earlier
                os.removedirs(self.folder)
            raise
        if sampler_seed is not None:  # a study that continues must not repeat its draws
            sampler_seed = (sampler_seed + len(self._trials())) % SAMPLER_SEEDS
        self._study.sampler = SAMPLERS.get(plan.sampler, optuna.samplers.RandomSampler)(seed=sampler_seed)

    def missing(self) -> list[Task]:
        """The runs of a list or a grid that are not in the queue yet."""
        known = {_task(trial) for trial in self._trials() if not _is_dropped(trial)}
        return [task for task in dict.fromkeys(self.plan.grid()) if task not in known]

    @contextmanager
    def queueing(self) -> Iterator[bool]:
        """Lets one worker check and queue runs at a time; gives whether this one may."""
        with _opened(self.folder / QUEUEING) as turn:
            yield lock(turn.fileno())

    def discard(self) -> None:
        """Removes the folder of a study without runs, as when all configs were rejected."""
        with self.queueing() as may_queue:
            if not may_queue or not all(_is_dropped(trial) for trial in self._trials()):
                return
            files = [self.folder / name for name in (JOURNAL, QUEUEING, DRAWING)]
            if set(self.folder.iterdir()) <= set(files):
                for file in files:
                    file.unlink(missing_ok=True)
                with suppress(OSError):  # `runs` has other files
                    os.removedirs(self.folder)

    def queue(self, task: Task) -> None:
        """Puts a run at the end of the queue."""
        self._study.enqueue_trial({}, user_attrs={"task": task.dump()})

    def has_begun(self) -> bool:
        """Whether a search has begun.

        Raises:
            ConfigError: It has begun with another space.
        """
        begun = self._study.user_attrs.get(SPACE)
        if begun not in (None, _shown_space(self.plan)):
            raise ConfigError("space", self.plan.space, f"the study was started with another space: {begun}; {ANOTHER}")
        return begun is not None

    def begin(self, first: Sequence[Mapping[str, Any]] = ()) -> None:
        """Begins a search. Its space was checked.

        Args:
            first: Points to run before the first draw, as values that `Plan.draw` is given for them.
        """
        if not self._trials():
            for drawn in first:
                self._study.enqueue_trial(dict(drawn))
        self._study.set_user_attr(SPACE, _shown_space(self.plan))

    @property
    def queued(self) -> int:
        """Number of runs that have not ended: waiting, running or interrupted."""
        return sum(trial.state in (TrialState.WAITING, TrialState.RUNNING) for trial in self._trials())

    def states(self) -> dict[str, bool]:
        """For the folder of each run in the queue, whether the run has ended."""
        trials = self._trials()
        names = _folders(trials)
        states: dict[str, bool] = {}
        for trial in trials:
            if (task := _task(trial)) is not None and not _is_dropped(trial):
                states.setdefault(names[task], trial.state.is_finished())
        return states

    def open(self, tasks: Collection[Task] | None = None) -> list[str]:
        """Folders of the runs in the queue that have not ended.

        Args:
            tasks: The runs; default all of the study.
        """
        folders = self.folders()
        wanted = set(folders.values()) if tasks is None else {folders.get(task) for task in tasks}
        return [name for name, ended in self.states().items() if not ended and name in wanted]

    def is_busy(self, tasks: Collection[Task] | None = None) -> bool:
        """Whether a process works on one of the study's runs.

        Args:
            tasks: The runs; default all of the study.
        """
        return any(not is_free(Path(self.folder, name, LOG)) for name in self.open(tasks))

    def folders(self) -> dict[Task, str]:
        """For each run that was ever in the queue, the name of its folder in the study's folder."""
        return _folders(self._trials())

    def next(self, max_runs: int | None = None) -> Claim | None:
        """Takes the next run, interrupted runs first; returns None if none is left.

        A random or TPE search ends only when every point of its space has been run.

        Args:
            max_runs: Maximum number of runs of the study.
        """
        trials = self._trials()
        if cut := self._cut(trials, max_runs):
            claim = replace(self._claim(cut[0], trials), was_cut=True)
            if trials[cut[0]].params:  # it was drawn, perhaps by a worker that ended before it queued the other seeds
                known = {_task(trial) for trial in trials}
                for seed in self.plan.seeds:
                    if (task := replace(claim.task, seed=seed)) not in known:
                        self.queue(task)
            return claim
        if max_runs is not None and self._runs(trials) >= max_runs:
            return None
        with self._drawing():
            return self._take(max_runs)

    def _take(self, max_runs: int | None) -> Claim | None:
        for _ in range(MOST_REPEATS):
            if self.plan.sampler == "grid" and not any(trial.state == TrialState.WAITING for trial in self._trials()):
                return None
            trial = self._study.ask()
            queued = _task(trial)
            try:
                tasks = [queued] if queued is not None else self._draw(trial)
            except BaseException as error:
                self.drop(trial.number)
                if isinstance(error, ValueError):  # Optuna's
                    reason = f"the study was started with another space ({error}); {ANOTHER}"
                    raise ConfigError("space", self.plan.space, reason) from error
                raise
            trials = self._trials()
            # A dropped task may be queued again, but must not be drawn again.
            earlier = [_task(t) for t in trials[: trial.number] if queued is None or not _is_dropped(t)]
            if not tasks or tasks[0] in earlier:
                self.drop(trial.number)  # another worker took the last one or queued the same; or it was drawn before
                continue
            is_too_many = max_runs is not None and self._runs(trials[: trial.number]) >= max_runs
            for task in tasks[0 if is_too_many else 1 :]:
                self.queue(task)
            if is_too_many:  # another worker took the last run that max_runs allows
                self.drop(trial.number)
                return None
            return self._claim(trial.number, trials)
        return None

    def is_open(self, number: int) -> bool:
        """Whether a run that was taken has not ended.

        Args:
            number: Number of its trial.
        """
        return self._trials()[number].state == TrialState.RUNNING

    def close(self, number: int, score: float | None = None) -> None:
        """Marks a run as ended.

        Args:
            number: Number of its trial.
            score: The result for a TPE search; None if the run has no score.
        """
        if score is None:
            self._end(number, state=TrialState.FAIL)
        else:
            self._end(number, score)

    def report(self, number: int, share: int, score: float, contest: str, pruner: BasePruner) -> bool:
        """Stores a score of a running run, and decides whether the run ends.

        Args:
            number: Number of its trial.
            share: Number of the share of its budget after which it has this score.
            score: The score.
            contest: Hash of the contest (pruning.contest_of).
            pruner: Decides.
        """
        trial_id = self._trial_id(number)
        self._storage.set_trial_user_attr(trial_id, CONTEST, contest)
        self._storage.set_trial_intermediate_value(trial_id, share, score)
        is_pruned, rungs = decide(pruner, self._trials(), number)
        self._storage.set_trial_user_attr(trial_id, RUNGS, rungs)
        return is_pruned

    def prune(self, number: int) -> None:
        """Marks a run as ended early.

        Args:
            number: Number of its trial.
        """
        self._storage.set_trial_user_attr(self._trial_id(number), ENDED_EARLY, True)
        self._end(number, state=TrialState.PRUNED)

    def drop(self, number: int) -> None:
        """Removes a trial that is not a run from the study.

        Args:
            number: Number of the trial.
        """
        self._end(number, state=TrialState.PRUNED)

    def _end(self, number: int, score: float | None = None, state: TrialState | None = None) -> None:
        with suppress(UpdateFinishedTrialError):  # by a worker that was faster, or before the database was lost
            self._study.tell(number, score, state, skip_if_finished=True)

    def _trial_id(self, number: int) -> int:
        study_id = self._storage.get_study_id_from_name(self.name)
        return self._storage.get_trial_id_from_study_id_trial_number(study_id, number)

    def _trials(self) -> list[FrozenTrial]:
        return self._study.get_trials(deepcopy=False)

    @contextmanager
    def _drawing(self) -> Iterator[None]:
        """Lets one worker draw at a time.

        A trial gets its task after it is created. A worker that ends in between leaves a trial without a task, which
        would count as a run; the next worker that draws drops it.
        """
        if self.plan.sampler == "grid":
            yield
            return
        with _turn(self.folder / DRAWING):
            for trial in self._trials():
                if trial.state == TrialState.RUNNING and _task(trial) is None:
                    self.drop(trial.number)
            yield

    def _draw(self, trial: Trial) -> list[Task]:
        """A point with each of the seeds; the trial's task is the first. Empty if there is nothing to draw."""
        if self.plan.sampler == "grid":
            return []
        config, point = self.plan.draw(trial)
        tasks = [self.plan.task(config, seed, point) for seed in self.plan.seeds]
        trial.set_user_attr("task", tasks[0].dump())
        return tasks

    def _runs(self, trials: Sequence[FrozenTrial]) -> int:
        return sum(trial.state != TrialState.WAITING and not _is_dropped(trial) for trial in trials)

    def _cut(self, trials: Sequence[FrozenTrial], max_runs: int | None) -> list[int]:
        """Numbers of the running trials on which no process works.

        Trials that another worker is about to drop are left out: duplicates, and those above max_runs.
        """
        return [
            trial.number
            for trial in trials
            if trial.state == TrialState.RUNNING
            and (task := _task(trial)) is not None
            and task not in [_task(t) for t in trials[: trial.number] if not _is_dropped(t)]
            and (max_runs is None or self._runs(trials[: trial.number]) < max_runs)
            and is_free(Path(RUNS, self._claim(trial.number, trials).experiment, LOG))
        ]

    def _claim(self, number: int, trials: Sequence[FrozenTrial]) -> Claim:
        task = _task(trials[number])
        assert task is not None
        # All workers see the same trials in the same order and therefore give a task the same name.
        tasks = list(dict.fromkeys(_task(trial) for trial in trials[: number + 1]))
        earlier = [other for other in tasks[: tasks.index(task)] if other and other.name == task.name]
        return Claim(number, task, f"{self.name}/{_folder(task, len(earlier) + 1)}")


def check_sampler_seed(seed: int) -> None:
    """Raises a ConfigError if a number is no seed of the draws."""
    if not 0 <= seed < SAMPLER_SEEDS:
        raise ConfigError("sampler_seed", seed, f"accepted: a whole number from 0 to {SAMPLER_SEEDS - 1}")


@contextmanager
def _turn(file: Path) -> Iterator[None]:
    """Lets one worker in at a time.

    Args:
        file: The file that workers lock.
    """
    with _opened(file) as turn:
        wait_for_lock(turn.fileno())
        yield


def _opened(file: Path) -> BinaryIO:
    with as_storage_error(f"{file}: it cannot be opened"):
        return open(file, "ab")


@contextmanager
def database_errors(storage: str | None) -> Iterator[None]:
    """Inside, errors of the study's database become a StorageError.

    Args:
        storage: As for Study.
    """
    try:
        yield
    except (StorageInternalError, SQLAlchemyError) as error:
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        reason = str(cause).strip().splitlines() or [type(cause).__name__]
        raise StorageError(f"storage: {_shown(storage or JOURNAL)} cannot be used ({reason[0]})") from error


def _open(storage: str | None, folder: Path) -> BaseStorage:
    if storage is None or not _is_database(storage):
        return JournalStorage(Journal(Path(storage or folder / JOURNAL)))
    try:
        return Database(storage, _shown(storage))  # type: ignore[abstract]  # its methods are made by a loop
    except ArgumentError as error:
        accepted = "accepted: a file, or a database's URL as in SQLAlchemy, such as postgresql://user@host/name"
        raise ConfigError("storage", _shown(storage), f"{error}; {accepted}") from error
    except ImportError as error:
        missing = getattr(error.__cause__, "name", None) or "the database's driver"
        raise ConfigError("storage", _shown(storage), f"{missing} is not installed; install it with pip") from error


def _is_database(storage: str | None) -> bool:
    return storage is not None and "://" in storage


def _shown(storage: str) -> str:
    """A storage for messages, without its password."""
    try:
        return make_url(storage).render_as_string(hide_password=True) if _is_database(storage) else storage
    except ArgumentError:
        return storage


def _shown_space(plan: Plan) -> str:
    return json.dumps(plan.space, default=str)


def _is_dropped(trial: FrozenTrial) -> bool:
    return trial.state == TrialState.PRUNED and ENDED_EARLY not in trial.user_attrs


def _folders(trials: Sequence[FrozenTrial]) -> dict[Task, str]:
    names: dict[Task, str] = {}
    taken: Counter[str] = Counter()
    for trial in trials:
        if (task := _task(trial)) is not None and task not in names:
            taken[task.name] += 1
            names[task] = _folder(task, taken[task.name])
    return names


def _folder(task: Task, number: int) -> str:
    """Name of the folder of the first, second, … task with a name."""
    return task.name if number == 1 else f"{task.name},{number}"


def _task(trial: FrozenTrial | Trial) -> Task | None:
    text = trial.user_attrs.get("task")
    return None if text is None else Task.load(text)
