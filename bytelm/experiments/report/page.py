"""`python -m bytelm report`: what a collection of runs came to, as a Markdown page with pictures and as one HTML file.

Everything in it is read from the runs' folders, by way of the ledger (ledger.py) and the comparison of configs
(compare.py).
"""

import base64
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import partial
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

import markdown
from matplotlib.figure import Figure
from scipy import stats

from bytelm.config.command import CommandParser
from bytelm.errors import ConfigError, StorageError
from bytelm.experiments.comparison import Experiment, Noise, experiments_of
from bytelm.experiments.report import plots
from bytelm.runs.folder import RUNS
from bytelm.runs.ledger import Run, best_of, read_runs
from bytelm.runs.record import wall_time
from bytelm.runs.score import RANKED, Score
from bytelm.units import clock

MOST_CHANGES = 6  # of a row; a run that changes more is another experiment altogether
MOST_CURVES = 6
CSS = """
body { font: 15px/1.5 system-ui, sans-serif; color: #222; max-width: 76rem; margin: 2rem auto; padding: 0 1rem }
h1, h2 { line-height: 1.2 } h2 { margin-top: 2.5rem }
table { border-collapse: collapse; font-size: 13.5px; margin: 1rem 0; display: block; overflow-x: auto }
th, td { padding: .3rem .7rem; border-bottom: 1px solid #ddd; text-align: left; vertical-align: top }
th { border-bottom: 2px solid #999 } th, td:nth-child(-n+3) { white-space: nowrap } tr:hover td { background: #f6f6f6 }
td[style*="right"], th[style*="right"] { font-variant-numeric: tabular-nums }
code { background: #f2f2f2; padding: .1em .3em; border-radius: 3px; font-size: 90% }
img { max-width: 100% }
"""


def report(
    runs: list[str],
    out: str | None = None,
    title: str | None = None,
    phases: dict[str, list[str]] | None = None,
    curves: list[str] | None = None,
    reported: dict[str, dict[str, float]] | None = None,
    reported_by: str = "reported",
    effects: dict[str, list[str]] | None = None,
    spread_of: list[str] | None = None,
) -> Path:
    """Writes report.md with its pictures, and report.html, which has them inside.

    Args:
        runs: Folders with runs: `runs`, that of a study, or several.
        out: Where to; default `report` in the first of these folders.
        title: Headline. Default: made of the folders' names.
        phases: Tables of their own, each a title and the experiments in it, as names or patterns: `{Size: [14-*,
            15-*]}`. Default: one for each study.
        curves: Experiments, as names or patterns, whose training is shown by the clock. Default: the first, and the
            best of each phase.
        reported: For experiments, as names or patterns, figures from elsewhere to put beside: `{32-*: {val_bpb: 2.95,
            total_steps: 243}}`; of runs that are ranked by val_loss, that.
        reported_by: Whose figures those are, as the head of their columns.
        effects: Statements to look at, each with the experiment that is said to be better and the one that is said to
            be worse: `{Rotary over learned positions: [24-*, 16-*]}`.
        spread_of: Folders with other runs of the same experiments, over whose seeds the noise is measured. Default:
            these runs.

    Returns:
        The HTML page.

    Raises:
        StorageError: There are no runs, or the report cannot be written.
        ConfigError: A pattern fits no experiment.
    """
    found = find_runs(runs)
    layout = Layout(phases, curves, reported or {}, reported_by, effects or {})
    contests = contests_of(found)
    measured = contests_of(find_runs(spread_of)) if spread_of else None
    layout.check([experiment for experiments in contests.values() for experiment in experiments])
    folder = Path(out) if out else Path(runs[0], "report")
    title = title or f"Runs of {', '.join(dict.fromkeys(run.study for run in found))}"
    sections = [
        Section(
            experiments,
            layout,
            contest.score,
            f"{number}-" if len(contests) > 1 else "",
            None if measured is None else measured.get(contest, []),
        )
        for number, (contest, experiments) in enumerate(contests.items(), start=1)
    ]
    text = f"# {_plain(title)}\n\n" + "\n\n".join(section.markdown() for section in sections) + "\n"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for section in sections:
            for name, draw in section.pictures.items():
                plots.save(draw(), folder / name)
        folder.joinpath("report.md").write_text(text, encoding="utf-8")
        page = folder / "report.html"
        page.write_text(to_html(text, title, folder), encoding="utf-8")
    except OSError as error:
        raise StorageError(f"{folder}: the report could not be written ({error.strerror or error})") from error
    return page


