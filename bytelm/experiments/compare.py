"""`python -m bytelm compare A B [C …]`: whether B, C, … are better than A at equal time, tokens or FLOPs.

Missing runs are made as those of `experiments` are, seed by seed, and the configs in turn within a seed. After each
seed a sequential test (paired.py) decides whether the difference is settled; then no more seeds are added. The same
command continues, also with more seeds, and its error rate still holds.
"""

import json
import re
import shlex
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from bytelm.config import shipped
from bytelm.config.command import CommandParser
from bytelm.config.messages import note
from bytelm.config.values import PositiveInt
from bytelm.errors import ConfigError, StorageError, as_storage_error
from bytelm.experiments.check import Checker
from bytelm.experiments.comparison import experiments_of
from bytelm.experiments.paired import ERROR_RATE, Difference, holm, p_value
from bytelm.experiments.runner import Runner
from bytelm.experiments.study import Study, database_errors
from bytelm.experiments.task import OF_SEEDS, SEED, Plan, Task, check_options
from bytelm.experiments.text_table import aligned
from bytelm.runs.folder import CONFIG, RUNS
from bytelm.runs.ledger import read_runs
from bytelm.runs.read import Run
from bytelm.runs.score import RANKED, VAL_BPB, Score, score_of
from bytelm.system.files import write_text
from bytelm.system.invocation import typed_name
from bytelm.units import Duration, Unit, check_time, limits_of

FILE = "comparison.json"
LONGEST_NAME = 100  # characters of the study's name
Amount = Literal["time", "tokens", "flops"]
UNITS: dict[Amount, Unit] = {"time": "seconds", "tokens": "tokens", "flops": "flops"}
USED_BY_RECORD: dict[Amount, str] = {"time": "training_time_secs", "tokens": "tokens_seen", "flops": "total_flops"}
EXAMPLES: dict[Amount, str] = {"time": "180s", "tokens": "300 Mtok", "flops": "2 PFLOP"}


@dataclass
class Contestant:
    """A config that takes part.

    Attributes:
        name: Its name; different for all.
        config: The file that it is trained from.
        runs: Its earlier runs that are completed; empty for a config file.
        limits: The limits of its budget, as in the config.
        by_seed: Its runs in this comparison.
    """

    name: str
    config: str
    runs: list[Run] = field(default_factory=list)
    limits: list[str] = field(default_factory=list)
    by_seed: dict[int, Run] = field(default_factory=dict)


@dataclass(frozen=True)
class Pairs(Plan):
    """A study's plan without the runs that exist elsewhere.

    Attributes:
        existing: Config and seed of each run that is not made again.
    """

    existing: frozenset[tuple[str, int]] = frozenset()

    def grid(self) -> list[Task]:
        return [task for task in super().grid() if (task.config, task.seed) not in self.existing]


def compare(
    contestants: list[str],
    options: list[str],
    seeds: PositiveInt = 5,
    equal: Amount = "time",
    limit: Duration | None = None,
    study: str | None = None,
    total_time: Duration | None = None,
    run_timeout: Duration | None = None,
    storage: str | None = None,
) -> str:
    """Compares configs.

    Args:
        contestants: The first one, and one or several that are compared with it: config files, folders of runs or
            experiments (with their config and the runs that they already have), or folders of studies, which stand for
            their best experiment.
        options: Options that are added to every run's command line.
        seeds: Maximum number of seeds of each config, at least 2; fewer are used if these settle it.
        equal: The amount of training that is the same for all: time, tokens or FLOPs.
        limit: This amount: 180s, 300 Mtok or 2 PFLOP. Default: the first one's limit if it has this unit; otherwise
            the amount that its earlier runs have used.
        study: Name of the study with the runs that are made. Default: made from the names of the contestants.
        total_time: Time limit of all these runs together, such as 3h.
        run_timeout: Time limit of a run, as in `experiments`.
        storage: The queue of several workers, as in `experiments`.

    Returns:
        The result, as text.

    Raises:
        ConfigError: They cannot be compared.
        StorageError: A folder has no runs.
    """
    if len(contestants) < 2:
        raise ConfigError("contestants", contestants, "accepted: two or more")
    if seeds < 2:
        raise ConfigError("seeds", seeds, "accepted: at least 2, because the noise is measured over seeds")
    check_time("total_time", total_time)
    check_time("run_timeout", run_timeout)
    if limit is not None and (limit.unit != UNITS[equal] or not limit.value):
        raise ConfigError("limit", str(limit), f"accepted with --equal {equal}: such as {EXAMPLES[equal]}")
    given_twice = {} if limit is None else {"time_budget.limit": "it is also given as --limit"}
    check_options(options, {SEED: OF_SEEDS, **given_twice})
    some = _named([_contestant(given, limit) for given in contestants])
    _check(some, options)
    amount = limit or _equal_amount(some[0], equal)
    name = study or _study_name(some, equal)
    comparison = Comparison(some, [*options, "--time_budget.limit", str(amount)], equal, amount, name)
    if not options:
        comparison.use_earlier_runs()
    with database_errors(storage):
        comparison.run(seeds, total_time, run_timeout, storage)
    comparison.write()
    return comparison.text()


