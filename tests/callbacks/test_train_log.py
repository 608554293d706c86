"""The training loss in logs and for callbacks is the loss of the whole step."""

from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint

from bytelm import log_steps
from bytelm.log_steps import StepLoss


class Losses(Callback):
    """Stores the loss of every batch, and the metrics that callbacks see after each step."""

    def __init__(self):
        self.of_batches = []
        self.monitored = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.of_batches.append(float(outputs["loss"]) * trainer.accumulate_grad_batches)
        self.monitored.append({tag: float(value) for tag, value in trainer.callback_metrics.items()})


def fit(run, *options):
    """Returns the callback, the logged values by tag, and the trainer of a run."""
    cli = run("--trainer.callbacks+=test_train_log.Losses", "--trainer.logger=memory_logger.MemoryLogger", *options)
    losses = next(callback for callback in cli.trainer.callbacks if type(callback).__name__ == "Losses")
    return losses, {tag: [value for _, value in values] for tag, values in cli.trainer.logger.values.items()}, cli


def test_the_loss_of_accumulated_batches_is_their_mean_in_logs_and_record(run):
    losses, logged, cli = fit(run, "--trainer.accumulate_grad_batches=2")
    pairs = torch.tensor(losses.of_batches).view(-1, 2)
    assert (pairs[:, 0] != pairs[:, 1]).all()
    assert logged["train/loss"] == pytest.approx(pairs.mean(1).tolist(), abs=1e-6)
    assert float(cli.trainer.callback_metrics["train/loss"]) == pytest.approx(float(pairs[-1].mean()), abs=1e-6)


def test_the_loss_of_one_batch_is_logged_as_it_is_and_monitored_in_every_step(run):
    losses, logged, cli = fit(run, "--trainer.log_every_n_steps=3")
    assert logged["train/loss"] == losses.of_batches[2:3]
    # The user's callbacks come first: they see the metrics of the previous step.
    assert [found.get("train/loss") for found in losses.monitored] == [None, *losses.of_batches[:3]]
    assert {"train/loss", "grad/norm", "val/loss", "val/bpb"} <= set(cli.trainer.callback_metrics)
    assert float(cli.trainer.callback_metrics["train/loss"]) == losses.of_batches[-1]


def test_a_run_shorter_than_the_logging_interval_has_curves(run):
    losses, logged, cli = fit(run, "--trainer.log_every_n_steps=50", "--trainer.val_check_interval=3 steps")
    values = cli.trainer.logger.values
    assert logged["train/loss"] == pytest.approx(losses.of_batches)
    for tag in ("train/loss", "lr/hidden", "time_budget/progress"):
        assert [step for step, _ in values[tag]] == [0, 1, 2, 3]
    assert [value for _, value in values["time_budget/progress"]] == [0.25, 0.5, 0.75, 1.0]
    for tag in ("val/bpb", "grad/norm", "throughput/tokens_per_sec"):
        assert [step for step, _ in values[tag]] == [2, 3], tag
    assert logged["grad/norm"][-1] == float(cli.trainer.callback_metrics["grad/norm"])
    _, logged, _ = fit(run, "--trainer.log_every_n_steps=50", "--trainer.limit_val_batches=0")
    assert {tag: len(logged[tag]) for tag in ("train/loss", "grad/norm", "throughput/tokens_per_sec")} == {
        "train/loss": 4,
        "grad/norm": 1,
        "throughput/tokens_per_sec": 1,
    }
    _, logged, _ = fit(run, "--trainer.log_every_n_steps=0")
    assert "train/loss" not in logged


def test_values_of_a_device_that_runs_behind_are_logged_in_the_order_of_their_steps(run, monkeypatch):
    options = ("--trainer.log_every_n_steps=1", "--trainer.val_check_interval=2 steps")
    _, at_once, _ = fit(run, *options)
    monkeypatch.setattr(log_steps, "runs_behind", lambda device: True)
    _, late, cli = fit(run, *options)
    assert at_once.keys() == late.keys()
    for tag in ("train/loss", "grad/norm", "lr/hidden", "val/loss"):
        assert late[tag] == at_once[tag], tag
    for tag in ("train/loss", "grad/norm"):
        assert [step for step, _ in cli.trainer.logger.values[tag]] == [0, 1, 2, 3]
    rows = cli.trainer.logger.rows
    assert [step for step, _ in rows] == sorted(step for step, _ in rows)


def test_the_norm_of_the_last_steps_gradients_is_known_in_a_validation_that_releases_them(run):
    _, logged, cli = fit(run, "--trainer.gradient_clip_val=null")
    assert logged["grad/norm"][-1] == float(cli.trainer.callback_metrics["grad/norm"]) > 0
    _, late, _ = fit(run, "--trainer.gradient_clip_val=null", "--trainer.log_every_n_steps=50")
    assert late["grad/norm"] == logged["grad/norm"][-1:]


def test_the_norm_is_that_of_the_gradients_before_clipping(run):
    values = ("--trainer.gradient_clip_algorithm=value", "--trainer.gradient_clip_val=0.01")
    by_norm, by_value = (fit(run, "--time_budget.limit=1 steps", *clip)[1]["grad/norm"] for clip in ((), values))
    assert by_value == pytest.approx(by_norm)
    assert by_norm[0] > 1


def test_train_loss_and_grad_norm_are_monitored(run):
    every = "--trainer.callbacks.every_n_train_steps=2"
    cli = run(
        *("--trainer.callbacks+=ModelCheckpoint", "--trainer.callbacks.monitor=train/loss", every),
        *("--trainer.callbacks.save_top_k=-1", "--trainer.callbacks.filename={step}-{train/loss:.3f}"),
        *("--trainer.callbacks.auto_insert_metric_name=false", "--checkpoint.monitor=grad/norm"),
        *("--trainer.callbacks+=EarlyStopping", "--trainer.callbacks.monitor=train/loss"),
    )
    kinds = {
        callback.monitor: callback for callback in cli.trainer.checkpoint_callbacks if hasattr(callback, "monitor")
    }
    assert isinstance(kinds["train/loss"], ModelCheckpoint)
    scores = {path: float(score) for path, score in kinds["train/loss"].best_k_models.items()}
    assert len(scores) >= 2
    for path, score in scores.items():
        assert f"-{score:.3f}" in path
    stopping = next(callback for callback in cli.trainer.callbacks if isinstance(callback, EarlyStopping))
    assert float(stopping.best_score) == float(cli.trainer.callback_metrics["train/loss"])
    assert float(kinds["grad/norm"].best_model_score) == float(cli.trainer.callback_metrics["grad/norm"])


def test_the_loss_of_several_ranks_is_their_mean(monkeypatch):
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda value: value.add_(5.0))  # the other rank's
    trainer = SimpleNamespace(world_size=2, accumulate_grad_batches=1)
    loss = StepLoss()
    loss.add(trainer, {"loss": torch.tensor(3.0)}, 0)
    assert float(loss.of_all_ranks(trainer)) == 4.0
    assert float(loss.value) == 3.0, "the rank's own is kept"