def find_runs(roots: Iterable[str]) -> list[Run]:
    """The runs below some folders that have ended, each once.

    Raises:
        StorageError: There are none.
    """
    found: dict[Path, Run] = {}
    for root in map(Path, roots):
        if not root.is_dir():
            raise StorageError(f"{root}: there is no such folder; accepted: {RUNS}, or a folder in it")
        found |= {run.folder.resolve(): run for run in read_runs(root) if run.status != "running"}
    if not found:
        raise StorageError(f"{', '.join(roots)}: no runs there that have ended")
    return list(found.values())


class Contest(NamedTuple):
    """What is the same for all runs whose scores can be compared."""

    budget: str | None
    corpus: str | None
    score: Score


def contests_of(runs: Iterable[Run]) -> dict[Contest, list[Experiment]]:
    """Experiments by what their scores can be compared with: the same score on the same corpus, in the same budget."""
    contests: dict[Contest, list[Run]] = {}
    for run in sorted(runs, key=lambda run: not run.record.get("corpus")):
        corpus = (run.record.get("corpus") or {}).get("sha256")
        contest = Contest(run.budget, corpus, run.ranked_by)
        if corpus is None:  # it ended before it had read its corpus, so it goes with other runs of its study
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
    """What goes where: see `report`."""

    phases: Mapping[str, Sequence[str]] | None
    curves: Sequence[str] | None
    reported: Mapping[str, Mapping[str, float]]
    reported_by: str
    effects: Mapping[str, Sequence[str]]

    def arrange(self, experiments: Sequence[Experiment]) -> dict[str, list[Experiment]]:
        """Experiments by the phase that they belong to."""
        phases: dict[str, list[Experiment]] = {}
        if self.phases is None:
            for experiment in experiments:
                phases.setdefault(experiment.runs[0].study, []).append(experiment)
        else:
            phases = {name: matching(experiments, patterns) for name, patterns in self.phases.items()}
            rest = [e for e in experiments if not any(e in members for members in phases.values())]
            phases["Others"] = [*phases.get("Others", []), *rest]
        return {name: members for name, members in phases.items() if members}

    def check(self, experiments: Sequence[Experiment]) -> None:
        """Refuses names and patterns that fit none of the experiments."""
        patterns = [(f"phases.{name}", pattern) for name, some in (self.phases or {}).items() for pattern in some]
        patterns += [("curves", pattern) for pattern in self.curves or ()]
        patterns += [("reported", pattern) for pattern in self.reported]
        patterns += [(f"effects.{statement}", name) for statement, pair in self.effects.items() for name in pair]
        for key, pattern in patterns:
            if not matching(experiments, [pattern]):
                names = ", ".join(dict.fromkeys(experiment.name for experiment in experiments))
                raise ConfigError(key, pattern, f"no experiment is called that; accepted: patterns of {names}")
        for statement, pair in self.effects.items():
            if len(pair) != 2:
                raise ConfigError(f"effects.{statement}", list(pair), "accepted: the better and the worse experiment")


def matching(experiments: Iterable[Experiment], patterns: Iterable[str]) -> list[Experiment]:
    """The experiments whose names fit, in the order of the patterns."""
    some = list(experiments)
    return list(
        dict.fromkeys(e for pattern in patterns for e in some if e.name == pattern or fnmatchcase(e.name, pattern))
    )