class Comparison:
    """A comparison of the first contestant with each of the others.

    Args:
        contestants: At least two.
        options: Further options of all runs.
        equal: The kind of amount that is equal.
        amount: The amount.
        study: Name of the study with the runs that are made.
    """

    def __init__(
        self, contestants: Sequence[Contestant], options: Sequence[str], equal: Amount, amount: Duration, study: str
    ) -> None:
        self.first, *self.others = contestants
        self.contestants = list(contestants)
        self.options = list(options)
        self.equal = equal
        self.amount = amount
        self.study = study
        self.seeds: list[int] = []  # those that were used
        self.score: Score = VAL_BPB

    def use_earlier_runs(self) -> None:
        """Takes earlier runs of this amount as part of the comparison."""
        for one in self.contestants:
            for run in one.runs:
                if run.limits == [str(self.amount)] and run.record.get("seed") is not None:
                    one.by_seed.setdefault(run.record["seed"], run)

    def run(
        self, most: int, total_time: Duration | None, run_timeout: Duration | None, storage: str | None = None
    ) -> None:
        """Makes the missing runs, seed by seed, until all differences are settled.

        Args:
            most: Most seeds.
            total_time: As for `compare`.
            run_timeout: As for `compare`.
            storage: As for `compare`.

        Raises:
            ConfigError: A config cannot run, or the scores cannot be compared.
        """
        known = sorted({seed for one in self.contestants for seed in one.by_seed})
        fresh = (seed for seed in range(1, most + len(known) + 1) if seed not in known)
        seeds = [*known, *fresh][:most]
        earlier = frozenset((one.config, seed) for one in self.contestants for seed in one.by_seed)
        for count in range(2, most + 1):
            self.seeds = seeds[:count]
            configs = [one.config for one in self.contestants]
            queue = Study(self.study, Pairs(configs, self.options, self.seeds, existing=earlier), storage)
            runner = Runner(queue, None, total_time, run_timeout)
            runner.work()
            rejected = next((outcome.reason for outcome in runner.outcomes if outcome.status == "rejected"), None)
            if rejected is not None:
                raise ConfigError("contestants", ", ".join(configs), f"a run was rejected: {rejected}")
            self._read(queue)
            if queue.queued or all(difference.is_settled for difference in self.differences().values()):
                return

    def _read(self, queue: Study) -> None:
        """Reads the scores of the study's runs."""
        made = {run.experiment: run for run in read_runs(queue.folder) if run.folder.parent.parent == queue.folder}
        folders = queue.folders()
        for one in self.contestants:
            for seed in self.seeds:
                run = made.get(folders.get(queue.plan.task(one.config, seed, ()), ""))
                if run is not None and run.status == "completed":
                    one.by_seed[seed] = run
        runs = self._runs()
        self.score = score_of(run.record for run in runs)
        corpora = {run.corpus.get("sha256"): run.corpus for run in runs}
        if len(corpora) > 1:
            names = ", ".join(str(corpus.get("name")) for corpus in corpora.values())
            raise ConfigError("contestants", names, "their corpora differ; accepted: configs with the same data")
        devices = sorted({str(run.record.get("device")) for run in runs})
        if self.equal == "time" and len(devices) > 1:
            note(f"the runs were made on different devices ({', '.join(devices)}), so equal time is not equal work")

    def _runs(self) -> list[Run]:
        return [run for one in self.contestants for seed, run in one.by_seed.items() if seed in self.seeds]

    def scores(self, one: Contestant) -> dict[int, float]:
        """Scores of a contestant by seed, in the order of the seeds."""
        scores = {seed: self.score.of(one.by_seed[seed].record) for seed in self.seeds if seed in one.by_seed}
        return {seed: score for seed, score in scores.items() if score is not None}

    def differences(self) -> dict[str, Difference]:
        """The difference of each of the others from the first, by name; those without a pair are left out."""
        first = self.scores(self.first)
        pairs: dict[str, tuple[list[float], list[float]]] = {}
        for one in self.others:
            scores = self.scores(one)
            both = [seed for seed in self.seeds if seed in first and seed in scores]
            pairs[one.name] = [first[seed] for seed in both], [scores[seed] for seed in both]
        p_values = [p_value([b - a for a, b in zip(*pair, strict=True)]) for pair in pairs.values()]
        adjusted = zip(pairs.items(), holm(p_values), strict=True)
        return {name: Difference.of(*pair, p) for (name, pair), p in adjusted if pair[0]}

    # Output

    def figures(self) -> dict[str, Any]:
        """All figures, as plain values."""
        return {
            "equal": self.equal,
            "limit": str(self.amount),
            "score": self.score.name,
            "error_rate": ERROR_RATE,
            "contestants": {
                one.name: {
                    "config": one.config,
                    "scores": {str(seed): score for seed, score in self.scores(one).items()},
                    "runs": {str(seed): str(run.folder) for seed, run in sorted(one.by_seed.items())},
                }
                for one in self.contestants
            },
            "differences": {
                name: {
                    "from": self.first.name,
                    "mean": one.mean,
                    "interval_95": one.interval,
                    "probability_better": one.probability_lower,
                    "noise_of_seed": one.noise,
                    "effect": one.effect,
                    "pairs": len(one.differences),
                    "p_value": one.p_value,
                    "settled": one.is_settled,
                    "seeds_needed": one.seeds_needed(len(self.others)),
                }
                for name, one in self.differences().items()
            },
        }

    def write(self) -> None:
        """Writes comparison.json into the study's folder.

        Raises:
            StorageError: It cannot be written.
        """
        file = Path(RUNS, self.study, FILE)
        with as_storage_error(f"{file}: it cannot be written"):
            write_text(file, json.dumps(self.figures(), indent=2) + "\n")

    def text(self) -> str:
        """The result: a table of the scores, the figures of each difference, and a sentence about it."""
        rows = [["", self.score.name, "seeds", "steps", "tokens", "seconds"]]
        rows += [self._row(one) for one in self.contestants]
        parts = [f"equal {self.equal}: {self.amount} each", aligned(rows)]
        differences = self.differences()
        for one in self.others:
            if one.name not in differences:
                parts.append(f"{one.name} and {self.first.name} have no seed with two scores; see the runs' records.")
                continue
            difference = differences[one.name]
            parts += [self._figures_line(one, difference), self._sentence(one, difference)]
        parts.append(
            f"{FILE}: {Path(RUNS, self.study, FILE)}\n"
            f"report: {typed_name()} report {shlex.quote(str(Path(RUNS, self.study)))}"
        )
        return "\n\n".join(parts)

    def _row(self, one: Contestant) -> list[str]:
        scores = list(self.scores(one).values())
        if not scores:
            return [one.name, "none", "0", "", "", ""]
        spread = f" ± {statistics.stdev(scores):.4f}" if len(scores) > 1 else ""
        records = [one.by_seed[seed].record for seed in self.scores(one)]

        def median(key: str, digits: int = 0) -> str:
            values = [record[key] for record in records if record.get(key) is not None]
            return f"{statistics.median(values):,.{digits}f}" if values else ""

        used = [median("total_steps"), median("tokens_seen"), median("training_time_secs", 1)]
        return [one.name, f"{statistics.fmean(scores):.4f}{spread}", str(len(scores)), *used]

    def _figures_line(self, one: Contestant, difference: Difference) -> str:
        text = f"{one.name} minus {self.first.name}: {difference.mean:+.4f}"
        if difference.interval is None or difference.probability_lower is None:
            return text
        low, high = difference.interval
        text += f", 95 % interval {low:+.4f} to {high:+.4f}; {_percent(difference.probability_lower)} that "
        text += f"{one.name} is better"
        if difference.effect is not None:
            text += f"; {abs(difference.effect):.1f} times the noise of a seed ({difference.noise:.4f})"
        return text

    def _sentence(self, one: Contestant, difference: Difference) -> str:
        n = len(difference.differences)
        seeds = _seeds(n)
        base = statistics.fmean(self.scores(self.first).values())
        better, worse = (one, self.first) if difference.mean < 0 else (self.first, one)
        size = f"{abs(difference.mean):.4f} {self.score.name} ({abs(difference.mean) / base:.1%})"
        if difference.is_settled:
            return f"{better.name} is better than {worse.name} by {size}: settled after {seeds}."
        if difference.mean == 0:
            return f"{one.name} and {self.first.name} have the same score after {seeds}: not settled."
        text = f"Not settled after {seeds}: {better.name} is ahead by {size}"
        needed = difference.seeds_needed(len(self.others))
        if needed is None:
            return f"{text}, too little for any reasonable number of seeds to settle."
        if needed <= n:
            return f"{text}; --seeds {n + 1} adds another seed."
        more = _seeds(needed - n, "more ")
        return f"{text}; if the difference stays as measured, {more} would settle it (--seeds {needed})."


