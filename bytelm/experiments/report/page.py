"""`python -m bytelm report`: the results of a collection of runs, as a Markdown page with pictures and as an HTML file.

All contents are read from the runs' folders.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bytelm.config.command import CommandParser
from bytelm.errors import as_storage_error
from bytelm.experiments.report import plots
from bytelm.experiments.report.cells import change_since, score_text
from bytelm.experiments.report.contests import REPORTED_BY, Contest, Layout, contests_of, ended_runs
from bytelm.experiments.report.html import to_html
from bytelm.experiments.report.section import Section
from bytelm.experiments.report.text import plain, table
from bytelm.runs.folder import RUNS
from bytelm.runs.read import Run
from bytelm.runs.score import RANKED

MOST_STUDIES = 3  # in a title


def report(
    runs: list[str],
    out: str | None = None,
    title: str | None = None,
    phases: dict[str, list[str]] | None = None,
    curves: list[str] | None = None,
    reported: dict[str, dict[str, float]] | None = None,
    reported_by: str = REPORTED_BY,
    effects: dict[str, list[str]] | None = None,
    spread_of: list[str] | None = None,
) -> Path:
    """Writes report.md with its pictures, and report.html, which contains them.

    Args:
        runs: Folders with runs: `runs`, a study's folder, or several.
        out: Folder for the report; default: `report` in the first of these folders.
        title: Headline. Default: made from the names of the studies or folders.
        phases: Tables, each with its title and its experiments, as names or patterns: `{Size: [14-*, 15-*]}`. Default:
            one for each study.
        curves: Experiments, as names or patterns, whose training curves are shown. Default: all if there are few;
            otherwise the first and the best of each phase.
        reported: Figures from other sources to show beside experiments, given as names or patterns:
            `{32-*: {val_bpb: 2.95, total_steps: 243}}`; for runs that are ranked by val_loss, `val_loss`.
        reported_by: Source of these figures, as the head of their columns.
        effects: Statements to examine, each with the experiment claimed to be better and the one claimed to be worse:
            `{Rotary over learned positions: [24-*, 16-*]}`.
        spread_of: Folders with other runs of the same experiments, from whose seeds the noise is measured. Default:
            these runs.

    Returns:
        The HTML page.

    Raises:
        StorageError: There are no runs, or the report cannot be written.
        ConfigError: A pattern matches no experiment, or a figure is not shown.
    """
    found = ended_runs(runs)
    layout = Layout(phases, curves, reported or {}, reported_by, effects or {})
    contests = contests_of(found)
    measured = contests_of(ended_runs(spread_of)) if spread_of else None
    layout.check(contests)
    folder = Path(out) if out else Path(runs[0], "report")
    title = title or _title(runs, found)
    sections = {
        contest: Section(
            experiments,
            layout,
            contest.score,
            f"{number}-" if len(contests) > 1 else "",
            None if measured is None else measured.get(contest, []),
        )
        for number, (contest, experiments) in enumerate(contests.items(), start=1)
    }
    charts: dict[str, dict[str, Any]] = {}
    with as_storage_error(f"{folder}: the report cannot be written"):
        folder.mkdir(parents=True, exist_ok=True)
        for section in sections.values():
            if _has_chapter(section, sections):
                for name, draw in section.pictures.items():
                    plots.save(draw(), folder / name)
                charts |= section.charts
        text = _page(title, sections)
        folder.joinpath("report.md").write_text(text, encoding="utf-8")
        page = folder / "report.html"
        page.write_text(to_html(text, title, folder, charts), encoding="utf-8")
    return page


def _title(folders: Sequence[str], runs: Sequence[Run]) -> str:
    studies = list(dict.fromkeys(run.study for run in runs))
    if RUNS in studies or len(studies) > MOST_STUDIES:  # runs of no study are in RUNS itself
        return f"Runs in {', '.join(folders)}"
    return f"Runs of {', '.join(studies)}"


def _has_chapter(section: Section, sections: Mapping[Contest, Section]) -> bool:
    """With several contests, one with a single experiment appears only in the table of contests."""
    return len(sections) == 1 or len(section.experiments) > 1


def _page(title: str, sections: Mapping[Contest, Section]) -> str:
    parts = [f"# {plain(title)}"]
    if len(sections) > 1:
        parts += [
            "## Contests",
            _contests(sections),
            "Only scores of the same contest can be compared: the same score, on the same corpus, in the same budget.",
        ]
    for number, (contest, section) in enumerate(sections.items(), start=1):
        if _has_chapter(section, sections):
            parts += [f"# Contest {number}", f"**{_name(contest, section)}**"] if len(sections) > 1 else []
            parts.append(section.markdown())
    alone = [section.failures() for section in sections.values() if not _has_chapter(section, sections)]
    if any(alone):
        parts += ["# Other runs without a score", *filter(None, alone)]
    return "\n\n".join(parts) + "\n"


def _contests(sections: Mapping[Contest, Section]) -> str:
    rows = []
    for number, (contest, section) in enumerate(sections.items(), start=1):
        best, first = section.best, section.experiments[0]
        rows.append(
            [
                f"[{number}](#contest-{number})" if _has_chapter(section, sections) else str(number),
                plain(contest.budget or "not known"),
                plain(_corpus(section)),
                contest.score.name,
                str(len(section.experiments)),
                str(len(section.runs)),
                "none was completed" if best is None else f"{plain(best.name)}: {score_text(best)}",
                "" if best is None or best is first else plain(", ".join(change_since(best, first)) or "none"),
            ]
        )
    head = ["Contest>", "Budget", "Corpus", "Score", "Experiments>", "Runs>", "Best", "Changed since the first"]
    return table(head, rows)


def _name(contest: Contest, section: Section) -> str:
    return f"{plain(contest.budget or 'no known budget')}, {plain(_corpus(section))}, {contest.score.name}"


def _corpus(section: Section) -> str:
    names = {run.corpus.get("name"): None for run in section.runs}
    return ", ".join(name for name in names if name) or "no known corpus"


def main(args: list[str]) -> None:
    """Runs the command.

    Args:
        args: The arguments after `python -m bytelm report`.
    """
    description = f"Writes the results of a collection of runs, as Markdown and as HTML. {RANKED}"
    parser = CommandParser("report", description=description)
    parser.add_argument("--config", action="config", help="A YAML file with these options.")
    parser.add_argument("runs", nargs="*", default=[RUNS], help=f"Folders with runs. Default: {RUNS}.")
    parser.add_function_arguments(report, skip={"runs"})
    given = vars(parser.parse_args(args))
    given.pop("config")
    print(f"report: {report(**given)}")
