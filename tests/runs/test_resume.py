"""A run that is interrupted anywhere and resumed with `--ckpt_path last` equals the uninterrupted run exactly."""

import json
import random
import signal
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from added_callback import added_callback
from lightning.pytorch import Callback
from resuming import Signal, assert_equal, assert_same_checkpoints, curves
from thinned import thinned

from bytelm.errors import ConfigError, Interrupted

OPTIONS = {
    "plain": (),
    "shuffled": ("--data.order", "shuffled"),
    "dropout": ("--model.gpt.dropout", "0.2", "--model.gpt.attention", "{class_path: SDPA, init_args: {dropout: 0.2}}"),
    "muon": ("--model.optimizer", "MuonAdamW"),
    "accumulated": ("--trainer.accumulate_grad_batches", "3", "--trainer.val_check_interval", "9"),
    "tokens": ("--trainer.val_check_interval", "384 tok"),
    "schedule": ("--lr_schedule={class_path: WarmupStableDecay, init_args: {warmup: 2 steps, decay: 50%}}",),
}


@pytest.fixture
def cut(run):
    """Runs, and ends the run with a signal at the n-th call of a hook; returns the error."""

    def cut(hook, n, *options, signum=signal.SIGTERM):
        with added_callback(Signal(hook, n, signum)), pytest.raises(Interrupted) as ended:
            run(*options)
        return ended.value

    return cut


CUTS = [
    ("on_train_batch_start", 1),
    ("on_before_backward", 4),
    ("on_before_optimizer_step", 5),
    ("on_train_batch_end", 6),  # followed by a validation
    ("on_validation_batch_start", 3),
    ("on_validation_end", 1),
    ("on_save_checkpoint", 2),
    ("on_validation_batch_end", 21),  # in the final one
]


# Half of the places for a plain run, and two of them for each other kind; the long tests take the rest.
PLACES = [("plain", CUTS[::2]), pytest.param("plain", CUTS[1::2], marks=pytest.mark.slow)]
for number, kind in enumerate(("shuffled", "dropout", "muon", "accumulated", "schedule", "tokens")):
    few = [CUTS[(2 * number + offset) % len(CUTS)] for offset in (1, 4)]
    PLACES += [(kind, few), pytest.param(kind, [cut for cut in CUTS if cut not in few], marks=pytest.mark.slow)]


# Hooks in which a callback of the user saves a checkpoint, and the step: at the start, in the third step, after it, and
# in the validation that follows.
SAVING = {"on_train_start": 0, "on_train_batch_start": 2, "on_before_optimizer_step": 2, "on_train_batch_end": 3}
SAVING |= {"on_validation_batch_start": 3}


class Saves(Callback):
    """Draws numbers in these hooks, and saves a checkpoint in each of them once."""

    def __init__(self):
        for hook, steps in SAVING.items():
            setattr(self, hook, partial(self._save, Path(f"{hook}.ckpt"), steps))

    def _save(self, file, steps, trainer, *args, **kwargs):
        self.drawn = random.random() + np.random.rand() + torch.rand(()).item()
        if trainer.global_step == steps and not file.exists():
            trainer.save_checkpoint(file)


def test_a_checkpoint_that_a_users_callback_saves_resumes_as_if_uninterrupted(run):
    common = ("--trainer.accumulate_grad_batches", "2", "--time_budget.limit", "4 steps", "--experiment", "mine")
    common += ("--trainer.val_check_interval", "3 steps", "--trainer.num_sanity_val_steps", "1", *OPTIONS["dropout"])
    run(*common, "--trainer.callbacks+=test_resume.Saves")
    for number, hook in enumerate(SAVING, 1):
        run(*common, "--trainer.callbacks+=test_resume.Saves", "--ckpt_path", f"{hook}.ckpt")
        assert_same_checkpoints("runs/mine/version_0", f"runs/mine/version_{number}")