class Section:
    """The part of the page on experiments that compete with each other.

    Args:
        experiments: In the order of their numbers.
        layout: What goes where.
        score: What they are ranked by.
        prefix: Of its pictures' names.
        measured: Experiments over whose seeds the noise is measured; default these.
    """

    def __init__(
        self,
        experiments: Sequence[Experiment],
        layout: Layout,
        score: Score,
        prefix: str = "",
        measured: Sequence[Experiment] | None = None,
    ) -> None:
        self.experiments = experiments
        self.runs = [run for experiment in experiments for run in experiment.runs]
        self.score = score
        self.prefix = prefix
        self.reported_by = layout.reported_by
        self.reported: dict[Experiment, Mapping[str, float]] = {}
        for pattern, figures in layout.reported.items():
            self.reported |= dict.fromkeys(matching(experiments, [pattern]), figures)
        self.phases = layout.arrange(experiments)
        self.noise = Noise(self.phases, None if measured is None else layout.arrange(measured))
        self.effects: dict[str, tuple[Experiment, Experiment]] = {}
        for statement, names in layout.effects.items():
            better, worse = (matching(experiments, [name]) for name in names)
            if better and worse:
                self.effects[statement] = better[0], worse[0]
        if layout.curves is None:
            best = [_best(members) for members in self.phases.values()]
            shown = list(dict.fromkeys([experiments[0], *filter(None, best)]))[:MOST_CURVES]
        else:
            shown = matching(experiments, layout.curves)
        curves = [next((run for run in e.runs if run.score is not None), e.runs[0]) for e in shown]
        self.pictures: dict[str, Callable[[], Figure]] = {
            f"{prefix}by_number.svg": partial(plots.by_number, self.phases, score),
            f"{prefix}by_parameters.svg": partial(plots.by_parameters, self.phases, score),
            f"{prefix}by_time.svg": partial(plots.by_time, curves, score),
        }

    def markdown(self) -> str:
        """Its Markdown, with its pictures as links to files beside it."""
        parts = [self._summary(), *self._unranked(), "## Best configuration", self._best()]
        parts += [f"![Scores in the order of the runs, with the best so far]({self.prefix}by_number.svg)"]
        for phase, members in self.phases.items():
            parts += [f"## {_plain(phase)}", self._table(members)]
        if self.effects:
            parts += ["## Effects", self._effects_table()]
        parts += ["## What differs by more than noise", self._noise()]
        parts += ["## Size", f"![Scores against the number of parameters]({self.prefix}by_parameters.svg)"]
        parts += ["## Training by the clock", f"![Loss against seconds of training]({self.prefix}by_time.svg)"]
        if failures := self._failures():
            parts += ["## Runs without a score", failures]
        return "\n\n".join(parts)

    def _summary(self) -> str:
        counts = Counter(run.status for run in self.runs)
        records = [run.record for run in self.runs if run.record.get("versions")]
        total = clock(sum(wall_time(run.record) for run in self.runs))
        times = [run.record[key] for run in self.runs for key in ("started_at", "ended_at") if run.record.get(key)]

        def all_of(values: Iterable[Any]) -> str:
            return ", ".join(dict.fromkeys(str(value) for value in values if value)) or "not known"

        rows = {
            "runs": f"{len(self.runs)} ({', '.join(f'{n} {status}' for status, n in counts.items())}), {total} in all",
            "when": f"{min(times)[:16].replace('T', ' ')} to {max(times)[:16].replace('T', ' ')} UTC" if times else "",
            "budget": all_of(run.budget for run in self.runs),
            "corpus": all_of((record.get("corpus") or {}).get("name") for record in records),
            "seeds": all_of(sorted({str(seed) for run in self.runs if (seed := run.record.get("seed")) is not None})),
            "device": all_of(f"{r['device']}, {r['world_size']} process(es)" for r in records),
            "versions": all_of(
                f"bytelm {r['versions']['bytelm']}{_commit(r)}, torch {r['versions']['torch']}, "
                f"lightning {r['versions']['lightning']}, Python {r['versions']['python']}"
                for r in records
            ),
        }
        return _table(["", ""], [[key, value] for key, value in rows.items() if value])

    def _unranked(self) -> list[str]:
        names = dict.fromkeys(run.experiment for run in self.runs if run.has_loss_alone and run.score is None)
        if not names:
            return []
        return [
            f"Not ranked: {_plain(', '.join(names))}. It is not known how many bytes their tokens stand for, so they "
            "have val_loss alone, and nats per token cannot be compared with bits per byte."
        ]

    def _best(self) -> str:
        rivals = [experiment for experiment in self.experiments if experiment.scores]
        if not rivals:
            return "No run was completed."
        best, first = _best(rivals), rivals[0]
        assert best is not None
        assert best.score is not None
        assert first.score is not None
        text = (
            f"**{_plain(best.name)}**: {self.score.name} {_score(best)}, {_count(best.figure('total_steps'))} steps, "
            f"{_params(best)} parameters, {_count(best.figure('tokens_per_sec'))} tokens/s."
        )
        if first is not best:
            less = 100 * (1 - best.score / first.score)
            text += f" That is {less:.1f} % less than the first, {_plain(first.name)} ({first.score:.4f})."
        parts, chain, at = [text], [], best
        while at.origin is not None:
            chain.append(_plain(f"* {', '.join(at.changes) or 'no change of a setting'} (from {at.origin.name})"))
            at = at.origin
        if chain:
            parts += [f"How it came about, beginning with {_plain(at.name)}:", "\n".join(reversed(chain))]
        network = [key for key in best.settings if key.startswith("model.gpt.") and key.count(".") == 2]
        shape = ", ".join(f"{key.rpartition('.')[2]} {best.settings[key]}" for key in network)
        run = best_of(best.runs)
        assert run is not None
        again = f"To train it again: `python -m bytelm fit --config {run.folder}/config.yaml`"
        return "\n\n".join([*parts, f"Its network: {_plain(shape)}.", again])

    def _table(self, members: Sequence[Experiment]) -> str:
        columns: dict[str, Callable[[Experiment], str]] = {
            "Run>": lambda e: str(e.number),
            "Config": lambda e: e.name,
            f"{self.score.head}>": lambda e: f"**{_score(e)}**" if e.kept else _score(e),
            f"{self.reported_by}>": lambda e: self._told(e, self.score.name, "{:.3f}"),
            "Steps>": lambda e: _count(e.figure("total_steps")),
            f"{self.reported_by} steps>": lambda e: self._told(e, "total_steps", "{:,.0f}"),
            "Params>": _params,
            "Key change": _change,
            "": lambda e: "keep" if e.kept else "discard" if e.scores else e.runs[-1].status,
        }
        if not any("total_steps" in self.reported.get(e, {}) for e in members):
            del columns[f"{self.reported_by} steps>"]
        if not any(self.score.name in self.reported.get(e, {}) for e in members):
            del columns[f"{self.reported_by}>"]
        return _table(list(columns), [[cell(e) for cell in columns.values()] for e in members])

    def _told(self, experiment: Experiment, key: str, form: str) -> str:
        value = self.reported.get(experiment, {}).get(key)
        return "" if value is None else form.format(value)

    def _effects_table(self) -> str:
        reported, name = self.reported, self.score.name
        rows = []
        pairs = [(b, w) for b, w in self.effects.values() if b.scores and w.scores]
        beyond = dict(zip(pairs, self.noise.significant(pairs), strict=True)) if self.noise.spreads else {}
        for statement, (better, worse) in self.effects.items():
            row = [statement, f"{better.name} ({_score(better)})", f"{worse.name} ({_score(worse)})"]
            if better.score is None or worse.score is None:
                rows.append([*row, "", "", "not to be said: a run has no score"])
                continue
            gain = worse.score - better.score
            theirs = [reported.get(e, {}).get(name) for e in (worse, better)]
            told = f"{theirs[0] - theirs[1]:+.3f}" if theirs[0] is not None and theirs[1] is not None else ""
            verdict = "shows" if gain > 0 else "the opposite shows"
            if beyond and not beyond[better, worse]:
                verdict = "within noise"
            rows.append([*row, f"{gain:+.4f}", told, verdict])
        head = ["Statement", "Better", "Worse", "Gain here>", f"Gain {self.reported_by}>", ""]
        return _table(head, rows)

    def _noise(self) -> str:
        name = self.score.name
        scored = [e for e in self.experiments if e.score is not None]
        parts = []
        ranked = [(e.score, self.reported[e][name]) for e in scored if name in self.reported.get(e, {})]
        if len(ranked) > 2 and all(len(set(side)) > 1 for side in zip(*ranked, strict=True)):
            rank = float(stats.spearmanr(*zip(*ranked, strict=True)).statistic)
            parts.append(
                f"The order of the {len(ranked)} scores agrees with that of {self.reported_by} with a rank correlation "
                f"(Spearman's) of {rank:.2f}."
            )
        if not scored:
            return "No run was completed, so nothing can be said."
        if not self.noise.spreads:
            parts.append(
                "No experiment was run with several seeds, so how much the seed alone does is not known here, and "
                "nothing can be said. `python -m bytelm experiments … --seeds 42 1 2` runs each with three."
            )
            return "\n\n".join(parts)
        parts.append(f"By the seed alone, {name} varies with these standard deviations, each pooled over a phase:")
        rows = [[phase, f"{one.variance**0.5:.4f}", str(one.freedom)] for phase, one in self.noise.spreads.items()]
        parts.append(_table(["Phase", "Deviation>", "Degrees of freedom>"], rows))
        pairs = [(e, e.origin) for e in scored if e.origin is not None and e.origin.score is not None]
        verdicts = self.noise.significant(pairs)
        rows = []
        for (e, origin), real in zip(pairs, verdicts, strict=True):
            difference = (e.score or 0.0) - (origin.score or 0.0)
            verdict = ("better" if difference < 0 else "worse") if real else "within noise"
            margin = self.noise.margin(e, origin)
            rows.append([str(e.number), e.name, origin.name, f"{difference:+.4f} ± {margin:.4f}", verdict])
        if rows:
            parts.append(
                "Each run against the one that it was made from, with the 95 % interval of the difference (Student's "
                "t). What is said to be better or worse differs by more than noise: of all of these statements "
                "together, 5 % at most are expected to be wrong (Benjamini and Hochberg)."
            )
            parts.append(_table(["Run>", "Config", "From", "Difference>", ""], rows))
        best, *others = sorted(scored, key=lambda e: e.score or 0.0)
        differ = self.noise.significant([(best, e) for e in others])
        equal = [e.name for e, differs in zip(others, differ, strict=True) if not differs]
        parts.append(f"Not to be told from the best, {_plain(best.name)}: {_plain(', '.join(equal)) or 'none'}.")
        return "\n\n".join(parts)

    def _failures(self) -> str:
        rows = [[run.experiment, run.status, _reason(run), f"`{run.folder}`"] for run in self.runs if run.score is None]
        return _table(["Config", "Status", "Reason", "Folder"], rows) if rows else ""


