"""`python -m bytelm plan`: which network fits a budget on this machine, from a few short runs.

All candidates are trained with their whole schedules within a small share of the budget. These runs also measure the
speed of each candidate; compilation and start-up are not on the budget's clock. A law of the loss in parameters and
tokens (loss_law.py) predicts the score of each candidate within the whole budget. The candidate with the best
prediction is then trained within the whole budget, the law is fitted again with this run, and so on as far as the time
allows. The recommended candidate is the best of these whole runs. All runs are those of a study, so the same command
continues after it was cut.
"""

import itertools
import json
import math
import os
import shlex
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from bytelm.config import shipped
from bytelm.config.command import CommandParser
from bytelm.config.flat import flat
from bytelm.config.messages import note
from bytelm.config.text import dump
from bytelm.errors import ConfigError, StorageError
from bytelm.experiments.check import Checker
from bytelm.experiments.loss_law import COMMON, LEAST_POINTS, NOISE, LossLaw, effective_tokens
from bytelm.experiments.report.plots import save
from bytelm.experiments.runner import Runner
from bytelm.experiments.space_check import check_space
from bytelm.experiments.study import Study
from bytelm.experiments.task import IN_SPACE, Plan, Point, Task, as_text, check_options, read_space
from bytelm.experiments.text_table import aligned
from bytelm.runs.ledger import read_runs
from bytelm.runs.read import Run
from bytelm.runs.record import wall_time
from bytelm.runs.score import Score, score_of
from bytelm.system.files import replacing
from bytelm.units import Duration, Unit, accepted_forms

LIMIT = "time_budget.limit"
SHORT_RUNS = 0.22  # of the time of all runs: the training time of the short ones
LONGEST_SHORT = 1 / 4  # of the budget
WHOLE = 0.999  # of the budget: runs that were given more count as whole
WITHOUT_SAMPLES = ["--samples.max_new_tokens", "0"]  # before the user's options; a sample takes up to a second
LOOK_SECONDS = 1.0  # between two looks at the runs of other workers
FEW_STEPS = 100  # of a run; shorter ones are mostly warm-up
WIDTHS = (0.5, 0.7, 1.0, 1.4, 2.0)  # of the config's width
WITHIN = 5.0  # default of --within, in budgets
MARGIN = 1.01  # of the expected time of a whole run

