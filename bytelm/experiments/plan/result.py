"""The result of a plan: for each candidate the score of its whole run or a prediction, and which one is recommended."""

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from bytelm.experiments.plan.budget_law import BudgetLaw
from bytelm.experiments.plan.choice import LEAST_RUNS, fitted
from bytelm.experiments.plan.coordinates import Coordinates
from bytelm.experiments.plan.runs import Measured, Standing, part_of
from bytelm.experiments.plan.surface import NOISE, Surface
from bytelm.experiments.task import Point
from bytelm.runs.score import Score
from bytelm.units import Duration

UNTRIED = 3  # candidates without a run that are shown


@dataclass(frozen=True)
class Prediction:
    """The run of a candidate within the whole budget: a predicted one, or one that was made.

    Attributes:
        candidate: Its options.
        score: Its predicted score, or the one that it reached.
        interval: 95 % interval of the score: for a predicted one that of the surface, otherwise that of another seed.
        longest: The longest run that was made of it; None if there is none.
    """

    candidate: Point
    score: float
    interval: tuple[float, float]
    longest: Measured | None

    @property
    def is_reached(self) -> bool:
        """Whether a run within the whole budget was made."""
        return self.longest is not None and self.longest.is_whole


class Result:
    """What the runs of a plan say.

    Args:
        coordinates: All candidates.
        budget: The whole budget.
        standing: The runs.
        rejected: Candidates that cannot run.

    Raises:
        ValueError: There are too few.
    """

    def __init__(
        self, coordinates: Coordinates, budget: Duration, standing: Standing, rejected: Collection[Point] = ()
    ) -> None:
        self.coordinates = coordinates
        self.budget = budget
        self.rejected = rejected
        self.measured: Sequence[Measured] = standing.measured
        self.score: Score = standing.score
        surface = fitted(coordinates, self.measured)
        if surface is None:
            raise ValueError(
                f"{len(self.measured)} completed runs are too few for a prediction, which needs {LEAST_RUNS}"
            )
        self.surface: Surface = surface
        self.law: BudgetLaw | None = None
        self.no_law = ""
        columns = zip(
            *((one.params, one.tokens, one.share, one.score, one.unique) for one in self.measured), strict=True
        )
        try:
            self.law = BudgetLaw.fit(*columns)
        except ValueError as error:
            self.no_law = str(error)

    def limit(self, share: float) -> str:
        """A share of the budget as text."""
        return str(part_of(self.budget, share))

    @cached_property
    def predictions(self) -> list[Prediction]:
        """For each candidate that can run the prediction, or what its whole run reached; the best first."""
        longest: dict[Point, Measured] = {}
        for one in sorted(self.measured, key=lambda one: one.share):
            longest[one.candidate] = one
        found = []
        coordinates = self.coordinates
        for candidate, mean, deviation in zip(
            coordinates.candidates, *self.surface.predict(coordinates.points), strict=True
        ):
            if candidate in self.rejected:
                continue
            run = longest.get(candidate)
            if run is not None and run.is_whole:
                score, half = run.score, math.exp(1.96 * math.sqrt(2) * NOISE)  # of the difference between two seeds
            else:
                score, half = math.exp(mean), math.exp(1.96 * math.hypot(deviation, NOISE))
            found.append(Prediction(candidate, score, (score / half, score * half), run))
        return sorted(found, key=lambda one: one.score)

    @cached_property
    def best(self) -> Prediction:
        """The recommended candidate: the best of the whole runs; without any, the best prediction of one with a run."""
        tried = [one for one in self.predictions if one.longest is not None]
        return next((one for one in tried if one.is_reached), tried[0])

    @property
    def run(self) -> str | None:
        """Folder of the recommended candidate's whole run; None if there is none."""
        return self.best.longest.folder if self.best.longest is not None and self.best.is_reached else None

    @cached_property
    def shown(self) -> list[Prediction]:
        """The candidates with a run, and a few of the best ones without, that are not nearly the same as others."""
        tried = [one for one in self.predictions if one.longest is not None]
        untried: list[Prediction] = []
        places = {candidate: place for place, candidate in enumerate(self.coordinates.candidates)}
        is_near = np.any([self.coordinates.near(one.candidate) for one in tried], axis=0)
        for one in self.predictions:
            if len(untried) < UNTRIED and not is_near[places[one.candidate]]:
                untried.append(one)
                is_near |= self.coordinates.near(one.candidate)
        return sorted([*tried, *untried], key=lambda one: one.score)

    def figures(self) -> dict[str, Any]:
        """All figures, for plan.json."""
        return {
            "limit": str(self.budget),
            "score": self.score.name,
            "recommended": dict(self.best.candidate),
            "run": self.run,
            "predictions": [
                {
                    "candidate": dict(one.candidate),
                    "score": one.score,
                    "interval": one.interval,
                    "longest": None if one.longest is None else one.longest.share,
                    "is_reached": one.is_reached,
                }
                for one in self.shown
            ],
            "runs": [{**vars(one), "candidate": dict(one.candidate)} for one in self.measured],
            "law": {"reason": self.no_law} if self.law is None else self.law.figures(self.limit),
        }
