"""The subject of a report: the runs, which of them can be compared, and where each of them is shown."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import NamedTuple

from bytelm.errors import ConfigError, StorageError
from bytelm.experiments.comparison import Experiment, experiments_of
from bytelm.runs.folder import RUNS
from bytelm.runs.ledger import read_runs
from bytelm.runs.read import Run
from bytelm.runs.score import VAL_BPB, VAL_LOSS, Score


def ended_runs(roots: Iterable[str]) -> list[Run]:
    """Returns the ended runs below some folders, each once.

    Raises:
        StorageError: There are no such runs.
    """
    found: dict[Path, Run] = {}
    for root in map(Path, roots):
        if not root.is_dir():
            raise StorageError(f"{root}: no such folder; accepted: {RUNS}, or a folder in it")
        found |= {run.folder.resolve(): run for run in read_runs(root) if run.status != "running"}
    if not found:
        raise StorageError(f"{', '.join(roots)}: no runs there that have ended")
    return list(found.values())


STEPS = "total_steps"
REPORTED_BY = "reported"  # default of the source of figures


class Contest(NamedTuple):
    """Properties shared by all runs whose scores can be compared.

    Attributes:
        budget: Their limits.
        corpus: Hash of the corpus.
        score: The score that ranks them.
    """

    budget: str | None
    corpus: str | None
    score: Score


def contests_of(runs: Iterable[Run]) -> dict[Contest, list[Experiment]]:
    """Groups experiments by contest: the same score on the same corpus, within the same budget."""
    contests: dict[Contest, list[Run]] = {}
    for run in sorted(runs, key=lambda run: not run.corpus):
        corpus = run.corpus.get("sha256")
        contest = Contest(run.budget, corpus, run.ranked_by)
        if corpus is None:  # it ended before it had read its corpus, and joins the other runs of its study
            akin = (
                other
                for other, members in contests.items()
                if run.budget in (None, other.budget) and any(member.study == run.study for member in members)
            )
            contest = next(akin, contest)
        contests.setdefault(contest, []).append(run)
    return {
        contest: experiments_of(sorted(members, key=lambda run: run.record["ended_at"] or ""))
        for contest, members in contests.items()
    }


@dataclass(frozen=True)
class Layout:
    """Where experiments are shown; the arguments are those of `report`."""

    phases: Mapping[str, Sequence[str]] | None
    curves: Sequence[str] | None
    reported: Mapping[str, Mapping[str, float]]
    reported_by: str
    effects: Mapping[str, Sequence[str]]

    def arrange(self, experiments: Sequence[Experiment]) -> dict[str, list[Experiment]]:
        """Returns the experiments of each phase."""
        phases: dict[str, list[Experiment]] = {}
        if self.phases is None:
            for experiment in experiments:
                phases.setdefault(experiment.runs[0].study, []).append(experiment)
        else:
            phases = {name: matching(experiments, patterns) for name, patterns in self.phases.items()}
            rest = [e for e in experiments if not any(e in members for members in phases.values())]
            phases["Others"] = [*phases.get("Others", []), *rest]
        return {name: members for name, members in phases.items() if members}

    def check(self, contests: Mapping[Contest, Sequence[Experiment]]) -> None:
        """Checks names, patterns and figures.

        Raises:
            ConfigError: A name or pattern matches no experiment, or a figure has no place beside one.
        """
        experiments = [experiment for members in contests.values() for experiment in members]
        patterns = [(f"phases.{name}", pattern) for name, some in (self.phases or {}).items() for pattern in some]
        patterns += [("curves", pattern) for pattern in self.curves or ()]
        patterns += [("reported", pattern) for pattern in self.reported]
        patterns += [(f"effects.{statement}", name) for statement, pair in self.effects.items() for name in pair]
        for key, pattern in patterns:
            if not matching(experiments, [pattern]):
                names = ", ".join(dict.fromkeys(experiment.name for experiment in experiments))
                raise ConfigError(key, pattern, f"no experiment has that name; accepted: patterns of {names}")
        for statement, pair in self.effects.items():
            if len(pair) != 2:
                raise ConfigError(f"effects.{statement}", list(pair), "accepted: the better and the worse experiment")
        for pattern, figures in self.reported.items():
            shown = {contest.score.name for contest, members in contests.items() if matching(members, [pattern])}
            accepted = f"accepted: {', '.join([*sorted(shown), STEPS])}"
            for figure in figures.keys() - {VAL_BPB.name, VAL_LOSS.name, STEPS}:
                raise ConfigError(f"reported.{pattern}", figure, accepted)
            if not figures.keys() & {*shown, STEPS}:
                raise ConfigError(f"reported.{pattern}", dict(figures), accepted)
        if self.reported_by != REPORTED_BY and not (self.reported or self.effects):
            raise ConfigError("reported_by", self.reported_by, "accepted with --reported, the figures of this source")


def matching(experiments: Iterable[Experiment], patterns: Iterable[str]) -> list[Experiment]:
    """Returns the experiments whose names match, in the order of the patterns."""
    some = list(experiments)
    return list(
        dict.fromkeys(e for pattern in patterns for e in some if e.name == pattern or fnmatchcase(e.name, pattern))
    )