@pytest.mark.parametrize(("kind", "places"), thinned(PLACES, 3, several=True))
def test_a_run_that_is_cut_anywhere_resumes_as_if_uninterrupted(run, cut, kind, places):
    common = ("--time_budget.limit", "9 steps", "--trainer.val_check_interval", "3", *OPTIONS[kind])
    run("--experiment", "uncut", *common)
    uncut = json.loads(Path("runs/uncut/version_0/record.json").read_text())
    for hook, n in places:
        name = f"{hook}-{n}"
        cut(hook, n, "--experiment", name, *common)
        assert json.loads(Path(f"runs/{name}/version_0/record.json").read_text())["status"] == "interrupted"
        run("--experiment", name, "--ckpt_path", "last", *common)
        assert [path.name for path in Path("runs", name).iterdir()] == ["version_0"]
        assert_same_checkpoints("runs/uncut/version_0", f"runs/{name}/version_0")
        assert curves(f"runs/{name}/version_0") == curves("runs/uncut/version_0")
        record = json.loads(Path(f"runs/{name}/version_0/record.json").read_text())
        for key in ("status", "val_bpb", "val_loss", "train_loss", "total_steps", "tokens_seen"):
            assert record[key] == uncut[key], (name, key)


@pytest.mark.slow
def test_a_run_may_be_cut_again_and_again(run, cut):
    common = ("--time_budget.limit", "9 steps", "--trainer.val_check_interval", "3", *OPTIONS["dropout"])
    run("--experiment", "uncut", *common)
    cut("on_before_backward", 2, "--experiment", "cut", *common)
    for hook, n in (("on_train_batch_end", 2), ("on_validation_batch_end", 4), ("on_before_optimizer_step", 3)):
        cut(hook, n, "--experiment", "cut", "--ckpt_path", "last", *common)
    run("--experiment", "cut", "--ckpt_path", "last", *common)
    assert_same_checkpoints("runs/uncut/version_0", "runs/cut/version_0")
    assert curves("runs/cut/version_0") == curves("runs/uncut/version_0")


def test_the_best_checkpoint_of_before_the_cut_is_kept(run, cut):
    common = ("--time_budget.limit", "9 steps", "--trainer.val_check_interval", "3")
    Path("my_schedules.py").write_text(
        "from bytelm.callbacks import LRSchedule\n\n"
        "class Huge(LRSchedule):\n"
        "    def multiplier(self, progress):\n"
        "        return 1e3\n"
    )
    worse_and_worse = ("--lr_schedule", "my_schedules.Huge")
    cut("on_before_optimizer_step", 5, *common)
    before = torch.load("runs/tiny/version_0/checkpoints/best.ckpt", weights_only=True)
    run(*common, *worse_and_worse, "--ckpt_path", "last")
    after = torch.load("runs/tiny/version_0/checkpoints/best.ckpt", weights_only=True)
    assert_equal(after["state_dict"], before["state_dict"])


def test_a_path_begins_a_new_run_and_last_continues_in_the_old_one(run, trained):
    run("--ckpt_path", "runs/tiny/version_0/checkpoints/last.ckpt", "--time_budget.limit", "6 steps")
    run("--ckpt_path", "last", "--time_budget.limit", "8 steps")
    steps = {
        path.parent.name: json.loads(path.read_text())["total_steps"] for path in Path("runs/tiny").rglob("record.json")
    }
    assert steps == {"version_0": 4, "version_1": 8}


def test_a_limit_below_what_a_run_has_trained_is_rejected_and_the_run_left_as_it_is(run, trained):
    run("--ckpt_path", "last", "--time_budget.limit", "8 steps")
    before = {path: path.read_bytes() for path in Path("runs").rglob("*") if path.is_file()}
    path = "runs/tiny/version_0/checkpoints/last.ckpt"
    for given, limit in (("last", "4 steps"), (path, "[100s, 4 steps]"), ("last", "512 tok"), (path, "0.001s")):
        with pytest.raises(ConfigError, match=r"^time_budget.limit: .*; the checkpoint's run has trained for "):
            run("--ckpt_path", given, "--time_budget.limit", limit)
    assert {path: path.read_bytes() for path in Path("runs").rglob("*") if path.is_file()} == before
    run("--ckpt_path", "last", "--time_budget.limit", "8 steps")  # the same command again scores it
    assert json.loads(Path("runs/tiny/version_0/record.json").read_text())["total_steps"] == 8


def test_the_config_of_a_run_that_went_on_repeats_it_from_its_beginning(run, trained):
    run("--ckpt_path", "last", "--time_budget.limit", "6 steps")
    run(config="runs/tiny/version_0/config.yaml")
    assert json.loads(Path("runs/tiny/version_1/record.json").read_text())["total_steps"] == 6
