"""The runs of a plan: those in its study's queue, and what the completed ones measured."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from bytelm.experiments.study import Study
from bytelm.experiments.task import Plan, Point, Task
from bytelm.runs.ledger import read_runs
from bytelm.runs.record import wall_time
from bytelm.runs.score import Score, score_of
from bytelm.units import Duration

LIMIT = "time_budget.limit"
WHOLE = 0.999  # of the budget: runs that were given more count as whole


class PlannedRun(NamedTuple):
    """A run that is in the queue, or is to be.

    Attributes:
        candidate: Its options.
        share: Share of the whole budget that it is given.
    """

    candidate: Point
    share: float

    @property
    def is_whole(self) -> bool:
        """Whether it is given the whole budget."""
        return self.share > WHOLE


@dataclass(frozen=True)
class Measured:
    """A completed run.

    Attributes:
        candidate: Its options.
        share: Share of the whole budget that it was given.
        params: Number of its parameters.
        tokens: Tokens it was trained on.
        steps: Steps it was trained for.
        score: Its score.
        seconds: Time of its process.
        training_seconds: Time of its training.
        folder: Its folder.
        unique: Tokens of its text; None if they are not known.
    """

    candidate: Point
    share: float
    params: float
    tokens: float
    steps: int
    score: float
    seconds: float = 0.0
    training_seconds: float = 0.0
    folder: str = ""
    unique: float | None = None

    @property
    def is_whole(self) -> bool:
        """Whether it was given the whole budget."""
        return self.share > WHOLE


@dataclass(frozen=True)
class Standing:
    """The runs of a plan at one moment.

    Attributes:
        queued: All that were ever in the queue.
        open: Those of them that have not ended.
        measured: The completed ones.
        seconds: Time of the processes of all that have ended.
        score: The score of the completed ones.
    """

    queued: Sequence[PlannedRun]
    open: Sequence[PlannedRun]
    measured: Sequence[Measured]
    seconds: float
    score: Score


@dataclass(frozen=True)
class Chosen(Plan):
    """A plan of a study whose runs are given.

    Attributes:
        runs: The point of each, with its limit.
    """

    runs: tuple[Point, ...] = ()

    def grid(self) -> list[Task]:
        return [self.task(self.configs[0], None, point) for point in self.runs]


class PlanRuns:
    """The runs of a plan.

    Args:
        study: The study that has them.
        config: Config file.
        candidates: Options of each candidate.
        budget: The whole budget.
        storage: The study's queue, as in `Study`.
    """

    def __init__(
        self, study: Study, config: str, candidates: Sequence[Point], budget: Duration, storage: str | None = None
    ) -> None:
        self.study = study
        self.budget = budget
        self._config = config
        self._candidates = set(candidates)
        self._storage = storage

    def study_of(self, runs: Sequence[PlannedRun]) -> Study:
        """The plan's study, with these runs to be queued."""
        points = tuple((*run.candidate, (LIMIT, str(part_of(self.budget, run.share)))) for run in runs)
        return Study(self.study.name, Chosen([self._config], self.study.plan.options, runs=points), self._storage)

    def queued(self) -> dict[str, PlannedRun]:
        """For the folder of each run of the plan that was ever in the queue, the run."""
        found = {}
        for task, name in self.study.folders().items():
            candidate, limits = task.point[:-1], dict(task.point[-1:])
            # The plan's own task has the hash of the configs and classes that the candidate names.
            own = self.study.plan.task(self._config, None, task.point)
            if candidate in self._candidates and LIMIT in limits and task == own:
                found[name] = PlannedRun(candidate, Duration.parse(limits[LIMIT]).value / self.budget.value)
        return found

    def standing(self) -> Standing:
        """The runs as they are now."""
        queued = self.queued()
        known = {run.experiment: run for run in read_runs(self.study.folder)}
        ended = {name: wall_time(run.record) for name, run in known.items() if run.status != "running"}
        completed = {
            name: run.record
            for name, run in known.items()
            if name in queued and run.status == "completed" and run.record.get("tokens_seen")
        }
        score = score_of(completed.values())
        measured = [
            _measured(run, completed[name], value, str(known[name].folder))
            for name, run in queued.items()
            if name in completed and (value := score.of(completed[name])) is not None
        ]
        open_runs = [run for name, run in queued.items() if name not in ended]
        return Standing(list(queued.values()), open_runs, measured, sum(ended.values()), score)


def _measured(run: PlannedRun, record: Mapping[str, Any], score: float, folder: str) -> Measured:
    corpus = record.get("corpus") or {}
    return Measured(
        candidate=run.candidate,
        share=run.share,
        params=record["num_params_M"] * 1e6,
        tokens=float(record["tokens_seen"]),
        steps=record["total_steps"],
        score=score,
        seconds=wall_time(record),
        training_seconds=record["training_time_secs"],
        folder=folder,
        unique=(corpus.get("tokens") or {}).get("train") or corpus.get("bytes"),  # bytes include those for validation
    )


def part_of(budget: Duration, share: float) -> Duration:
    """The limit of a run that is given a share of the budget."""
    if share == 1:
        return budget
    value = budget.value * share
    is_counted = budget.unit in ("steps", "tokens")
    return Duration(float(max(round(value), 1)) if is_counted else float(f"{value:.6g}"), budget.unit)
