"""Study: the queue of runs, kept by Optuna.

Every run is a trial. Those of a list or a grid are queued in order; those of a random or a TPE search are drawn one by
one. The queue is a journal file in the study's folder, or any storage of Optuna's that several machines share: each
worker takes its next trial from there. What became of the runs is not read from it, but from their folders.

A run holds a lock on its log as long as it lives. A trial that is under way without such a lock was cut, and whoever
comes next goes on with it.
"""

import hashlib
import itertools
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import optuna
import yaml
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, Trial, TrialState

from bytelm.config.base import files_of
from bytelm.config.text import dump
from bytelm.errors import ConfigError
from bytelm.experiments.job import LOG
from bytelm.runs.folder import RUNS, is_free

JOURNAL = "study.journal"
RANGE = {"low", "high", "log", "step"}
LONGEST_NAME = 120  # of a folder
MOST_REPEATS = 100  # draws in a row that were drawn before: then the space is taken to be used up
Sampler = Literal["grid", "random", "tpe"]


@dataclass(frozen=True)
class Task:
    """What one run is: plain values, so that a task that comes twice is known by being equal.

    Attributes:
        config: Config file.
        content: Hash of what the file and its bases say: another content is another run.
        options: Further options.
        seed: None for the config's own.
        point: Values of the keys that are searched, as the command line takes them.
    """

    config: str
    content: str
    options: tuple[str, ...] = ()
    seed: int | None = None
    point: tuple[tuple[str, str], ...] = ()

    @property
    def fit_options(self) -> list[str]:
        """What follows `python -m bytelm fit`."""
        options = ["--config", self.config, *self.options]
        for key, value in self.point:
            options += [f"--{key}", value]
        return options if self.seed is None else [*options, "--seed_everything", str(self.seed)]

    @property
    def name(self) -> str:
        """Name of the experiment: of the config, with what is searched and the seed."""
        parts = [Path(self.config).stem, *(f"{key.rpartition('.')[2]}={value}" for key, value in self.point)]
        seed = "" if self.seed is None else f",seed={self.seed}"
        return re.sub(r"[^\w.,=+-]+", "_", ",".join(parts))[: LONGEST_NAME - len(seed)] + seed

    def dump(self) -> str:
        return json.dumps(vars(self))

    @classmethod
    def load(cls, text: str) -> "Task":
        values = json.loads(text)
        return cls(**{**values, "options": tuple(values["options"]), "point": tuple(map(tuple, values["point"]))})


