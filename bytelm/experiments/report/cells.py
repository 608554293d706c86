"""Texts in the report's tables about one experiment or run."""

from collections.abc import Iterable, Mapping
from typing import Any

from bytelm.experiments.comparison import Experiment, changes
from bytelm.runs.read import Run

MOST_CHANGES = 6  # an experiment with more changes is a different experiment


def change_since(best: Experiment, first: Experiment) -> list[str]:
    """Returns the changes of one experiment's settings from another's, at most MOST_CHANGES lines."""
    return _limited(changes(first.settings, best.settings))


def reason_of(run: Run) -> str:
    """Returns the reason why a run has no score."""
    if run.has_loss_alone:
        return f"it has a val_loss only: {run.record['val_loss']:.4f}"
    return str(run.record.get("reason") or "")


def score_text(experiment: Experiment) -> str:
    """Returns the mean score; with several runs, also its standard deviation and the number of runs."""
    if experiment.score is None:
        return "none"
    if experiment.spread is None:
        return f"{experiment.score:.4f}"
    return f"{experiment.score:.4f} ± {experiment.spread:.4f} ({len(experiment.scores)})"


def params_text(experiment: Experiment) -> str:
    millions = experiment.figure("num_params_M")
    if millions is None:
        return ""
    return f"{millions * 1000:,.0f}K" if millions < 1 else f"{millions:,.1f}M"


def count_text(value: float | None) -> str:
    return "" if value is None else f"{value:,.0f}"


def change_text(experiment: Experiment) -> str:
    if experiment.origin is None:
        return ""
    return f"{', '.join(_limited(experiment.changes)) or 'none'} (from {experiment.origin.name})"


def _limited(lines: list[str]) -> list[str]:
    return lines if len(lines) <= MOST_CHANGES + 1 else [*lines[:MOST_CHANGES], f"… ({len(lines)} in all)"]


def device_text(record: Mapping[str, Any]) -> str:
    """Returns the device, with the number of processes if there were several."""
    device, size = str(record.get("device") or ""), record.get("world_size") or 1
    return f"{size} x {device}" if size > 1 else device


def versions_text(record: Mapping[str, Any]) -> str:
    versions = record["versions"]
    names = {"bytelm": "bytelm", "torch": "torch", "lightning": "lightning", "python": "Python"}
    return ", ".join(f"{name} {versions[key]}" for key, name in names.items() if versions.get(key))


def commits_text(runs: Iterable[Run]) -> str:
    """Returns the commits of the repositories that runs were started in, at most MOST_CHANGES."""
    found = [git for run in runs if (git := run.record.get("git") or {}).get("commit")]
    texts = [f"{git['commit'][:7]}{' with changes' if git.get('dirty') else ''}" for git in found]
    return ", ".join(_limited([*dict.fromkeys(texts)]))
