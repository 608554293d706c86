"""Comparison: groups runs that differ only in their seed, finds the changes between experiments, and measures noise.

The changes of a run are found by comparing its resolved config with those of earlier runs: its origin is the run with
the fewest differences. The noise is the spread over seeds, pooled over all configs with several seeds.
"""

import re
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from scipy import stats

from bytelm.config.flat import flat
from bytelm.runs.read import Run

# Settings that differ between runs of one experiment, and settings that do not affect the score.
NO_SETTINGS = (
    "seed_everything",
    "experiment",
    "ckpt_path",
    "weights_only",
    "last_checkpoint",
    "checkpoint",
    "throughput",
    "samples",
    "trainer.log_every_n_steps",
    "trainer.enable_progress_bar",
    "trainer.enable_model_summary",
)
CODE = ".py"  # the end of a file's name; no setting's key ends with it
CONFIDENCE = 0.95


@dataclass(eq=False)
class Experiment:
    """Runs that differ only in their seed.

    Attributes:
        number: The number that its name begins with; its place among all, if some have none or share one.
        name: Name of the config.
        runs: In the order in which they ended.
        origin: The earlier experiment that it differs from least.
        changes: Its changes relative to the origin, a line each.
        kept: Whether its score is better than all earlier ones.
    """

    number: int
    name: str
    runs: list[Run]
    origin: "Experiment | None" = None
    changes: list[str] = field(default_factory=list)
    kept: bool = False

    @cached_property
    def settings(self) -> dict[str, Any]:
        """Its settings, by key."""
        return _settings_of(self.runs[0])

    @cached_property
    def scores(self) -> list[float]:
        """The score of each run that has one."""
        return [run.score for run in self.runs if run.score is not None]

    @property
    def score(self) -> float | None:
        """Mean score."""
        return statistics.fmean(self.scores) if self.scores else None

    @property
    def spread(self) -> float | None:
        """Standard deviation over seeds."""
        return statistics.stdev(self.scores) if len(self.scores) > 1 else None

    @property
    def repeats_a_seed(self) -> bool:
        """Whether two of its runs with a score have the same seed."""
        seeds = [seed for run in self.runs if run.score is not None and (seed := run.record.get("seed")) is not None]
        return len(set(seeds)) < len(seeds)

    def figure(self, key: str) -> float | None:
        """Median of a value of the records, such as `total_steps`; of completed runs, if there are any."""
        runs = [run for run in self.runs if run.score is not None] or self.runs
        values = [run.record[key] for run in runs if run.record.get(key) is not None]
        return statistics.median(values) if values else None


def experiments_of(runs: Iterable[Run]) -> list[Experiment]:
    """Groups runs that differ only in their seed, and finds the changes of each experiment.

    Args:
        runs: In the order in which they ended, as the ledger gives them.

    Returns:
        Experiments in the order of their numbers.
    """
    groups: dict[tuple[Any, ...], list[Run]] = {}
    for run in sorted(runs, key=lambda run: not run.config):
        if run.status != "running":
            name = re.sub(r",seed=-?\d+", "", run.experiment)
            key = (name, *sorted(map(str, _settings_of(run).items())))
            if not run.config:  # it ended before it wrote its config
                key = next((other for other in groups if other[0] == name), key)
            groups.setdefault(key, []).append(run)
    numbers = [int(match[0]) for name, *_ in groups if (match := re.match(r"\d+", str(name)))]
    if len(set(numbers)) < len(groups):
        numbers = list(range(1, len(groups) + 1))
    found = [Experiment(n, str(key[0]), members) for n, (key, members) in zip(numbers, groups.items(), strict=True)]
    found.sort(key=lambda experiment: experiment.number)
    best = float("inf")
    for place, experiment in enumerate(found):
        experiment.origin, experiment.changes = _origin(experiment, found[:place])
        experiment.kept = experiment.score is not None and experiment.score < best
        best = min(best, experiment.score or best)
    return found


def _settings_of(run: Run) -> dict[str, Any]:
    """The settings of a run, and the files of its own code as settings: another content is another experiment."""
    return {**settings(run.config), **(run.record.get("code") or {})}


def settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a config that can affect the score, by dotted key."""
    return {
        key: value
        for key, value in flat(config).items()
        if key not in NO_SETTINGS and key.partition(".")[0] not in NO_SETTINGS
    }


def changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """The changes from one config to another, a line each, such as `d_ff 320 → 256`.

    If a part was replaced by another class, options that only one of the two has are left out.

    Args:
        before: Settings of the first, by key.
        after: Settings of the second, by key.
    """
    keys = [key for key in {**before, **after} if before.get(key) != after.get(key)]
    swapped = tuple(f"{key}." for key in keys if key in before and key in after and _is_class(key, before, after))
    lines = []
    for key in keys:
        if key.startswith(swapped) and not (key in before and key in after):
            continue
        if key.endswith(CODE) and not (key in before and key in after):  # the class that is named is the change
            continue
        old, new = (_text(values[key]) if key in values else "none" for values in (before, after))
        lines.append(f"{_short(key)} {old} → {new}")
    return lines


def _origin(experiment: Experiment, earlier: Sequence[Experiment]) -> tuple[Experiment | None, list[str]]:
    """The earlier experiment with the fewest differences; the best of them if there are several."""
    candidates = [(changes(other.settings, experiment.settings), other) for other in earlier]
    if not candidates:
        return None, []
    lines, origin = min(candidates, key=lambda one: (len(one[0]), one[1].score or float("inf")))
    return origin, lines


def _is_class(key: str, *configs: Mapping[str, Any]) -> bool:
    return any(other.startswith(f"{key}.") for config in configs for other in config)


def _short(key: str) -> str:
    """A short form of a key, without its usual prefix."""
    for prefix in ("model.gpt.", "model.", "trainer.", "data."):
        if key.startswith(prefix):
            return key.removeprefix(prefix).replace("optimizer.lr", "lr")
    return key


def _text(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


@dataclass(frozen=True)
class Spread:
    """The spread of scores over seeds.

    Attributes:
        variance: Variance of one run's score, pooled over experiments with several seeds.
        freedom: Degrees of freedom: runs minus experiments.
    """

    variance: float
    freedom: int

    @classmethod
    def of(cls, experiments: Iterable[Experiment]) -> "Spread | None":
        """The spread of experiments; None if none has several seeds."""
        several = [experiment.scores for experiment in experiments if len(experiment.scores) > 1]
        freedom = sum(len(scores) - 1 for scores in several)
        squares = sum(statistics.variance(scores) * (len(scores) - 1) for scores in several)
        return cls(squares / freedom, freedom) if freedom else None


class Noise:
    """The noise of scores, for judging differences.

    The spread differs between kinds of runs, so it is pooled over each phase separately; a phase without several seeds
    uses the spread of all phases.

    Args:
        phases: Experiments by their phase.
        measured: Experiments that the spread is measured on, by the same phases; default `phases`.

    Attributes:
        spreads: The spread in each phase; empty if it is not known.
    """

    def __init__(
        self, phases: Mapping[str, Sequence[Experiment]], measured: Mapping[str, Sequence[Experiment]] | None = None
    ) -> None:
        measured = phases if measured is None else measured
        overall = Spread.of(dict.fromkeys(experiment for members in measured.values() for experiment in members))
        self.spreads: dict[str, Spread] = {}
        if overall is not None:
            self.spreads = {phase: Spread.of(measured.get(phase, ())) or overall for phase in phases}
        self._phase = {experiment: phase for phase, members in phases.items() for experiment in members}

    def difference(self, one: Experiment, other: Experiment) -> tuple[float, float]:
        """Standard error of the difference of two mean scores, and its degrees of freedom (Welch 1947)."""
        first, second = (self.spreads[self._phase[experiment]] for experiment in (one, other))
        parts = first.variance / len(one.scores), second.variance / len(other.scores)
        if first is second or not sum(parts):
            return sum(parts) ** 0.5, first.freedom
        return sum(parts) ** 0.5, sum(parts) ** 2 / (parts[0] ** 2 / first.freedom + parts[1] ** 2 / second.freedom)

    def margin(self, one: Experiment, other: Experiment) -> float:
        """Half the width of the 95% interval of the difference of two mean scores (Student's t)."""
        error, freedom = self.difference(one, other)
        return float(stats.t.ppf((1 + CONFIDENCE) / 2, freedom)) * error

    def significant(self, pairs: Sequence[tuple[Experiment, Experiment]]) -> list[bool]:
        """For each pair, whether the scores differ significantly.

        Because many pairs are compared, the threshold controls the false discovery rate: at most 5% of the pairs that
        are reported as different are expected to be noise (Benjamini and Hochberg 1995).
        """
        if not pairs:
            return []
        p_values = []
        for one, other in pairs:
            apart = abs((one.score or 0.0) - (other.score or 0.0))
            error, freedom = self.difference(one, other)
            p_values.append(2 * float(stats.t.sf(apart / error, freedom)) if error else float(apart == 0))
        return [bool(p <= 1 - CONFIDENCE) for p in stats.false_discovery_control(p_values)]
