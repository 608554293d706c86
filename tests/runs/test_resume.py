"""A run that is cut anywhere and goes on with `--ckpt_path last` is the run that was never cut, to the last bit."""

import json
import os
import signal
from pathlib import Path

import pytest
import torch
from added_callback import added_callback
from lightning.pytorch import Callback
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from bytelm.errors import Interrupted

CURVES = ("train/loss", "grad/norm", "lr/hidden", "lr/vector", "time_budget/progress", "val/loss", "val/bpb")
SPEED = ("training_seconds", "run_seconds", "step_seconds")  # of a budget: not the same in two runs

OPTIONS = {
    "plain": (),
    "shuffled": ("--data.order", "shuffled"),
    "dropout": ("--model.gpt.dropout", "0.2", "--model.gpt.attention", "{class_path: SDPA, init_args: {dropout: 0.2}}"),
    "muon": ("--model.optimizer", "MuonAdamW"),
    "accumulated": ("--trainer.accumulate_grad_batches", "3", "--trainer.val_check_interval", "9"),
    "schedule": ("--lr_schedule={class_path: WarmupStableDecay, init_args: {warmup: 2 steps, decay: 50%}}",),
}


class Signal(Callback):
    """Sends this process a signal at the n-th time that a hook is called."""

    def __init__(self, hook, n, signum=signal.SIGTERM):
        self.left = n
        self.signum = signum
        setattr(self, hook, self._called)

    def _called(self, *args, **kwargs):
        self.left -= 1
        if self.left == 0:
            os.kill(os.getpid(), self.signum)


@pytest.fixture
def cut(run):
    """Runs, and ends the run with a signal at the n-th call of a hook; returns what it was ended with."""

    def cut(hook, n, *options, signum=signal.SIGTERM):
        with added_callback(Signal(hook, n, signum)), pytest.raises(Interrupted) as ended:
            run(*options)
        return ended.value

    return cut


def curves(folder):
    """What TensorBoard shows of a run: tag by tag, (step, value)."""
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    events.Reload()
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in CURVES}


def assert_same_checkpoints(one, two):
    one, two = (torch.load(Path(folder, "checkpoints/last.ckpt"), weights_only=True) for folder in (one, two))
    for checkpoint in (one, two):
        for key in SPEED:
            checkpoint["callbacks"]["TimeBudget"].pop(key)
        for key in [key for key in checkpoint["callbacks"] if key.startswith("ModelCheckpoint")]:
            checkpoint["callbacks"].pop(key)  # names the folder
        for values in checkpoint["callbacks"]["Resume"]["logged"].values():
            values.pop("throughput/tokens_per_sec", None)
        checkpoint.pop("loops")  # in Lightning's own terms; Resume restores them from the budget's steps
        checkpoint.pop("epoch")  # Lightning's; a budgeted run has none
        checkpoint.pop("config")
    assert_equal(one, two)


def assert_equal(one, two, where="checkpoint"):
    assert type(one) is type(two), where
    if isinstance(one, dict):
        assert one.keys() == two.keys(), where
        for key in one:
            assert_equal(one[key], two[key], f"{where}[{key!r}]")
    elif isinstance(one, list | tuple):
        assert len(one) == len(two), where
        for i, (x, y) in enumerate(zip(one, two, strict=True)):
            assert_equal(x, y, f"{where}[{i}]")
    elif isinstance(one, torch.Tensor):
        assert torch.equal(one, two), where
    else:
        assert one == two, where


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


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_a_run_that_is_cut_anywhere_goes_on_as_if_uncut(run, cut, options):
    common = ("--time_budget.limit", "9 steps", "--trainer.val_check_interval", "3", *options)
    run("--experiment", "uncut", *common)
    uncut = json.loads(Path("runs/uncut/version_0/record.json").read_text())
    for hook, n in CUTS:
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


def test_a_run_may_be_cut_again_and_again(run, cut):
    common = ("--time_budget.limit", "9 steps", "--trainer.val_check_interval", "3", *OPTIONS["dropout"])
    run("--experiment", "uncut", *common)
    cut("on_before_backward", 4, "--experiment", "cut", *common)  # two are in the warm-up pass
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


def test_a_path_begins_a_new_run_and_last_goes_on_in_the_old_one(run):
    run()
    run("--ckpt_path", "runs/tiny/version_0/checkpoints/last.ckpt", "--time_budget.limit", "6 steps")
    run("--ckpt_path", "last", "--time_budget.limit", "8 steps")
    steps = {
        path.parent.name: json.loads(path.read_text())["total_steps"] for path in Path("runs/tiny").rglob("record.json")
    }
    assert steps == {"version_0": 4, "version_1": 8}


def test_the_config_of_a_run_that_went_on_repeats_it_from_its_beginning(run):
    run()
    run("--ckpt_path", "last", "--time_budget.limit", "6 steps")
    run(config="runs/tiny/version_0/config.yaml")
    assert json.loads(Path("runs/config/version_0/record.json").read_text())["total_steps"] == 6
