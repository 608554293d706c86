"""Pruning on simulated learning curves, and what counts as equal progress."""

from pathlib import Path

import numpy as np
import pytest
from run_folders import config

pytest.importorskip("optuna")

import optuna

from bytelm.experiments.pruning import CONTEST, RUNGS, SHARES, contest_of, decide, options_of, pruner_of, reports
from bytelm.runs import validations
from bytelm.runs.validations import Validation


def swept(method, seed, n=24):
    """Replays a sweep of simulated learning curves under a pruner.

    Returns:
        The number of the best run that was completed, that of the best of all, and the share of the time that was used.
    """
    rng = np.random.default_rng(seed)
    finals = 2.0 + 0.5 * rng.random(n)
    shares = np.arange(1, SHARES + 1) / SHARES
    curves = finals[:, None] + (0.8 + 0.1 * rng.random((n, 1))) * (shares**-0.5 - 1) + rng.normal(0, 0.01, (n, SHARES))
    pruner, study, used = pruner_of(method), optuna.create_study(), 0
    completed = {}
    for number in range(n):
        trial = study.ask()
        trial.set_user_attr(CONTEST, "all")
        for share in range(1, SHARES):
            used += 1
            trial.report(curves[number, share - 1], share)
            is_pruned, rungs = decide(pruner, study.trials, number)
            trial.set_user_attr(RUNGS, rungs)
            if is_pruned:
                study.tell(number, state=optuna.trial.TrialState.PRUNED)
                break
        else:
            used += 1
            completed[number] = curves[number, -1]
            study.tell(number, curves[number, -1])
    return min(completed, key=completed.get), int(curves[:, -1].argmin()), used / (n * SHARES)


@pytest.mark.parametrize(("method", "most"), [("median", 0.5), ("hyperband", 0.6)])
def test_of_a_simulated_sweep_the_best_run_is_found_in_a_part_of_the_time(method, most):
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    sweeps = [swept(method, seed) for seed in range(2)]
    assert sum(found == best for found, best, _ in sweeps) == len(sweeps)
    assert np.mean([used for *_, used in sweeps]) < most


def test_the_methods_are_those_of_optuna():
    pruners = [pruner_of(method) for method in ("none", "median", "hyperband")]
    assert [type(pruner).__name__ for pruner in pruners] == ["NoneType", "MedianPruner", "HyperbandPruner"]


def test_runs_of_several_workers_are_compared_while_they_run():
    """Twelve runs at once: without the comparison with running runs, all of them would be completed."""
    study, pruner, ended = optuna.create_study(), pruner_of("median"), {}
    for _ in range(12):
        study.ask().set_user_attr(CONTEST, "all")
    for share in range(1, 4):
        for number in set(range(12)) - ended.keys():
            trial = optuna.trial.Trial(study, study.trials[number]._trial_id)
            trial.report(3.0 + number / 10 - share / 100, share)
            if decide(pruner, study.trials, number)[0]:
                study.tell(number, state=optuna.trial.TrialState.PRUNED)
                ended[number] = share
    assert 0 not in ended
    assert 4 <= len(ended) <= 10
    assert min(ended.values()) == 2  # not at the first tenth


def test_a_running_run_that_has_not_come_as_far_is_not_compared():
    study, pruner = optuna.create_study(), pruner_of("median")
    for _ in range(6):
        trial = study.ask()
        trial.set_user_attr(CONTEST, "all")
        trial.report(2.0, 1)
    trial.report(3.0, 2)
    assert not decide(pruner, study.trials, 5)[0]


def test_a_contest_is_the_same_for_runs_that_differ_in_size_and_in_their_batches_only():
    run = Path("none")
    same = contest_of(run, config())
    assert contest_of(run, config(d_model=32, lr=1.0, seed=7)) == same
    other = config()
    other["data"]["init_args"]["batch_size"] = 8
    assert contest_of(run, other) == same
    for key, value in (
        ("lr_schedule", {"class_path": "bytelm.callbacks.Cosine"}),
        ("schedules", {"momentum": {"class_path": "bytelm.callbacks.Ramp"}}),
        ("time_budget", {"limit": "60s"}),
        ("data", {"class_path": "bytelm.data.corpora.Bytes", "init_args": {"path": "other.txt"}}),
    ):
        assert contest_of(run, {**config(), key: value}) != same, key


def test_reports_are_scores_near_equal_shares_of_the_budget(tmp_path):
    for progress, score in ((0.01, 9.0), (0.101, 3.0), (0.11, 2.9), (0.26, 2.8), (0.3, float("nan")), (0.41, 2.5)):
        validations.append(tmp_path, Validation(progress, round(progress * 1000), 0, 0.0, score, None))
    validations.append(tmp_path, Validation(1.0, 1000, 0, 0.0, 2.0, None))
    assert list(reports(tmp_path)) == [(1, 3.0), (4, 2.5)]


@pytest.mark.parametrize(
    ("trainer", "options", "is_added"),
    [
        ("trainer: {val_check_interval: null}", [], True),
        ("trainer: {val_check_interval: auto}", [], False),
        ("trainer: {val_check_interval: 20%}", ["--trainer.val_check_interval", "null"], True),
        ("trainer: {val_check_interval: null}", ["--trainer.val_check_interval", "5%"], False),
        ("trainer: {val_check_interval: null}", ["--trainer.val_check_interval=5%"], False),
        ("seed_everything: 1", [], False),
        ("base: below.yaml", [], True),
        ("base: nowhere.yaml", [], False),
    ],
)
def test_a_run_with_one_validation_at_its_end_gets_others(tmp_path, trainer, options, is_added):
    (tmp_path / "below.yaml").write_text("trainer: {val_check_interval: null}\n")
    (tmp_path / "a.yaml").write_text(trainer + "\n")
    added = ["--trainer.val_check_interval", "10%"] if is_added else []
    for option in ("--config", "-c"):
        given = [option, str(tmp_path / "a.yaml"), *options, "--seed_everything", "1"]
        assert options_of(given) == given + added


def test_a_line_that_is_being_written_is_left_out_and_repeated_steps_count_once(tmp_path):
    validations.append(tmp_path, Validation(0.12, 12, 120, 1.2, 9.0, None))
    first, second = (Validation(0.1, 10, 100, 1.0, score, None) for score in (3.0, 2.0))
    validations.append(tmp_path, first)
    validations.append(tmp_path, second)
    with open(tmp_path / validations.FILE, "a") as file:
        file.write('{"progress": 0.2, "st')
    assert validations.read(tmp_path) == [second]
    assert validations.read(tmp_path / "none") == []


def test_a_run_writes_its_validations(run):
    run("--trainer.val_check_interval", "2")
    found = validations.read(Path("runs/tiny/version_0"))
    assert [(each.progress, each.steps, each.tokens) for each in found] == [(0.5, 2, 256), (1.0, 4, 512)]
    assert all(each.val_bpb > 0 and each.val_loss > 0 for each in found)