@dataclass(frozen=True)
class Plan:
    """What is to be run.

    Args:
        configs: Config files; each is an experiment.
        options: Further options, the same for all.
        seeds: Each experiment is run with each of them; None stands for the config's own.
        space: For each key that is searched a list of values, or a range {low, high, log, step}.
        sampler: How points of the space are chosen.

    Raises:
        ConfigError: A space that cannot be searched, or a config that cannot be read.
    """

    configs: Sequence[str]
    options: Sequence[str] = ()
    seeds: Sequence[int | None] = (None,)
    space: Mapping[str, Any] | None = None
    sampler: Sampler = "grid"

    def __post_init__(self) -> None:
        for key, values in (self.space or {}).items():
            if isinstance(values, Mapping):
                self._check_range(f"space.{key}", dict(values))
            elif not isinstance(values, list) or not values:
                raise ConfigError(f"space.{key}", values, "accepted: a list of values, or {low: …, high: …}")
        if self.sampler != "grid" and not self.space:
            raise ConfigError("sampler", self.sampler, "it draws from a space, and there is none; accepted: grid")

    def _check_range(self, key: str, values: dict[str, Any]) -> None:
        numbers = [values.get("low"), values.get("high"), values.get("step", 1)]
        known = set(values) <= RANGE and isinstance(values.get("log", False), bool)
        if not known or not all(map(_is_number, numbers)):
            raise ConfigError(key, values, "accepted: {low: 1e-4, high: 1e-2}, with log: true or a step, if need be")
        if values.get("step", 1) <= 0:
            raise ConfigError(key, values, "accepted: a step above 0")
        if values["low"] >= values["high"]:
            raise ConfigError(key, values, "accepted: a low that is below high")
        if values.get("log") and (values["low"] <= 0 or "step" in values):
            raise ConfigError(key, values, "accepted with log: true: a low above 0, and no step")
        if self.sampler == "grid":
            raise ConfigError(key, values, "a grid takes a list of values; accepted also: --sampler random or tpe")

    def grid(self) -> list[Task]:
        """All runs of a list or a grid. Seeds come last: everything is run once before anything is run again."""
        space = self.space or {}
        points = [tuple(zip(space, map(as_text, values), strict=True)) for values in itertools.product(*space.values())]
        return [self.task(config, seed, point) for seed in self.seeds for config in self.configs for point in points]

    def task(self, config: str, seed: int | None, point: tuple[tuple[str, str], ...]) -> Task:
        try:
            said: Any = [yaml.safe_load(file.read_text(encoding="utf-8")) for file in files_of(config)]
            said = said[0] if len(said) == 1 else said  # without a base the hash is that of earlier versions
        except (OSError, ValueError, yaml.YAMLError) as error:
            said = str(error)  # the check of the run reports it
        content = hashlib.sha256(json.dumps(said, sort_keys=True, default=str).encode()).hexdigest()[:16]
        return Task(config, content, tuple(self.options), seed, point)

    def draw(self, trial: Trial) -> tuple[str, tuple[tuple[str, str], ...]]:
        """A config and a point of the space, of the sampler's choice."""
        config = self.configs[0]
        if len(self.configs) > 1:
            config = str(trial.suggest_categorical("config", list(self.configs)))
        point = []
        for key, values in (self.space or {}).items():
            if isinstance(values, list):
                value: Any = trial.suggest_categorical(key, [as_text(value) for value in values])
            elif all(isinstance(number, int) for number in values.values()):
                value = trial.suggest_int(key, **values)
            else:
                value = trial.suggest_float(key, **values)
                short = float(f"{value:.{12 if 'step' in values else 4}g}")
                value = short if values["low"] <= short <= values["high"] else value
            point.append((key, as_text(value)))
        return config, tuple(point)


@dataclass(frozen=True)
class Claim:
    """A run that this process has taken from the queue.

    Attributes:
        number: Of the trial.
        task: What to run.
        experiment: Its folder in runs/.
    """

    number: int
    task: Task
    experiment: str