def _contestant(given: str, limit: Duration | None) -> Contestant:
    """Reads what the command line names.

    Raises:
        ConfigError: It is neither a config nor a folder with one experiment or study.
        StorageError: The folder has no completed runs.
    """
    path = Path(shipped.resolved(given))
    if path.is_file():
        return Contestant(path.stem, str(path))
    if not path.is_dir():
        reason = f"no such file or folder, and {shipped.missing(given)}; accepted: a config, or a folder in runs/"
        raise ConfigError("contestants", given, reason)
    runs = [run for run in read_runs(path) if run.score is not None and run.config]
    if limit is not None and any(run.limits == [str(limit)] for run in runs):
        runs = [run for run in runs if run.limits == [str(limit)]]
    if not runs:
        raise StorageError(f"{path}: no completed runs there; accepted: a config, or a folder with such runs")
    contests = {(run.budget, run.corpus.get("sha256"), run.ranked_by) for run in runs}
    if len(contests) > 1:
        budgets = ", ".join(sorted({str(run.budget) for run in runs}))
        raise ConfigError(
            "contestants",
            given,
            f"its runs have different budgets or corpora ({budgets}), so none of them is the best; accepted: a folder "
            "of one experiment",
        )
    best = min((e for e in experiments_of(runs) if e.scores), key=lambda e: e.score or 0.0)
    return Contestant(best.name, str(best.runs[0].folder / CONFIG), best.runs, best.runs[0].limits)


