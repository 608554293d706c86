"""Pruning: ends runs that cannot win, by their validations at equal shares of their budgets.

Optuna's pruners decide. A run is compared only with runs of its contest: the same limits, corpus, score and schedules.
Under different schedules equal progress says little: a run whose learning rate is still high is worse than one whose
rate has decayed, and may be better at the end.
"""

import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import optuna
from optuna.pruners import BasePruner, HyperbandPruner, MedianPruner
from optuna.trial import FrozenTrial, TrialState, create_trial

from bytelm.config.base import files_of
from bytelm.config.text import read
from bytelm.runs import validations

Prune = Literal["none", "median", "hyperband"]
SHARES = 10  # of a budget, at which runs are compared
NEAR = 0.03  # of a budget: a validation within this distance after a share counts as that share's
INTERVAL, EVERY_TENTH = "trainer.val_check_interval", "10%"
CONTEST, RUNGS = "contest", "rungs"  # attributes of trials
OWN = ("batch_size", "seed", "num_workers")  # options of the data that may differ within a contest


def pruner_of(kind: Prune) -> BasePruner | None:
    """Optuna's pruner; None for `none`.

    Args:
        kind: `median`: a run ends if its best score so far is worse than the median of the others at the same share,
            completed or running, from 20 % on and once there are 3 (Golovin et al. 2017). `hyperband`: of the runs that
            reach 10 %, 30 % or 90 % of their budgets, a third continues (Li et al. 2018, arXiv:1603.06560), in three
            brackets that begin at different shares.
    """
    if kind == "median":
        return MedianPruner(n_startup_trials=3, n_warmup_steps=2)
    if kind == "hyperband":
        return HyperbandPruner(min_resource=1, max_resource=SHARES, reduction_factor=3)
    return None


def reports(run: Path) -> Iterator[tuple[int, float]]:
    """The scores of a run at equal shares of its budget, as far as it has been validated there: number and score.

    Args:
        run: The run's folder.
    """
    seen = 0
    for validation in validations.read(run):
        share = math.floor(validation.progress * SHARES + 1e-6)
        is_near = validation.progress - share / SHARES <= NEAR
        if seen < share < SHARES and is_near and validation.score is not None:
            seen = share
            yield share, validation.score


def options_of(options: Sequence[str]) -> list[str]:
    """The options of a run that may be pruned: one that would be validated at its end alone is validated at each tenth.

    Args:
        options: The options of `python -m bytelm fit`.
    """
    every: Any = EVERY_TENTH  # any value but null
    for option, value in pairwise(options):
        if option in ("--config", "-c"):
            with suppress(OSError, ValueError):  # such a config is rejected later, with its reason
                for file in files_of(value):
                    trainer = read(file.read_text(encoding="utf-8")).get("trainer") or {}
                    every = trainer.get("val_check_interval", every)
        elif option == f"--{INTERVAL}":
            every = None if value == "null" else value
        elif option.startswith(f"--{INTERVAL}="):
            every = option
    return [*options, f"--{INTERVAL}", EVERY_TENTH] if every is None else list(options)


def contest_of(run: Path, config: Mapping[str, Any]) -> str:
    """A hash that is equal for runs whose scores can be compared at equal progress.

    Args:
        run: The run's folder.
        config: Its resolved config.
    """
    data = json.loads(json.dumps(config.get("data") or {}, default=str))
    for option in OWN:
        (data.get("init_args") or {}).pop(option, None)
    has_bpb = any(each.val_bpb is not None for each in validations.read(run))
    parts = [(config.get("time_budget") or {}).get("limit"), data, config.get("lr_schedule"), config.get("schedules")]
    return hashlib.sha256(json.dumps([has_bpb, *parts], sort_keys=True, default=str).encode()).hexdigest()[:16]


def decide(pruner: BasePruner, trials: Sequence[FrozenTrial], number: int) -> tuple[bool, dict[str, Any]]:
    """Decides whether a run ends.

    Args:
        pruner: Optuna's pruner.
        trials: All trials of the study.
        number: Number of the run's trial, whose contest and reports are known.

    Returns:
        Whether it ends, and the attributes that the pruner has given to the trial, which are kept in RUNGS.
    """
    contest = trials[number].user_attrs.get(CONTEST)
    rivals = [trial for trial in trials if trial.user_attrs.get(CONTEST) == contest]
    share = trials[number].last_step or 0
    # Optuna's pruners look at a whole study. This one has the contest alone.
    study = optuna.create_study(study_name="contest", pruner=pruner)
    for trial in rivals:
        state = trial.state
        if state == TrialState.RUNNING and trial.number != number and (trial.last_step or 0) >= share:
            # Several workers' runs are compared at once: the first ones would otherwise all run to their ends.
            state = TrialState.COMPLETE
        has_value = state in (TrialState.COMPLETE, TrialState.PRUNED)
        state = state if has_value else TrialState.RUNNING
        study.add_trial(
            create_trial(
                state=state,
                value=_value(trial) if has_value else None,
                intermediate_values=trial.intermediate_values,
                system_attrs=trial.user_attrs.get(RUNGS, {}),
            )
        )
    place = [trial.number for trial in rivals].index(number)
    is_pruned = pruner.prune(study, study.trials[place])
    return is_pruned, study.trials[place].system_attrs


def _value(trial: FrozenTrial) -> float | None:
    """The score of a run that was completed, or the last one of a run that was pruned."""
    last = trial.last_step
    return trial.value if trial.value is not None or last is None else trial.intermediate_values[last]
