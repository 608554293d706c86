"""Finds the checkpoint and the run that a command line names.

A checkpoint is named by its file, by the folder of its run, by the folder of an experiment (its newest run), or as
`last` or `best`.

`fit --ckpt_path last` resumes the newest run of the experiment. If that run ended before its first checkpoint, it
starts again in its folder, provided that the command is the same; an older run is never used instead. A
run's own config.yaml names that run: `validate --config runs/x/version_0/config.yaml --ckpt_path best` scores
version_0.
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bytelm.config.messages import note
from bytelm.config.text import read
from bytelm.errors import CheckpointError, ConfigError, StorageError
from bytelm.runs import record
from bytelm.runs.checkpoint_checks import COMPARED, RESUMED, differences
from bytelm.runs.folder import (
    CHECKPOINTS,
    CONFIG,
    RUNS,
    checkpoint_of,
    newest_checkpoint,
    newest_run,
    number_of,
    run_of,
)

NAMES = ("best", "last")
SCORING = ("validate", "test", "predict")
USING = ("generate", "evaluate")  # these accept a run instead of options, as those that score do


def find_checkpoint(given: str | Path, experiment: str | None = None, order: Sequence[str] = NAMES) -> Path:
    """The file of a checkpoint.

    Args:
        given: A file; the folder of a run or of an experiment; or `last` or `best`, of the newest run that has it.
        experiment: The experiment of the newest run; default all experiments.
        order: Names of checkpoints; the first that exists in a folder is used.

    Raises:
        CheckpointError: There is none. The existence of a given file is not checked.
    """
    if str(given) in NAMES:
        found = _newest(str(given)) if experiment is None else newest_checkpoint(experiment, str(given))
        if found is None:
            where = RUNS if experiment is None else f"{RUNS}/{experiment}"
            raise CheckpointError(f"ckpt_path: no {given}.ckpt in {where}; accepted: a path, too")
        return found
    path = Path(given)
    if not os.path.isdir(path):  # False for a name that no file can have, too
        return path
    for name in order:
        for file in (checkpoint_of(path, name), path / f"{name}.ckpt"):
            if file.is_file():
                return file
    of_runs = [found for name in order if (found := newest_checkpoint(path.name, name, str(path.parent)))]
    if not of_runs:
        names = " or ".join(f"{name}.ckpt" for name in order)
        accepted = f"accepted: a checkpoint, or the folder of a run with {names}"
        raise CheckpointError(f"ckpt_path: {str(path)!r} is a folder without checkpoints; {accepted}")
    newest = max(number_of(file.parent.parent) for file in of_runs)
    return next(file for file in of_runs if number_of(file.parent.parent) == newest)


def with_run(arguments: Sequence[str]) -> list[str]:
    """Expands `validate RUN`, `test RUN`, `predict RUN`, `generate RUN` or `evaluate RUN` to options.

    Args:
        arguments: The command and its options.

    Returns:
        The same, with the config and the checkpoint of RUN as options. They come first; later ones take precedence.

    Raises:
        CheckpointError: RUN is a folder without checkpoints.
        ConfigError: RUN is not the folder of a run.
    """
    command, *rest = [*arguments] or [""]
    if command not in (*SCORING, *USING) or not rest or rest[0].startswith("-"):
        return [*arguments]
    given, *options = rest
    if not os.path.isdir(given):
        alone = "--config" if command in SCORING else "--ckpt_path"
        accepted = f"accepted: the folder of a run, such as {RUNS}/my-experiment/version_0, or options alone ({alone})"
        raise ConfigError("run", given, accepted)
    checkpoint = find_checkpoint(given)
    run = checkpoint.parent.parent
    if not (run / CONFIG).is_file():
        raise ConfigError("run", given, f"{run} has no {CONFIG}; accepted: the folder of a run")
    return [command, "--config", str(run / CONFIG), "--ckpt_path", str(checkpoint), *options]


def config_beside(ckpt_path: str) -> list[str]:
    """The config.yaml of a run that is named by its folder; empty for a checkpoint that is named by its file."""
    config = find_checkpoint(ckpt_path).parent.parent / CONFIG if os.path.isdir(ckpt_path) else None
    return [str(config)] if config is not None and config.is_file() else []


def run_of_config(configs: Sequence[Any]) -> Path | None:
    """The run whose own config.yaml is the only given config.

    Args:
        configs: Paths, or texts of configs.
    """
    return run_of(Path(str(configs[0]))) if len(configs) == 1 and "\n" not in str(configs[0]) else None


def run_to_continue(experiment: Path, own: Path | None, config: Mapping[str, Any]) -> Path | None:
    """The run that `fit --ckpt_path last` resumes, or starts again in its folder; None for a new run.

    Args:
        experiment: Folder of the experiment.
        own: The run whose config.yaml was given.
        config: The config of the command.
    """
    run = own or newest_run(experiment)
    if run is None:
        note(f"{experiment} has no run yet; starting a new run")
        return None
    if checkpoint_of(run, "last").is_file():
        return run
    if _is_of_same_command(run, config):
        note(f"{run} has no last.ckpt yet; starting it again")
        return run
    note(f"{run} has no last.ckpt, and has ended or has another config; starting a new run")
    return None


def checkpoint_to_score(experiment: Path, own: Path | None, name: str) -> Path:
    """The checkpoint `last` or `best` of an experiment.

    Args:
        experiment: Folder of the experiment.
        own: The run whose config.yaml was given; no other run is used.
        name: `last` or `best`.

    Raises:
        CheckpointError: There is none.
    """
    found: Path | None
    if own is not None:
        found = checkpoint_of(own, name)
        found = found if found.is_file() else None
    else:
        found = newest_checkpoint(experiment.name, name, root=str(experiment.parent))
        newest = newest_run(experiment)
        if found is not None and newest is not None and run_of(found) != newest:
            note(f"{newest} has no {name}.ckpt; using {found}")
    if found is None:
        raise CheckpointError(f"ckpt_path: no {name}.ckpt in {own or experiment}; accepted: a path, too")
    return found


def _newest(name: str) -> Path | None:
    found = Path(RUNS).glob(f"**/version_*/{CHECKPOINTS}/{name}.ckpt")
    return max(found, key=lambda file: file.stat().st_mtime, default=None)


def _is_of_same_command(run: Path, config: Mapping[str, Any]) -> bool:
    """Whether the same command began a run without a checkpoint, and the run did not complete."""
    try:
        if (run / record.FILE).exists() and record.read(run)["status"] == "completed":
            return False
        if not (run / CONFIG).exists():
            return True  # it was interrupted before it wrote its config
        saved = read((run / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError, StorageError):  # damaged: its config is not known
        return False
    return isinstance(saved, dict) and not differences(saved, config, (*COMPARED, *RESUMED, "time_budget"))
