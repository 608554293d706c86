"""A run is validated at equal distances of its budget, without an effect on its training."""

from pathlib import Path

import pytest
import torch
from added_callback import added_callback
from lightning.pytorch import Callback
from thinned import thinned

from bytelm.callbacks import Validations

DROPOUT = ("--model.gpt.dropout", "0.2", "--time_budget.limit", "40 steps")


class Validated(Callback):
    """Records the steps after which a run was validated; its validation draws from the run's generators."""

    def __init__(self):
        self.steps = []

    def on_validation_start(self, trainer, pl_module):
        self.steps.append(trainer.global_step)
        torch.rand(3)


def validated(run, *options):
    callback = Validated()
    with added_callback(callback):
        cli = run(*options)
    return callback.steps, cli


def test_by_default_every_tenth_of_a_run_is_validated_that_has_trained_on_twice_as_many_tokens_as_it_scores(run):
    # Steps train on 128 tokens, and a validation scores 1,024: the first is after 16 steps or more.
    steps, cli = validated(run, *DROPOUT)
    assert steps == [16, 32, 40]
    never, other = validated(run, *DROPOUT, "--trainer.val_check_interval", "null")
    assert never == [40]
    assert float(cli.trainer.callback_metrics["val/bpb"]) == float(other.trainer.callback_metrics["val/bpb"])
    for mine, its in zip(cli.model.parameters(), other.model.parameters(), strict=True):
        assert torch.equal(mine, its)
    best = torch.load("runs/tiny/version_0/checkpoints/best.ckpt", weights_only=True)
    assert best["callbacks"]["TimeBudget"]["steps"] == 40


@pytest.mark.parametrize(
    ("limit", "options", "expected"),
    thinned(
        [
            ("10 steps", ("--trainer.val_check_interval", "30%"), [3, 6, 9, 10]),
            ("30 steps", ("--trainer.val_check_interval", "10%"), [*range(3, 31, 3)]),
            ("7 steps", ("--trainer.val_check_interval", "3 steps"), [3, 6, 7]),
            ("7 steps", ("--trainer.val_check_interval", "300 tok"), [3, 5, 7]),
            ("30 steps", ("--trainer.check_val_every_n_epoch", "1"), [30]),
            ("30 steps", ("--trainer.limit_val_batches", "0"), []),
            ("9 steps", ("--trainer.val_check_interval", "10%", "--trainer.fast_dev_run", "3"), [3]),
            ("[1d, 21 steps]", ("--time_budget.scope", "run"), [21]),  # its clock does not stop
            (
                "6 steps",
                ("--trainer.val_check_interval", "2 steps", "--trainer.accumulate_grad_batches", "2"),
                [2, 4, 6],
            ),
        ],
        5,
        several=True,
    ),
)
def test_a_run_is_validated_when_the_config_says(run, limit, options, expected):
    steps, _ = validated(run, "--time_budget.limit", limit, *options)
    assert steps == expected


def test_the_best_checkpoint_is_that_of_the_best_validation(run):
    Path("my_schedules.py").write_text(
        "from bytelm.callbacks import LRSchedule\n\n"
        "class Wild(LRSchedule):\n"
        "    def multiplier(self, progress):\n"
        "        return 1.0 if progress.fraction < 0.5 else 1e3\n"
    )
    worse_at_the_end = ("--lr_schedule", "my_schedules.Wild", "--trainer.val_check_interval", "50%")
    run("--time_budget.limit", "20 steps", *worse_at_the_end)
    best = torch.load("runs/tiny/version_0/checkpoints/best.ckpt", weights_only=True)
    assert best["callbacks"]["TimeBudget"]["steps"] == 10


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        (("--trainer.val_check_interval", "often"), ["val_check_interval: 'often'", "auto", "10%"]),
        (("--trainer.val_check_interval", "0%"), ["val_check_interval: '0%'", "more than 0"]),
        (
            ("--trainer.val_check_interval", "5%", "--trainer.check_val_every_n_epoch", "2"),
            ["val_check_interval: '5%'", "check_val_every_n_epoch null"],
        ),
    ],
)
def test_other_intervals_are_rejected(rejected, options, parts):
    line = rejected(*options)
    for part in parts:
        assert part in line


def test_multiples_of_a_share_are_exact():
    validations = Validations()
    for step in range(1, 1000):
        validations._used = lambda trainer, step=step: step / 1000
        following = validations._following(None)
        assert round(following * 1000) == (step // 100 + 1) * 100
        assert following <= (step // 100 + 1) * 100 / 1000