def _named(contestants: list[Contestant]) -> list[Contestant]:
    """Gives contestants with equal names different ones."""
    names = [one.name for one in contestants]
    for place, one in enumerate(contestants):
        if names.count(names[place]) > 1:
            one.name = f"{names[place]} ({chr(ord('A') + place) if place < 26 else place})"
    return contestants


def _check(contestants: Sequence[Contestant], options: Sequence[str]) -> None:
    """Checks the configs, and reads the limits of those that are files.

    Raises:
        ConfigError: A config cannot run.
    """
    with Checker(is_warm=True) as checker:
        for one in contestants:
            resolved, reason = checker.check(["--config", one.config, *options])
            if resolved is None:
                raise ConfigError("contestants", one.config, reason)
            limit = resolved["time_budget"]["limit"]
            one.limits = limit if isinstance(limit, list) else [limit]


def _equal_amount(first: Contestant, equal: Amount) -> Duration:
    """The amount that all are given, by the first contestant.

    Raises:
        ConfigError: It is not known.
    """
    unit = UNITS[equal]
    if (value := limits_of(first.limits).get(unit)) is not None:
        return Duration(value, unit)
    used = [amount for run in first.runs if (amount := run.record.get(USED_BY_RECORD[equal]))]
    if not used:
        limits = ", ".join(first.limits)
        ways = [f"--equal {equal} --limit {EXAMPLES[equal]}"]
        ways += [f"--equal {other}" for other, its_unit in UNITS.items() if its_unit in limits_of(first.limits)]
        raise ConfigError("equal", equal, f"{first.name} is limited to {limits}; accepted: {', or '.join(ways)}")
    return Duration(float(round(statistics.median(used))), unit)


def _study_name(contestants: Sequence[Contestant], equal: Amount) -> str:
    text = "-".join(["compare", *(one.name for one in contestants), equal])
    return re.sub(r"[^\w.,=+-]+", "_", text)[:LONGEST_NAME]


def _seeds(number: int, more: str = "") -> str:
    return f"{number} {more}seed{'' if number == 1 else 's'}"


def _percent(probability: float) -> str:
    return f"{min(max(probability, 0.001), 0.999):.1%}".replace("%", " %")


def main(args: list[str]) -> None:
    """Runs the command.

    Args:
        args: The arguments after `python -m bytelm compare`.
    """
    parser = CommandParser(
        "compare",
        passes_on=True,
        description="Determines whether configs differ by more than seeds do, at equal time, tokens or FLOPs. "
        f"Options after `--` apply to each run. {RANKED}",
    )
    parser.add_argument("contestants", nargs="+", help="Config files, or folders of runs, experiments or studies.")
    parser.add_function_arguments(compare, skip={"contestants", "options"})
    print(compare(**vars(parser.parse_args(args))))