def _reason(run: Run) -> str:
    """Why a run has no score."""
    if run.has_loss_alone:
        return f"it has val_loss alone: {run.record['val_loss']:.4f}"
    return str(run.record.get("reason") or "")


def _best(experiments: Iterable[Experiment]) -> Experiment | None:
    return min((e for e in experiments if e.scores), key=lambda e: e.score or 0.0, default=None)


def _score(experiment: Experiment) -> str:
    if experiment.score is None:
        return "none"
    if experiment.spread is None:
        return f"{experiment.score:.4f}"
    return f"{experiment.score:.4f} ± {experiment.spread:.4f} ({len(experiment.scores)})"


def _params(experiment: Experiment) -> str:
    millions = experiment.figure("num_params_M")
    if millions is None:
        return ""
    return f"{millions * 1000:,.0f}K" if millions < 1 else f"{millions:,.1f}M"


def _count(value: float | None) -> str:
    return "" if value is None else f"{value:,.0f}"


def _change(experiment: Experiment) -> str:
    if experiment.origin is None:
        return ""
    lines = experiment.changes
    shown = lines if len(lines) <= MOST_CHANGES + 1 else [*lines[:MOST_CHANGES], f"… ({len(lines)} in all)"]
    return f"{', '.join(shown) or 'none'} (from {experiment.origin.number})"


