"""`python -m bytelm plan`: which config fits a budget on this machine, from a few short and whole runs.

A few candidates, spread over the space, are first trained within a small share of the budget, with their whole
schedules. A surface of the loss over the options and the budget (surface.py) is fitted to these runs. The candidate
with the best prediction is then trained within the whole budget, the surface is fitted again, and so on as far as the
time allows. The recommended candidate is the best of these whole runs. All runs are those of a study, so the same
command continues after it was cut. A law of the loss in parameters and tokens (plan_law.py) is reported beside it.
"""

import itertools
import json
import math
import os
import shlex
import statistics
import sys
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from scipy.stats import qmc

from bytelm.config import shipped
from bytelm.config.command import CommandParser
from bytelm.config.flat import flat
from bytelm.config.messages import note
from bytelm.config.text import dump
from bytelm.errors import ConfigError, StorageError
from bytelm.experiments.check import Checker
from bytelm.experiments.plan_law import PlanLaw, markdown, page
from bytelm.experiments.report.plots import save
from bytelm.experiments.runner import Runner
from bytelm.experiments.space_check import check_space
from bytelm.experiments.study import SAMPLER_SEEDS, Study
from bytelm.experiments.surface import NOISE, Coordinates, Surface
from bytelm.experiments.task import IN_SPACE, Plan, Point, Task, as_text, check_options, read_space
from bytelm.experiments.text_table import aligned
from bytelm.runs.ledger import read_runs
from bytelm.runs.record import wall_time
from bytelm.runs.score import Score, score_of
from bytelm.system.files import replacing
from bytelm.units import Duration, accepted_forms

LIMIT = "time_budget.limit"
WIDTH, D_FF, RATE = "model.gpt.d_model", "model.gpt.d_ff", "model.optimizer.lr"
WIDTHS = (0.5, 0.7, 1.0, 1.4, 2.0)  # of the config's width
SHORT_RUNS = 0.11  # of the time of all runs: the training time of the first short ones
LONGEST_SHORT = 1 / 4  # of the budget
RUNS_PER_KEY = 2  # first short runs
LEAST_SHORT, MOST_SHORT = 4, 12
SPREAD = 0.8  # of the ranges: the part in which the first short runs are
MOST_CANDIDATES = 1024  # of a space with ranges
CAUTION = 0.5  # standard deviations that are taken off a prediction: candidates of which little is known are tried
APART = 0.12  # least difference of an option of two whole runs, of a range of 2
WHOLE = 0.999  # of the budget: runs that were given more count as whole
WITHOUT_SAMPLES = ["--samples.max_new_tokens", "0"]  # before the user's options; a sample takes up to a second
LOOK_SECONDS = 1.0  # between two looks at the runs of other workers
FEW_STEPS = 100  # of a run; shorter ones are mostly warm-up
LEAST_RUNS = 2  # completed, for a prediction
PARTS = 16  # of the picture's lines
SHOWN = 3  # candidates without a run in the table
WITHIN = 5.0  # default of --within, in budgets
FAILED = 1.1  # loss of a failed run, beside its prediction
MARGIN = 1.01  # of the expected time of a whole run

UNKNOWN = """\
- Only the options of the space vary. Everything else is that of the config.
- A score that was reached is that of one seed; its interval is the noise of seeds. It says nothing of candidates that
  had no whole run.
- The other scores are predictions of a quadratic surface that is fitted to all runs. They serve to choose the next
  run. Their interval contains what the runs leave open and the noise of one run, not an error of the surface's form.
- The best whole run is near the best of the space, not at it: a handful of runs do not settle differences of 1 to 3 %.
- A text that whole runs read several times is read less often in short ones. Repeated tokens teach less (Muennighoff et
  al. 2023, arXiv:2305.16264), and a network that memorises its text becomes worse: trust whole runs only.
- The speed is that of this machine under its load during the runs."""


@dataclass(frozen=True)
class Rounds(Plan):
    """A plan whose runs are given: points with a limit each.

    Attributes:
        runs: The points, each with its limit.
    """

    runs: tuple[Point, ...] = ()

    def grid(self) -> list[Task]:
        return [self.task(self.configs[0], None, point) for point in self.runs]