class Study:
    """The queue.

    Args:
        name: Name of the study, and of its folder in runs/.
        storage: A file or a database's URL; default a file in the study's folder.
        plan: What is to be run.
        sampler_seed: Of the draws.
    """

    def __init__(self, name: str, plan: Plan, storage: str | None = None, sampler_seed: int | None = None) -> None:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.name = name
        self.plan = plan
        self.folder = Path(RUNS, name)
        self.folder.mkdir(parents=True, exist_ok=True)
        kept: BaseStorage
        if storage is not None and "://" in storage:
            kept = RDBStorage(storage)
        else:
            # Absolute: Optuna's lock is a link to it, and one that leads nowhere would never be taken for stale.
            kept = JournalStorage(JournalFileBackend(str(Path(storage or self.folder / JOURNAL).absolute())))
        sampler = optuna.samplers.TPESampler if plan.sampler == "tpe" else optuna.samplers.RandomSampler
        self._study = optuna.create_study(study_name=name, storage=kept, load_if_exists=True)
        if sampler_seed is not None:  # a study that goes on is not to draw again what it has drawn
            sampler_seed += len(self._trials())
        self._study.sampler = sampler(seed=sampler_seed)

    def missing(self) -> list[Task]:
        """What of a list or a grid is not in the queue yet."""
        known = {_task(trial) for trial in self._trials() if trial.state != TrialState.PRUNED}
        return [task for task in dict.fromkeys(self.plan.grid()) if task not in known]

    def queue(self, task: Task) -> None:
        """Puts a run at the end of the queue."""
        self._study.enqueue_trial({}, user_attrs={"task": task.dump()})

    @property
    def queued(self) -> int:
        """Runs that are not done yet: waiting, under way, or cut."""
        return sum(trial.state in (TrialState.WAITING, TrialState.RUNNING) for trial in self._trials())

    def next(self, max_runs: int | None = None) -> Claim | None:
        """Takes the next run, of those that were cut first; None if nothing is left.

        A search that draws has no end of its own, but for a space of which every point has been run.

        Args:
            max_runs: How many runs the study may have.
        """
        trials = self._trials()
        if cut := self._cut(trials, max_runs):
            claim = self._claim(cut[0], trials)
            if trials[cut[0]].params:  # it was drawn, and perhaps cut before its other seeds were queued
                known = {_task(trial) for trial in trials}
                for seed in self.plan.seeds:
                    if (task := replace(claim.task, seed=seed)) not in known:
                        self.queue(task)
            return claim
        if max_runs is not None and self._runs(trials) >= max_runs:
            return None
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
                    reason = f"the study began with another space ({error}); accepted: that, or another --study"
                    raise ConfigError("space", self.plan.space, reason) from error
                raise
            trials = self._trials()
            # What was dropped may be queued again, but is not to be drawn again.
            earlier = [_task(t) for t in trials[: trial.number] if queued is None or t.state != TrialState.PRUNED]
            if not tasks or tasks[0] in earlier:
                self.drop(trial.number)  # another worker took the last one, or queued the same; or it was drawn before
                continue
            is_too_many = max_runs is not None and self._runs(trials[: trial.number]) >= max_runs
            for task in tasks[0 if is_too_many else 1 :]:
                self.queue(task)
            if is_too_many:  # another worker took the last one that was allowed
                self.drop(trial.number)
                return None
            return self._claim(trial.number, trials)
        return None

    def close(self, number: int, score: float | None = None) -> None:
        """Marks a run as ended.

        Args:
            number: Of its trial.
            score: What a TPE search learns from; None if it has none.
        """
        if score is None:
            self._study.tell(number, state=TrialState.FAIL, skip_if_finished=True)
        else:
            self._study.tell(number, score, skip_if_finished=True)

    def drop(self, number: int) -> None:
        """Takes out of the study what turned out to be no run.

        Args:
            number: Of its trial.
        """
        self._study.tell(number, state=TrialState.PRUNED, skip_if_finished=True)

    def _trials(self) -> list[FrozenTrial]:
        return self._study.get_trials(deepcopy=False)

    def _draw(self, trial: Trial) -> list[Task]:
        """A point, with each of the seeds; the trial's task is the first. Nothing where there is nothing to draw."""
        if self.plan.sampler == "grid":
            return []
        config, point = self.plan.draw(trial)
        tasks = [self.plan.task(config, seed, point) for seed in self.plan.seeds]
        trial.set_user_attr("task", tasks[0].dump())
        return tasks

    def _runs(self, trials: Sequence[FrozenTrial]) -> int:
        return sum(trial.state in (TrialState.RUNNING, TrialState.COMPLETE, TrialState.FAIL) for trial in trials)

    def _cut(self, trials: Sequence[FrozenTrial], max_runs: int | None) -> list[int]:
        """Numbers of the trials that are under way without a process that is at work on them.

        Less those that another worker is about to give back: queued twice, or one too many.
        """
        return [
            trial.number
            for trial in trials
            if trial.state == TrialState.RUNNING
            and (task := _task(trial)) is not None
            and task not in [_task(t) for t in trials[: trial.number] if t.state != TrialState.PRUNED]
            and (max_runs is None or self._runs(trials[: trial.number]) < max_runs)
            and is_free(Path(RUNS, self._claim(trial.number, trials).experiment, LOG))
        ]

    def _claim(self, number: int, trials: Sequence[FrozenTrial]) -> Claim:
        task = _task(trials[number])
        assert task is not None
        # All workers see the same trials in the same order, and so give the same task the same name whenever it comes.
        tasks = list(dict.fromkeys(_task(trial) for trial in trials[: number + 1]))
        namesakes = [other for other in tasks[: tasks.index(task)] if other and other.name == task.name]
        name = f"{task.name},{len(namesakes) + 1}" if namesakes else task.name
        return Claim(number, task, f"{self.name}/{name}")


def _task(trial: FrozenTrial | Trial) -> Task | None:
    text = trial.user_attrs.get("task")
    return None if text is None else Task.load(text)


def as_text(value: Any) -> str:
    """A value as the command line takes it."""
    return value if isinstance(value, str) else dump(value, in_one_line=True)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