def _commit(record: Mapping[str, Any]) -> str:
    git = record.get("git")
    return f" ({git['commit'][:7]}{', with changes' if git['dirty'] else ''})" if git else ""


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table; columns whose heads end in `>` are aligned to the right."""
    lines = [[name.removesuffix(">") for name in head], ["---:" if name.endswith(">") else "---" for name in head]]
    cells = [*lines, *([_plain(cell).replace("|", "\\|") for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(row)} |" for row in cells)


def _plain(text: object) -> str:
    """Text as one line, in which nothing is HTML."""
    return escape(" ".join(str(text).split()), quote=False)


def to_html(text: str, title: str, folder: Path) -> str:
    """One page that needs no other file.

    Args:
        text: Markdown.
        title: Of the browser's window.
        folder: Where its pictures are.
    """

    def inline(match: re.Match[str]) -> str:
        data = base64.b64encode(folder.joinpath(match[1]).read_bytes()).decode()
        return f'src="data:image/svg+xml;base64,{data}"'

    body = re.sub(r'src="([\w-]+\.svg)"', inline, markdown.markdown(text, extensions=["tables", "sane_lists"]))
    head = f'<meta charset="utf-8"><title>{escape(title)}</title><style>{CSS}</style>'
    return f"<!doctype html>\n<html lang=en><head>{head}</head>\n<body>\n{body}\n</body></html>\n"


def main(args: list[str]) -> None:
    """Runs the command.

    Args:
        args: What follows `python -m bytelm report`.
    """
    description = f"Writes what a collection of runs came to, as Markdown and as HTML. {RANKED}"
    parser = CommandParser("report", description=description)
    parser.add_argument("--config", action="config", help="A YAML file with these options.")
    parser.add_argument("runs", nargs="*", default=[RUNS], help=f"Folders with runs. Default: {RUNS}.")
    parser.add_function_arguments(report, skip={"runs"})
    given = vars(parser.parse_args(args))
    given.pop("config")
    print(f"report: {report(**given)}")