@dataclass(frozen=True)
class Measured:
    """A run of a candidate.

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

    def expected(self) -> float:
        """Time of a run of this candidate within the whole budget, in seconds."""
        return MARGIN * self.training_seconds / self.share + self.seconds - self.training_seconds


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


def plan(
    config: str,
    options: list[str],
    limit: Duration | None = None,
    within: Duration | None = None,
    space: dict[str, Any] | list[Any] | str | None = None,
    sampler_seed: int = 0,
    study: str | None = None,
    storage: str | None = None,
) -> str:
    """Plans a run.

    Args:
        config: Config file that the candidates differ from.
        options: Options that are added to every run's command line.
        limit: The budget to plan for: a time, steps, tokens or FLOPs. Default: that of the config.
        within: Time limit of all runs of the plan together. Default: five times the budget if it is a time; otherwise
            none.
        space: The candidates: for each key a list of values or a range, as in `experiments`: `{model.gpt.d_model: [64,
            96, 128], model.optimizer.lr: {low: 1e-3, high: 1e-2, log: true}}`; or a YAML file with these; or a list of
            candidates: `[{model.gpt.d_model: 64, model.gpt.d_ff: 192}, {model.gpt.d_model: 96, model.gpt.d_ff: 384}]`.
            With d_model and without d_ff, d_ff stays in the config's proportion to it. Default: half to twice the
            config's width and layers, and a quarter to four times its rate.
        sampler_seed: Seed of the choice of the first runs. The same command continues with the same one.
        study: Name of the study with the runs. Default: `plan-` and the name of the config.
        storage: The queue of several workers, as in `experiments`.

    Returns:
        The result, as text.

    Raises:
        ConfigError: A value cannot be used, or a config cannot run.
        StorageError: Too few runs were made, or a file cannot be written.
    """
    config = shipped.resolved(config)
    if not Path(config).is_file():
        raise ConfigError("config", config, f"there is no such file and {shipped.missing(config)}")
    if within is not None and (within.unit != "seconds" or not within.value):
        raise ConfigError("within", str(within), accepted_forms("seconds"))
    if not 0 <= sampler_seed < SAMPLER_SEEDS:
        raise ConfigError("sampler_seed", sampler_seed, f"accepted: a whole number from 0 to {SAMPLER_SEEDS - 1}")
    of_candidates = read_space(space)
    keys = _keys(of_candidates)
    if LIMIT in keys:
        raise ConfigError(f"space.{LIMIT}", keys[LIMIT], "a plan is for one limit; accepted: --time_budget.limit 180s")
    given_twice = {} if limit is None else {LIMIT: "it is also given before --"}
    check_options(options, {**dict.fromkeys(keys, IN_SPACE), **given_twice})
    resolved = _resolved(config, options, of_candidates)
    budget = limit or _only_limit(resolved)
    if budget.unit == "fraction" or not budget.value:
        raise ConfigError("limit", str(budget), "accepted: a time, steps, tokens or FLOPs")
    if within is None and budget.unit == "seconds":
        within = Duration(WITHIN * budget.value, "seconds")
    known = flat(resolved)
    if of_candidates is None:
        of_candidates = _around(known)
    candidates = _candidates(of_candidates, known, sampler_seed)
    name = study or f"plan-{Path(config).stem}"
    queue = Study(name, Plan([config], [*WITHOUT_SAMPLES, *options]), storage)
    planner = Planner(config, options, budget, candidates, _keys(of_candidates), queue, sampler_seed)
    planner.measure(within, storage)
    return planner.write()


class Planner:
    """Makes the runs, and predicts from them.

    Args:
        config: Config file.
        options: Further options of all runs.
        budget: The budget to plan for.
        candidates: Options of each candidate.
        keys: The options that are chosen; others of a candidate follow from these.
        study: The study with the runs.
        seed: Seed of the choice of the first runs.
    """

    def __init__(
        self,
        config: str,
        options: Sequence[str],
        budget: Duration,
        candidates: Sequence[Point],
        keys: Collection[str],
        study: Study,
        seed: int = 0,
    ) -> None:
        self.config = config
        self.options = list(options)
        self.budget = budget
        self.candidates = list(candidates)
        self.coordinates = Coordinates(self.candidates, keys)
        self.points = self.coordinates.of(self.candidates)
        self.study = study
        self.seed = seed
        self.score: Score = score_of([])
        self._rejected: set[Point] = set()

    def measure(self, within: Duration | None, storage: str | None = None) -> None:
        """Makes the first short runs, then one run after another, as far as the time allows.

        Several workers wait for each other's first runs only.

        Args:
            within: Time limit of all runs together.
            storage: As for `plan`.

        Raises:
            ConfigError: No candidate can run.
        """
        first = self.first()
        short = self._short_limit(within, len(first))
        made = [(*candidate, (LIMIT, str(short))) for candidate in first]
        queue, runner = self._worker(made, within, storage)
        print(f"plan: {len(self.candidates)} candidates; {len(made)} of them {short} each", file=sys.stderr, flush=True)
        runner.work()
        first_runs = queue.plan.grid()
        while queue.is_busy(first_runs):  # another worker's run is part of what the next ones are chosen by
            time.sleep(LOOK_SECONDS)
            runner.work()  # in case that worker was killed
        rejected = [outcome for outcome in runner.outcomes if outcome.status == "rejected"]
        if len(rejected) == len(made):
            raise ConfigError("space", self.config, f"no candidate can run: {rejected[0].reason}")
        if queue.open(first_runs):
            note(f"--within {within} is used up; the same command with more time continues")
            return
        while True:
            if (chosen := self.next_run(within, short)) is not None:
                made.append(chosen)
                *candidate, (_, limit) = chosen
                print(f"plan: {_text(tuple(candidate))}, {limit}", file=sys.stderr, flush=True)
                runner = self._worker(made, None, storage)[1]
                runner.work()  # nothing, if another worker has just chosen the same
                if any(outcome.status == "rejected" for outcome in runner.outcomes):
                    self._rejected.add(tuple(candidate))
            elif queue.is_busy():
                time.sleep(LOOK_SECONDS)
            else:
                return

    def _worker(self, runs: Sequence[Point], within: Duration | None, storage: str | None) -> tuple[Study, Runner]:
        queue = Study(self.study.name, Rounds([self.config], self.study.plan.options, runs=tuple(runs)), storage)
        return queue, Runner(queue, None, within)

    def first(self) -> list[Point]:
        """The candidates of the first short runs: all if there are few, otherwise some that are spread over the space.

        They are those nearest to a Latin hypercube.
        """
        keys = len(self.coordinates.names)
        number = min(max(LEAST_SHORT, RUNS_PER_KEY * keys), MOST_SHORT)
        if len(self.candidates) <= number:
            return self.candidates
        wanted = qmc.LatinHypercube(keys, optimization="random-cd", seed=self.seed).random(number)
        chosen: list[int] = []
        for point in SPREAD * (2 * wanted - 1):
            far = np.abs(self.points - point).sum(1)
            far[chosen] = np.inf
            chosen.append(int(far.argmin()))
        return [self.candidates[place] for place in chosen]

    def _short_limit(self, within: Duration | None, number: int) -> Duration:
        """The budget of the short runs: that of a command that is continued, or what fits into a part of the time."""
        if begun := [share for _, share in self._tasks().values() if share < WHOLE]:
            return self._limit(min(begun))
        budgets = WITHIN
        if within is not None and self.budget.unit == "seconds":
            budgets = within.value / self.budget.value
        share = min(SHORT_RUNS * budgets / number, LONGEST_SHORT)
        return self._limit(float(f"{share * self.budget.value:.2g}") / self.budget.value)

    def next_run(self, within: Duration | None, short: Duration) -> Point | None:
        """The next run: that of the best prediction that has had none.

        It is given the whole budget, unless the time for a short one is left over by the whole runs that fit.

        Args:
            within: Time limit of all runs together. None: they are given five budgets together.
            short: The budget of a short run.

        Returns:
            The candidate with its limit; None if no whole run fits, or none is likely to be better than the best one.
        """
        measured = self.measured()
        tasks = self._tasks()
        ended = {
            run.experiment: wall_time(run.record) for run in read_runs(self.study.folder) if run.status != "running"
        }
        open_runs = [task for name, task in tasks.items() if name not in ended]
        if (surface := self._surface(measured, open_runs, tasks.values())) is None:
            return None
        if within is None:
            whole, a_short = 1.0, short.value / self.budget.value
            left = WITHIN - sum(share for _, share in tasks.values())
        else:
            whole = max(
                statistics.median(one.expected() for one in measured),
                max((one.seconds for one in measured if one.is_whole), default=0.0),
            )
            a_short = statistics.fmean([one.seconds for one in measured if not one.is_whole] or [whole])
            to_come = sum(whole if share > WHOLE else a_short for _, share in open_runs)
            left = within.value - sum(ended.values()) - to_come
        if left < whole:
            return None
        begun = {candidate for candidate, share in tasks.values() if share > WHOLE}
        tried = {candidate for candidate, _ in tasks.values()}
        is_short = not begun and left % whole >= a_short and len(tried | self._rejected) < len(self.candidates)
        excluded = tried if is_short else begun
        means, deviations = surface.predict(self.points)
        worth = means - CAUTION * deviations
        for point in self.coordinates.of(list(excluded)):
            worth[(np.abs(self.points - point) < APART).all(1)] = np.inf
        worth[[self.candidates.index(candidate) for candidate in excluded | self._rejected]] = np.inf
        place = int(worth.argmin())
        best = min((math.log(one.score) for one in measured if one.is_whole), default=math.inf)
        lowest = means[place] - 1.96 * math.hypot(deviations[place], NOISE)
        if worth[place] == np.inf or lowest >= best:
            return None
        return (*self.candidates[place], (LIMIT, str(short if is_short else self.budget)))

    def _surface(
        self,
        measured: Sequence[Measured],
        open_runs: Collection[tuple[Point, float]] = (),
        tasks: Collection[tuple[Point, float]] = (),
    ) -> Surface | None:
        """The surface that is fitted to runs; None if there are too few.

        Runs that have not ended count as they are predicted, so that another worker chooses other ones, and runs that
        failed as worse than predicted.
        """
        if len(measured) < LEAST_RUNS:
            return None
        names = self.coordinates.names
        points = self.coordinates.of([one.candidate for one in measured])
        shares, losses = [one.share for one in measured], [one.score for one in measured]
        surface = Surface.fit(names, points, shares, losses)
        others = [task for task in tasks if not any(task == (one.candidate, one.share) for one in measured)]
        if not others:
            return surface
        for candidate, share in others:
            at = self.coordinates.of([candidate])
            loss = math.exp(surface.predict(at, share)[0][0]) * (1.0 if (candidate, share) in open_runs else FAILED)
            points, shares, losses = np.concatenate([points, at]), [*shares, share], [*losses, loss]
        return Surface.fit(names, points, shares, losses)

    def _limit(self, share: float) -> Duration:
        value = self.budget.value * share
        whole = self.budget.unit in ("steps", "tokens")
        return Duration(float(max(round(value), 1)) if whole else float(f"{value:.6g}"), self.budget.unit)

    def _named(self, share: float) -> str:
        return str(self.budget if share == 1 else self._limit(share))

    def _tasks(self) -> dict[str, tuple[Point, float]]:
        """For the folder of each run of the plan, the candidate and the share of the budget that it is given."""
        found = {}
        for task, name in self.study.folders().items():
            candidate, limits = task.point[:-1], dict(task.point[-1:])
            if candidate in self.candidates and LIMIT in limits and task == self._task(task.point):
                found[name] = (candidate, Duration.parse(limits[LIMIT]).value / self.budget.value)
        return found

    def _task(self, point: Point) -> Task:
        return self.study.plan.task(self.config, None, point)  # with the hash of the configs and classes that it names

    def measured(self) -> list[Measured]:
        """The completed runs of the plan."""
        known = {run.experiment: run for run in read_runs(self.study.folder)}
        runs = []
        for name, (candidate, share) in self._tasks().items():
            run = known.get(name)
            if run is not None and run.status == "completed" and run.record.get("tokens_seen"):
                runs.append((candidate, share, run))
        self.score = score_of(run.record for *_, run in runs)
        found = []
        for candidate, share, run in runs:
            score, record = self.score.of(run.record), run.record
            if score is not None:
                found.append(
                    Measured(
                        candidate=candidate,
                        share=share,
                        params=record["num_params_M"] * 1e6,
                        tokens=float(record["tokens_seen"]),
                        steps=record["total_steps"],
                        score=score,
                        seconds=wall_time(record),
                        training_seconds=record["training_time_secs"],
                        folder=str(run.folder),
                        unique=_unique(record),
                    )
                )
        return found

    def predictions(self, surface: Surface, measured: Sequence[Measured]) -> list[Prediction]:
        """For each candidate the prediction, or what its whole run reached; the best first.

        Args:
            surface: The surface, fitted to these runs.
            measured: The runs.
        """
        longest: dict[Point, Measured] = {}
        for one in sorted(measured, key=lambda one: one.share):
            longest[one.candidate] = one
        found = []
        for candidate, mean, deviation in zip(self.candidates, *surface.predict(self.points), strict=True):
            run = longest.get(candidate)
            if run is not None and run.is_whole:
                score, half = run.score, math.exp(1.96 * math.sqrt(2) * NOISE)  # of the difference between two seeds
            else:
                score, half = math.exp(mean), math.exp(1.96 * math.hypot(deviation, NOISE))
            found.append(Prediction(candidate, score, (score / half, score * half), run))
        return sorted(found, key=lambda one: one.score)

    def law(self, measured: Sequence[Measured]) -> tuple[PlanLaw | None, str]:
        """The law of the loss in parameters and tokens that is fitted to runs, or None and why there is none."""
        columns = zip(*((one.params, one.tokens, one.share, one.score, one.unique) for one in measured), strict=True)
        try:
            return PlanLaw.fit(*columns), ""
        except ValueError as error:
            return None, str(error)

    # Output

    def write(self) -> str:
        """Writes plan.json, plan.md, plan.svg and recommended.yaml into the study's folder; returns a summary.

        Raises:
            ConfigError: The recommended config cannot run.
            StorageError: There are too few runs, or a file cannot be written.
        """
        measured = self.measured()
        if (surface := self._surface(measured)) is None:
            raise StorageError(
                f"{self.study.folder}: {len(measured)} completed runs are too few for a prediction, which needs "
                f"{LEAST_RUNS}; accepted: a longer --within, or more candidates"
            )
        predictions = self.predictions(surface, measured)
        folder = self.study.folder
        recommended = folder / "recommended.yaml"
        tried = [one for one in predictions if one.longest is not None]
        best = next((one for one in tried if one.is_reached), tried[0])
        assert best.longest is not None
        made_by = best.longest.folder if best.is_reached else None
        untried = [one for one in predictions if one.longest is None][:SHOWN]
        shown = [one for one in predictions if one in tried or one in untried]
        table = self._table(shown)
        low, high = best.interval
        sentence = f"Recommended for {self.budget}: {_text(best.candidate)}; "
        if best.is_reached:
            sentence += (
                f"{self.score.name} {best.score:.4f}, reached in {best.longest.steps} steps by the run "
                f"{best.longest.folder} (one seed; another one reaches {low:.4f} to {high:.4f})."
            )
        else:
            sentence += (
                f"predicted {self.score.name} {best.score:.4f} ({low:.4f} to {high:.4f}). This is an extrapolation "
                f"from {best.longest.share:.0%} of the budget, and unreliable: --within leaves no time for a run of "
                "the whole budget; the same command with more time makes one."
            )
        if best.longest.steps < FEW_STEPS:
            sentence += f" With fewer than {FEW_STEPS} steps a run is mostly warm-up: plan for a longer budget."
        command = shlex.join(["python", "-m", "bytelm", "fit", "--config", str(recommended), *self.options])
        law, reason = self.law(measured)
        figures = {**self._figures(shown, measured, best, made_by), "law": {"reason": reason}}
        paragraphs = [f"# Plan for {self.budget}", sentence, f"    {command}", "## Candidates", markdown(table)]
        paragraphs += ["![Loss against each option and the parameters, for several budgets](plan.svg)"]
        if law is None:
            paragraphs.append(f"No law of the loss in parameters and tokens: {reason}.")
        else:
            figures["law"] = law.figures(self._named)
            paragraphs += page(figures["law"], str(self.budget), self.score.name, law.readings)
        paragraphs += ["## What this does not know", UNKNOWN]
        try:
            with replacing(recommended) as partial:
                partial.write_text(self._recommended(best, made_by, command), encoding="utf-8")
            with replacing(folder / "plan.json") as partial:
                partial.write_text(json.dumps(figures, indent=2) + "\n")
            with replacing(folder / "plan.md") as partial:
                partial.write_text("\n\n".join(paragraphs) + "\n", encoding="utf-8")
            save(self._picture(surface, measured, law), folder / "plan.svg")
        except OSError as error:
            raise StorageError(f"{folder}: the plan cannot be written ({error.strerror or error})") from error
        _resolved(str(recommended), self.options)
        files = f"plan: {folder / 'plan.md'}\nrecommended: {recommended}\nrun it: {command}"
        return "\n\n".join([aligned(table), sentence, files])

    def _table(self, predictions: Sequence[Prediction]) -> list[list[str]]:
        rows = [["candidate", self.score.name, "95 % interval", "", "parameters", "tokens", "longest run"]]
        for one in predictions:
            low, high = one.interval
            run, how = one.longest, "reached" if one.is_reached else "predicted"
            counts = ["", "", "none"]
            if run is not None:
                counts = [f"{run.params:,.0f}", f"{run.tokens:,.0f}", str(self._limit(run.share))]
            rows.append([_text(one.candidate), f"{one.score:.4f}", f"{low:.4f} to {high:.4f}", how, *counts])
        return rows

    def _recommended(self, best: Prediction, made_by: str | None, command: str) -> str:
        values = dict((*best.candidate, (LIMIT, str(self.budget))))
        configs = [self.config, *([shipped.resolved(values.pop("config"))] if "config" in values else [])]
        bases = [os.path.relpath(each, self.study.folder) for each in configs]
        config: dict[str, Any] = {"base": bases[0] if len(bases) == 1 else bases}
        for key, value in values.items():
            # An option of a class that varies too is a key with dots beside the class.
            owner = min((each for each in values if f"{key}.".startswith(f"{each}.")), key=len)
            inner = config
            *parents, last = owner.split(".")
            for name in parents:
                inner = inner.setdefault(name, {})
            inner[last + key.removeprefix(owner)] = _value(value)
        how = "predicted" if made_by is None else f"reached by {made_by}"
        return f"# {command}\n#\n# {self.score.name} {best.score:.4f}, {how}\n{dump(config)}"

    def _figures(
        self, predictions: Sequence[Prediction], measured: Sequence[Measured], best: Prediction, made_by: str | None
    ) -> dict[str, Any]:
        return {
            "limit": str(self.budget),
            "score": self.score.name,
            "recommended": dict(best.candidate),
            "run": made_by,
            "predictions": [
                {
                    "candidate": dict(one.candidate),
                    "score": one.score,
                    "interval": one.interval,
                    "longest": None if one.longest is None else one.longest.share,
                    "is_reached": one.is_reached,
                }
                for one in predictions
            ],
            "runs": [{**vars(one), "candidate": dict(one.candidate)} for one in measured],
        }

    def _picture(self, surface: Surface, measured: Sequence[Measured], law: PlanLaw | None) -> Figure:
        """Draws the loss against each option: the runs, and the surface's lowest loss over the other options.

        The last panel has the loss against the parameters: the runs, and the law.
        """
        names = list(dict.fromkeys(self.coordinates.names))
        shares = sorted({one.share for one in measured} | {1.0})
        number = len(names) + (law is not None)
        figure = Figure(figsize=(4 * number, 4), layout="constrained")
        panels = figure.subplots(1, number, squeeze=False, sharey=True)[0]
        for name, axes in zip(names, panels, strict=False):
            texts = [dict(candidate)[name] for candidate in self.candidates]
            is_number = name in self.coordinates.numbers
            values: list[Any] = [float(text) for text in texts] if is_number else texts
            different = sorted(set(values))
            parts = [np.array([place for place, value in enumerate(values) if value == one]) for one in different]
            if is_number and len(parts) > PARTS:
                parts = np.array_split(np.argsort(values), PARTS)
            middles = [values[part[len(part) // 2]] for part in parts]
            for place, share in enumerate(shares):
                losses = np.exp(surface.predict(self.points, share)[0])
                label = f"{self._named(share)}, predicted"
                axes.plot(middles, [losses[part].min() for part in parts], color=f"C{place}", label=label)
                some = [one for one in measured if one.share == share]
                at = [values[self.candidates.index(one.candidate)] for one in some]
                axes.plot(at, [one.score for one in some], "o", color=f"C{place}")
            axes.set_xlabel(name.rpartition(".")[2])
            if name in self.coordinates.logs:
                axes.set_xscale("log")
                ticks = [middles[0], middles[len(middles) // 2], middles[-1]]
                axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
                axes.minorticks_off()
        panels[len(names) - 1].legend(fontsize=8)
        if law is not None:
            for place, share in enumerate(shares):
                some = [one for one in measured if one.share == share]
                panels[-1].plot([one.params for one in some], [one.score for one in some], "o", color=f"C{place}")
            law.draw(panels[-1], self._named, shares)
        panels[0].set_ylabel(f"{self.score.name} ({self.score.unit}, lower is better)")
        return figure


def _resolved(config: str, options: Sequence[str], space: Any = None) -> dict[str, Any]:
    """All values of a config; checks a space, too.

    Args:
        config: The config file.
        options: Further options.
        space: Lists of values, each of which must be usable; or a list of candidates, of which one must.

    Raises:
        ConfigError: The config or the space cannot be used.
    """
    with Checker(is_warm=True) as checker:

        def refused(point: Point) -> str:
            return checker.check(Plan([config], options).task(config, None, point).fit_options)[1]

        resolved, reason = checker.check(["--config", config, *options])
        if resolved is None:
            raise ConfigError("config", config, reason)
        if isinstance(space, Mapping):
            check_space(space, refused)
        elif space:
            reasons = list(itertools.takewhile(bool, (refused(_point(candidate)) for candidate in space)))
            if len(reasons) == len(space):
                raise ConfigError("space", space[0], reasons[0])
    return resolved


def _point(candidate: Mapping[str, Any]) -> Point:
    return tuple((key, as_text(value)) for key, value in candidate.items())


def _only_limit(resolved: Mapping[str, Any]) -> Duration:
    limit = resolved["time_budget"]["limit"]
    if isinstance(limit, list):
        if len(limit) > 1:
            raise ConfigError(LIMIT, limit, "a plan is for one limit; accepted: --time_budget.limit 180s")
        (limit,) = limit
    return Duration.parse(limit)


def _around(known: Mapping[str, Any]) -> dict[str, Any]:
    """The space of a config without one: half to twice its width and layers, a quarter to four times its rate.

    Args:
        known: All values of the config.
    """
    width, heads, layers = (known.get(f"model.gpt.{key}") for key in ("d_model", "n_heads", "n_layers"))
    if not isinstance(width, int) or not isinstance(heads, int):
        raise ConfigError("space", None, "the config's network has no d_model and n_heads; accepted: lists or ranges")
    even = 2 * heads  # the heads' width stays even
    space: dict[str, Any] = {WIDTH: list(dict.fromkeys(max(round(width * f / even), 1) * even for f in WIDTHS))}
    if isinstance(layers, int):
        space["model.gpt.n_layers"] = list(range(max(layers // 2, 1), 2 * layers + 1))
    if isinstance(rate := known.get(RATE), float):
        space[RATE] = {"low": rate / 4, "high": 4 * rate, "log": True}
    return space


def _candidates(
    space: Mapping[str, Any] | Sequence[Mapping[str, Any]], known: Mapping[str, Any], seed: int
) -> list[Point]:
    """The options of each candidate.

    Args:
        space: The space: a list of candidates, or lists and ranges, of which all combinations are candidates if there
            are only lists, and not too many.
        known: All values of the config.
        seed: Seed of the draw of candidates.

    Raises:
        ConfigError: There are fewer than two.
    """
    if isinstance(space, list):
        points = [_point(candidate) for candidate in space]
    elif isinstance(space, Mapping):
        lists = [values for values in space.values() if isinstance(values, list)]
        if len(lists) == len(space) and math.prod(map(len, lists)) <= MOST_CANDIDATES:
            draws = [dict(zip(space, values, strict=True)) for values in itertools.product(*lists)]
        else:
            shares = qmc.Sobol(len(space), seed=seed).random(MOST_CANDIDATES)
            draws = [{key: _drawn(space[key], at) for key, at in zip(space, row, strict=True)} for row in shares]
        width, d_ff = known.get(WIDTH), known.get(D_FF)
        if WIDTH in space and D_FF not in space and isinstance(width, int) and isinstance(d_ff, int):
            draws = [{**draw, D_FF: max(round(d_ff * draw[WIDTH] / width), 1)} for draw in draws]
        points = [_point(draw) for draw in draws]
    points = list(dict.fromkeys(points))
    if len(points) < 2:
        raise ConfigError("space", space, "accepted: values that make at least two candidates")
    return points


def _drawn(values: Any, at: float) -> Any:
    """A value of a list or a range, at a share of it from 0 to 1."""
    if isinstance(values, list):
        return values[min(int(at * len(values)), len(values) - 1)]
    low, high, step = values["low"], values["high"], values.get("step")
    if values.get("log"):
        drawn = low * (high / low) ** at
    elif step is not None:
        drawn = low + step * min(int(at * (int((high - low) / step) + 1)), int((high - low) / step))
    else:
        drawn = low + (high - low) * at
    if all(isinstance(number, int) for number in (low, high, step or 0)):
        return round(drawn)
    return min(max(float(f"{drawn:.3g}"), low), high)


def _text(point: Point) -> str:
    return ", ".join(f"{key.rpartition('.')[2]} {value}" for key, value in point)


def _keys(space: Any) -> dict[str, Any]:
    """The keys that the candidates of a space differ in, with values.

    Raises:
        ConfigError: It is neither lists of values and ranges nor a list of candidates.
    """
    lists = {"": space} if isinstance(space, Mapping) else dict(enumerate(space)) if isinstance(space, list) else None
    if space is not None and (lists is None or not all(isinstance(each, Mapping) for each in lists.values())):
        raise ConfigError("space", space, "accepted: {key: [values]}, {key: {low: …, high: …}}, or [{key: value}, …]")
    if isinstance(space, Mapping):
        Plan([""], (), (None,), space, sampler="random")  # checks it
    return {key: value for each in (lists or {}).values() for key, value in each.items()}


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def _unique(record: Mapping[str, Any]) -> float | None:
    """Tokens of a run's text, for bytes with its part for validation."""
    corpus = record.get("corpus") or {}
    unique: float | None = (corpus.get("tokens") or {}).get("train") or corpus.get("bytes")
    return unique


def main(args: list[str]) -> None:
    """Runs the command.

    Args:
        args: The arguments after `python -m bytelm plan`.
    """
    parser = CommandParser(
        "plan",
        passes_on=True,
        description="Predicts which network fits a budget on this machine, from a few short runs. Options after `--` "
        "apply to each run.",
    )
    parser.add_argument("--config", required=True, help="Config file that the candidates differ from.")
    parser.add_argument(f"--{LIMIT}", type=Duration, help="The budget to plan for. Default: that of the config.")
    parser.add_function_arguments(plan, skip={"config", "options", "limit"})
    at = args.index("--") if "--" in args else len(args)
    given = parser.parse_args(args[:at])
    budget = given.pop(LIMIT, None)
    given.pop("time_budget", None)
    print(plan(**vars(given), limit=budget, options=args[at + 1 :]))