UNKNOWN = """\
- Only the candidates' options vary. Everything else, such as the learning rate, the batch size and the schedule, is
  that of the config, unless `--space` lists values of it.
- A score that was reached is that of one seed; its interval is the noise of seeds. It says nothing of candidates that
  had no whole run.
- The other scores are predictions of a law that is fitted to all runs. They serve to choose the next whole run, and are
  often 5 to 25 % off. Their interval contains what the runs leave open and the noise of one run, not an error of the
  law's form.
- A candidate that learns slowly at first and well later is underrated, and may have no whole run.
- Repeated tokens count as Muennighoff et al. 2023 measured them on larger networks and texts. On small corpora, a
  network that memorises its text becomes worse than the law says.
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
        unique: Tokens of its training text; None if they are not known.
        score: Its score.
        speed: Tokens per unit of the budget.
        seconds: Time of its process.
        training_seconds: Time of its training.
        folder: Its folder.
    """

    candidate: Point
    share: float
    params: float
    tokens: float
    steps: int
    unique: float | None
    score: float
    speed: float
    seconds: float = 0.0
    training_seconds: float = 0.0
    folder: str = ""

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
        params: Number of its parameters.
        tokens: Tokens that it will be trained on.
        score: Its predicted score, or the one that it reached.
        interval: 95 % interval of the score: for a predicted one that of the law, otherwise that of another seed.
        longest: The longest run that was made of it.
    """

    candidate: Point
    params: float
    tokens: float
    score: float
    interval: tuple[float, float]
    longest: Measured

    @property
    def is_reached(self) -> bool:
        """Whether a run within the whole budget was made."""
        return self.longest.is_whole


def plan(
    config: str,
    options: list[str],
    limit: Duration | None = None,
    within: Duration | None = None,
    space: dict[str, Any] | list[Any] | str | None = None,
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
        space: The candidates: values of keys, such as `{model.gpt.d_model: [64, 96, 128], model.optimizer.lr: [3e-3,
            6e-3]}`, of which every combination is one; or a list of them: `[{model.gpt.d_model: 64, model.gpt.d_ff:
            192}, {model.gpt.d_model: 96, model.gpt.d_ff: 384}]`; or a YAML file with the former. Default: half to
            twice the config's width, with d_ff in proportion.
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
    candidates = _candidates(of_candidates, resolved)
    name = study or f"plan-{Path(config).stem}"
    queue = Study(name, Plan([config], [*WITHOUT_SAMPLES, *options]), storage)
    planner = Planner(config, options, budget, candidates, queue)
    planner.measure(within, storage)
    return planner.write()


class Planner:
    """Makes the runs, and predicts from them.

    Args:
        config: Config file.
        options: Further options of all runs.
        budget: The budget to plan for.
        candidates: Options of each candidate.
        study: The study with the runs.
    """

    def __init__(
        self, config: str, options: Sequence[str], budget: Duration, candidates: Sequence[Point], study: Study
    ) -> None:
        self.config = config
        self.options = list(options)
        self.budget = budget
        self.candidates = list(candidates)
        self.study = study
        self.score: Score = score_of([])

    def measure(self, within: Duration | None, storage: str | None = None) -> None:
        """Makes short runs of all candidates, then whole runs of the best predictions, as far as the time allows.

        Several workers wait for each other's short runs only.

        Args:
            within: Time limit of all runs together.
            storage: As for `plan`.

        Raises:
            ConfigError: No candidate can run.
        """
        limit = self._short_limit(within)
        made = [(*candidate, (LIMIT, str(limit))) for candidate in self.candidates]
        queue, runner = self._worker(made, within, storage)
        print(f"plan: {len(made)} candidates, {limit} each", file=sys.stderr, flush=True)
        runner.work()
        while queue.is_busy():  # another worker's run is part of what the whole runs are chosen by
            time.sleep(LOOK_SECONDS)
            runner.work()  # in case that worker was killed
        rejected = [outcome for outcome in runner.outcomes if outcome.status == "rejected"]
        if len(rejected) == len(made):
            raise ConfigError("space", self.config, f"no candidate can run: {rejected[0].reason}")
        if queue.queued:
            note(f"--within {within} is used up; the same command with more time continues")
            return
        while True:
            if (chosen := self.next_whole(within)) is not None:
                made.append((*chosen, (LIMIT, str(self.budget))))
                print(f"plan: {_text(chosen)}, the whole {self.budget}", file=sys.stderr, flush=True)
                self._worker(made, None, storage)[1].work()  # nothing, if another worker has just chosen the same
            elif queue.is_busy():
                time.sleep(LOOK_SECONDS)
            else:
                return

    def _worker(self, runs: Sequence[Point], within: Duration | None, storage: str | None) -> tuple[Study, Runner]:
        queue = Study(self.study.name, Rounds([self.config], self.study.plan.options, runs=tuple(runs)), storage)
        return queue, Runner(queue, None, within)

    def _short_limit(self, within: Duration | None) -> Duration:
        """The budget of the short runs: that of a command that is continued, or what fits into a part of the time."""
        if begun := [share for _, share in self._tasks().values() if share < WHOLE]:
            return self._limit(min(begun))
        budgets = WITHIN
        if within is not None and self.budget.unit == "seconds":
            budgets = within.value / self.budget.value
        share = min(SHORT_RUNS * budgets / len(self.candidates), LONGEST_SHORT)
        return self._limit(float(f"{share * self.budget.value:.2g}") / self.budget.value)

    def next_whole(self, within: Duration | None) -> Point | None:
        """The candidate to be trained within the whole budget next: the best prediction that can win and fits.

        Args:
            within: Time limit of all runs together. None: they are given five budgets together.

        Returns:
            None if no run fits, or none is likely to be better than the best whole run.
        """
        measured = self.measured()
        if (law := self._law(measured)) is None:
            return None
        predictions = self.predictions(law, measured)
        best = min((one.score for one in predictions if one.is_reached), default=math.inf)
        tasks = self._tasks()
        begun = {candidate for candidate, share in tasks.values() if share > WHOLE}
        times = {one.candidate: one.longest.expected() for one in predictions}
        ended = {
            run.experiment: wall_time(run.record) for run in read_runs(self.study.folder) if run.status != "running"
        }
        left = WITHIN - sum(share for _, share in tasks.values())  # in budgets
        if within is not None:
            to_come = [times.get(candidate, 0.0) for name, (candidate, _) in tasks.items() if name not in ended]
            left = within.value - sum(ended.values()) - sum(to_come)
        for one in predictions:
            if (
                one.candidate not in begun
                and one.interval[0] < best
                and (times[one.candidate] if within else 1.0) <= left
            ):
                return one.candidate
        return None

    def _limit(self, share: float) -> Duration:
        value = self.budget.value * share
        whole = self.budget.unit in ("steps", "tokens")
        return Duration(float(max(round(value), 1)) if whole else float(f"{value:.6g}"), self.budget.unit)

    def _tasks(self) -> dict[str, tuple[Point, float]]:
        """For the folder of each run of the plan, the candidate and the share of the budget that it is given."""
        own = self.study.plan.task(self.config, None, ())
        found = {}
        for task, name in self.study.folders().items():
            candidate, limits = task.point[:-1], dict(task.point[-1:])
            if candidate in self.candidates and LIMIT in limits and task == replace(own, point=task.point):
                found[name] = (candidate, Duration.parse(limits[LIMIT]).value / self.budget.value)
        return found

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
            score, used = self.score.of(run.record), _used(run.record, self.budget.unit)
            if score is not None and used:
                record = run.record
                found.append(
                    Measured(
                        candidate=candidate,
                        share=share,
                        params=record["num_params_M"] * 1e6,
                        tokens=float(record["tokens_seen"]),
                        steps=record["total_steps"],
                        unique=_unique(run),
                        score=score,
                        speed=record["tokens_seen"] / used,
                        seconds=wall_time(record),
                        training_seconds=record["training_time_secs"],
                        folder=str(run.folder),
                    )
                )
        return found

    def _law(self, measured: Sequence[Measured]) -> LossLaw | None:
        if len(measured) < LEAST_POINTS:
            return None
        tokens = [float(effective_tokens(one.tokens, one.unique)) for one in measured]
        places = [self.candidates.index(one.candidate) for one in measured]
        sizes, losses = [one.params for one in measured], [one.score for one in measured]
        return LossLaw.fit(places, sizes, tokens, losses, [one.share for one in measured])

    def predictions(self, law: LossLaw, measured: Sequence[Measured]) -> list[Prediction]:
        """The prediction of each candidate with a run, or what its whole run reached; the best first.

        Args:
            law: The law, fitted to these runs.
            measured: The runs.
        """
        found = []
        for place, candidate in enumerate(self.candidates):
            own = [one for one in measured if one.candidate == candidate]
            if not own:
                continue
            longest = max(own, key=lambda one: one.share)
            tokens = longest.speed * self.budget.value
            effective = float(effective_tokens(tokens, longest.unique))
            if longest.is_whole:
                tokens, score = longest.tokens, longest.score
                half = math.exp(1.96 * math.sqrt(2) * NOISE)  # of the difference between two seeds
                interval = (score / half, score * half)
            else:
                score = law.predict(place, longest.params, effective)
                interval = law.interval(place, longest.params, effective)
            found.append(Prediction(candidate, longest.params, tokens, score, interval, longest))
        return sorted(found, key=lambda one: one.score)

    # Output

    def write(self) -> str:
        """Writes plan.json, plan.md, plan.svg and recommended.yaml into the study's folder; returns a summary.

        Raises:
            ConfigError: The recommended config cannot run.
            StorageError: There are too few runs, or a file cannot be written.
        """
        measured = self.measured()
        if (law := self._law(measured)) is None:
            raise StorageError(
                f"{self.study.folder}: {len(measured)} completed runs are too few for a prediction, which needs "
                f"{LEAST_POINTS}; accepted: a longer --within, or more candidates"
            )
        predictions = self.predictions(law, measured)
        folder = self.study.folder
        recommended = folder / "recommended.yaml"
        table = self._table(predictions)
        best = next((one for one in predictions if one.is_reached), predictions[0])
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
        page = [f"# Plan for {self.budget}", sentence, f"    {command}", "## Candidates", _markdown(table)]
        page += ["![Loss against parameters, for several budgets](plan.svg)", "## What this does not know", UNKNOWN]
        try:
            with replacing(recommended) as partial:
                partial.write_text(self._recommended(best, command, folder), encoding="utf-8")
            with replacing(folder / "plan.json") as partial:
                partial.write_text(json.dumps(self._figures(law, predictions, measured, best), indent=2) + "\n")
            with replacing(folder / "plan.md") as partial:
                partial.write_text("\n\n".join(page) + "\n", encoding="utf-8")
            save(self._picture(law, predictions, measured), folder / "plan.svg")
        except OSError as error:
            raise StorageError(f"{folder}: the plan cannot be written ({error.strerror or error})") from error
        _resolved(str(recommended), self.options)
        files = f"plan: {folder / 'plan.md'}\nrecommended: {recommended}\nrun it: {command}"
        return "\n\n".join([aligned(table), sentence, files])

    def _table(self, predictions: Sequence[Prediction]) -> list[list[str]]:
        rows = [["candidate", self.score.name, "95 % interval", "", "parameters", "tokens", "longest run"]]
        for one in predictions:
            low, high = one.interval
            name, counts = (
                _text(one.candidate),
                (f"{one.params:,.0f}", f"{one.tokens:,.0f}", str(self._limit(one.longest.share))),
            )
            how = "reached" if one.is_reached else "predicted"
            rows.append([name, f"{one.score:.4f}", f"{low:.4f} to {high:.4f}", how, *counts])
        return rows

    def _recommended(self, best: Prediction, command: str, folder: Path) -> str:
        config: dict[str, Any] = {"base": os.path.relpath(self.config, folder)}
        for key, value in (*best.candidate, (LIMIT, str(self.budget))):
            inner = config
            *parents, last = key.split(".")
            for name in parents:
                inner = inner.setdefault(name, {})
            inner[last] = _value(value)
        how = f"reached by {best.longest.folder}" if best.is_reached else "predicted"
        return f"# {command}\n#\n# {self.score.name} {best.score:.4f}, {how}\n{dump(config)}"

    def _figures(
        self, law: LossLaw, predictions: Sequence[Prediction], measured: Sequence[Measured], best: Prediction
    ) -> dict[str, Any]:
        e, a, alpha, b, beta = (float(value) for value in np.exp(law.parameters[:COMMON]))
        of_n, of_d = (float(value) for value in np.exp(law.center))
        return {
            "limit": str(self.budget),
            "score": self.score.name,
            # loss = E + A / (parameters / N)^alpha + B / (effective tokens / D)^beta
            "law": {"E": e, "A": a, "alpha": alpha, "B": b, "beta": beta, "N": of_n, "D": of_d, "noise": law.noise},
            "recommended": dict(best.candidate),
            "run": best.longest.folder if best.is_reached else None,
            "predictions": [
                {
                    **vars(one),
                    "candidate": dict(one.candidate),
                    "longest": one.longest.share,
                    "is_reached": one.is_reached,
                }
                for one in predictions
            ],
            "runs": [{**vars(one), "candidate": dict(one.candidate)} for one in measured],
        }

    def _picture(self, law: LossLaw, predictions: Sequence[Prediction], measured: Sequence[Measured]) -> Figure:
        """Draws loss against the number of parameters: the runs, and the law for each budget."""
        figure = Figure(figsize=(10, 5))
        axes = figure.subplots()
        unique = statistics.median_low([one.unique for one in measured if one.unique] or [0]) or None
        sizes = np.array(sorted({one.params for one in predictions}))
        speeds = [next(one.tokens for one in predictions if one.params == size) / self.budget.value for size in sizes]
        line = np.geomspace(sizes[0], sizes[-1], 100)
        speed = np.exp(np.interp(np.log(line), np.log(sizes), np.log(speeds)))
        shares = sorted({one.share for one in measured if not one.is_whole})
        for place, share in enumerate((*shares, 1.0)):
            amount = self.budget.value * share
            losses = law.curve(line, effective_tokens(speed * amount, unique))
            label = f"{self.budget}, predicted" if share == 1.0 else str(self._limit(share))
            axes.plot(line, losses, color=f"C{place}", label=label, lw=2 if share == 1.0 else 1)
            some = [one for one in measured if one.share == share or (one.is_whole and share == 1.0)]
            axes.plot([one.params for one in some], [one.score for one in some], "o", color=f"C{place}")
        for one in predictions:
            axes.plot([one.params] * 2, one.interval, color=f"C{len(shares)}", lw=1, alpha=0.5)
        axes.set_xscale("log")
        axes.set_xlabel("parameters")
        axes.set_ylabel(f"{self.score.name} ({self.score.unit}, lower is better)")
        axes.legend(fontsize=8)
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


def _candidates(
    space: Mapping[str, Any] | Sequence[Mapping[str, Any]] | None, resolved: Mapping[str, Any]
) -> list[Point]:
    """The options of each candidate.

    Raises:
        ConfigError: There are fewer than two.
    """
    if isinstance(space, list):
        points = [_point(candidate) for candidate in space]
    elif isinstance(space, Mapping):
        tasks = Plan([""], (), (None,), space).grid()
        points = [task.point for task in tasks]
    else:
        known = flat(resolved)
        width, heads, d_ff = (known.get(f"model.gpt.{key}") for key in ("d_model", "n_heads", "d_ff"))
        if not isinstance(width, int) or not isinstance(heads, int):
            raise ConfigError(
                "space", None, "the config's network has no d_model and n_heads; accepted: a list of values"
            )
        points = []
        for factor in WIDTHS:
            d_model = max(round(width * factor / (2 * heads)), 1) * 2 * heads  # the heads' width stays even
            point = {"model.gpt.d_model": d_model}
            if isinstance(d_ff, int):
                point["model.gpt.d_ff"] = max(round(d_ff * d_model / width), 1)
            points.append(tuple((key, as_text(value)) for key, value in point.items()))
    points = list(dict.fromkeys(points))
    if len(points) < 2:
        raise ConfigError("space", space, "accepted: values that make at least two candidates")
    return points


def _used(record: Mapping[str, Any], unit: Unit) -> float | None:
    keys = {"seconds": "training_time_secs", "steps": "total_steps", "tokens": "tokens_seen", "flops": "total_flops"}
    return record.get(keys[unit])


def _unique(run: Run) -> float | None:
    """Tokens of the run's training text."""
    corpus = run.record.get("corpus") or {}
    return corpus.get("bytes") or (corpus.get("tokens") or {}).get("train")


def _text(point: Point) -> str:
    return ", ".join(f"{key.rpartition('.')[2]} {value}" for key, value in point)


def _keys(space: Any) -> dict[str, Any]:
    """The keys that the candidates of a space differ in, with values.

    Raises:
        ConfigError: It is neither lists of values nor a list of candidates.
    """
    lists = {"": space} if isinstance(space, Mapping) else dict(enumerate(space)) if isinstance(space, list) else None
    if space is not None and (lists is None or not all(isinstance(each, Mapping) for each in lists.values())):
        raise ConfigError("space", space, "accepted: {key: [values]}, or [{key: value}, …]")
    for key, values in space.items() if isinstance(space, Mapping) else ():
        if not isinstance(values, list) or not values:
            raise ConfigError(f"space.{key}", values, "accepted: a list of values")
    return {key: value for each in (lists or {}).values() for key, value in each.items()}


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def _markdown(rows: Sequence[Sequence[str]]) -> str:
    head, *others = rows
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *others))


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
