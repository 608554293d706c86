"""Interrupted and resumed runs: the interruption, and the values that are compared with uninterrupted runs."""

import os
import signal
from pathlib import Path

import torch
from lightning.pytorch import Callback
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

CURVES = ("train/loss", "grad/norm", "lr/hidden", "lr/vector", "time_budget/progress", "val/loss", "val/bpb")
SPEED = ("training_seconds", "run_seconds", "step_seconds")  # of a budget: not the same in two runs


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


def curves(folder):
    """The scalars of a run in TensorBoard: by tag, (step, value)."""
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    events.Reload()
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in CURVES}


def assert_same_checkpoints(one, two):
    one, two = (torch.load(Path(folder, "checkpoints/last.ckpt"), weights_only=True) for folder in (one, two))
    for checkpoint in (one, two):
        for key in SPEED:
            checkpoint["callbacks"]["TimeBudget"].pop(key)
        for key in [key for key in checkpoint["callbacks"] if "Checkpoint{" in key]:
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
