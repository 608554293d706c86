"""Runs whose callbacks average, or change, weights: scores, record and checkpoints are of the same weights."""

import json
from pathlib import Path

import pytest
import torch
from added_callback import added_callback
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import WeightAveraging
from resuming import Signal, assert_equal, assert_same_checkpoints
from thinned import thinned

from bytelm.errors import CheckpointError, Interrupted

EMA = "--trainer.callbacks+={class_path: EMAWeightAveraging, init_args: {decay: 0.5}}"
EQUAL = "--trainer.callbacks+=WeightAveraging"
NINE = ("--time_budget.limit", "9 steps", "--trainer.val_check_interval", "3")
# Buffers that are no weights: an average of equal integers is rounded, and one of minus infinity is NaN.
CONSTANTS = ("--model.gpt.position", "ALiBi", "--model.gpt.embedding", "HashedNGrams")
CONSTANTS += ("--model.gpt.embedding.buckets", "512", "--model.gpt.embedding.sparse", "false")


class Probe(Callback):
    """Records training losses, and the weights that are scored by each validation."""

    def __init__(self):
        self.losses = []
        self.scored = []
        self.scores = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.losses.append(float(outputs["loss"]))

    def on_validation_batch_start(self, trainer, pl_module, batch, batch_idx, dataloader_idx=0):
        if batch_idx == 0:
            self.scored.append({name: value.clone() for name, value in pl_module.state_dict().items()})

    def on_validation_end(self, trainer, pl_module):
        self.scores.append(float(trainer.callback_metrics["val/bpb"]))


def probed(run, *options, **kwargs):
    probe = Probe()
    with added_callback(probe):
        run(*options, **kwargs)
    return probe


def checkpoint(name, experiment="tiny"):
    """The weights in a checkpoint, by key."""
    content = torch.load(f"runs/{experiment}/version_0/checkpoints/{name}.ckpt", weights_only=True)
    return {key: dict(content[key]) for key in ("state_dict", "current_model_state") if key in content}


def record(experiment="tiny"):
    return json.loads(Path(f"runs/{experiment}/version_0/record.json").read_text())


def validated(run, name, *options):
    cli = run("--ckpt_path", name, *options, subcommand="validate")
    return round(float(cli.trainer.callback_metrics["val/bpb"]), 6)


@pytest.mark.parametrize("averaging", [EMA, EQUAL])
def test_the_average_is_scored_recorded_and_kept(run, averaging):
    probe = probed(run, *NINE, averaging, *CONSTANTS)
    assert len(probe.scored) == 3
    best = min(range(3), key=probe.scores.__getitem__)
    assert_equal(checkpoint("last")["state_dict"], probe.scored[-1])
    assert_equal(checkpoint("best")["state_dict"], probe.scored[best])
    assert record()["val_bpb"] == round(probe.scores[-1], 6) == validated(run, "last", *CONSTANTS)
    assert round(probe.scores[best], 6) == validated(run, "best", *CONSTANTS)
    trained = checkpoint("last")["current_model_state"]
    assert any(not torch.equal(trained[name], value) for name, value in probe.scored[-1].items())


def test_the_weights_that_are_trained_do_not_depend_on_the_average(run):
    plain = probed(run, *NINE, "--experiment", "plain")
    averaged = probed(run, *NINE, EMA)
    assert averaged.losses == plain.losses
    assert_equal(checkpoint("last")["current_model_state"], checkpoint("last", "plain")["state_dict"])


@pytest.mark.parametrize("averaging", thinned([EMA, EQUAL], 1))
@pytest.mark.parametrize("hook", thinned(["on_train_batch_end", "on_validation_batch_start"], 1))
def test_a_run_with_an_average_that_is_cut_resumes_as_if_uninterrupted(run, averaging, hook):
    uncut = probed(run, *NINE, averaging, "--experiment", "uncut")
    with added_callback(Signal(hook, 5)), pytest.raises(Interrupted):
        run(*NINE, averaging)
    rest = probed(run, *NINE, averaging, "--ckpt_path", "last")
    assert rest.losses == uncut.losses[-len(rest.losses) :]
    assert_equal(rest.scored[-1], uncut.scored[-1])
    assert record()["val_bpb"] == record("uncut")["val_bpb"]
    assert_same_checkpoints("runs/uncut/version_0", "runs/tiny/version_0")


@pytest.mark.parametrize("averaging", thinned([EMA, EQUAL], 1))
def test_a_completed_run_that_is_given_more_steps_resumes_from_the_trained_weights(run, averaging):
    whole = probed(run, *NINE, averaging, "--experiment", "whole")
    probed(run, "--time_budget.limit", "6 steps", averaging)
    rest = probed(run, *NINE, averaging, "--ckpt_path", "last")
    assert rest.losses == whole.losses[6:]
    assert_equal(rest.scored[-1], whole.scored[-1])


def test_an_average_that_has_not_begun_is_that_of_the_trained_weights(run):
    late = EMA.replace("decay: 0.5", "decay: 0.5, update_starting_at_step: 100")
    averaged = probed(run, *NINE, late)
    plain = probed(run, *NINE, "--experiment", "plain")
    assert averaged.scores == plain.scores
    assert_equal(checkpoint("last")["state_dict"], checkpoint("last", "plain")["state_dict"])
    assert_equal(checkpoint("best")["state_dict"], checkpoint("best", "plain")["state_dict"])


class NanOnce(Callback):
    """Makes the weights NaN after a step, once."""

    def __init__(self, step):
        self.step = step
        self.steps = 0

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.steps += 1
        if self.steps == self.step:
            with torch.no_grad():
                for parameter in pl_module.parameters():
                    parameter.fill_(torch.nan)


def test_rewind_takes_the_average_back_too(run):
    rewind = ("--divergence.on_divergence", "rewind", "--last_checkpoint.every", "2 steps")
    averages = []

    class Watch(Callback):
        def on_train_batch_end(self, trainer, pl_module, *args):
            (averaging,) = (c for c in trainer.callbacks if isinstance(c, WeightAveraging))
            averages.append([p.clone() for p in averaging._average_model.module.parameters()])

    with added_callback(NanOnce(6)), added_callback(Watch()):
        probe = probed(run, *NINE, EMA, *rewind)
    assert [loss == loss for loss in probe.losses] == [step != 5 for step in range(9)]
    assert all(value.isfinite().all() for value in checkpoint("last")["state_dict"].values())
    assert all(value.isfinite().all() for value in checkpoint("last")["current_model_state"].values())
    assert all(value.isfinite().all() for value in averages[-1])
    assert record()["val_bpb"] == round(probe.scores[-1], 6) == validated(run, "last")


def test_weights_that_a_callback_changes_at_the_end_are_those_that_are_scored_and_kept(run):
    class Halve(Callback):
        def on_train_end(self, trainer, pl_module):
            with torch.no_grad():
                for parameter in pl_module.parameters():
                    parameter.mul_(0.5)

    with added_callback(Halve()):
        probe = probed(run, "--time_budget.limit", "4 steps")
    assert len(probe.scored) == 2
    assert_equal(checkpoint("last")["state_dict"], probe.scored[-1])
    assert record()["val_bpb"] == round(probe.scores[-1], 6) == validated(run, "last")
    assert min(probe.scores) == pytest.approx(validated(run, "best"), abs=1e-6)


def test_a_run_that_continues_without_its_average_says_so(run, capsys):
    run("--time_budget.limit", "6 steps", EMA)
    run(*NINE, "--ckpt_path", "last")
    assert "has averaged weights (WeightAveraging); the run resumes with these" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("key", "value"),
    thinned(
        [
            ("current_model_state", {}),
            ("current_model_state", 3),
            ("averaging_state", {}),
            ("averaging_state", {"n_averaged": torch.zeros(2)}),
        ],
        2,
        several=True,
    ),
)
def test_a_checkpoint_whose_trained_weights_are_damaged_is_rejected(run, rejected, capsys, key, value):
    run("--time_budget.limit", "2 steps", EMA)
    path = "runs/tiny/version_0/checkpoints/last.ckpt"
    torch.save({**torch.load(path, weights_only=True), key: value}, path)
    capsys.readouterr()
    line = rejected(EMA, "--ckpt_path", path, status=CheckpointError.exit_status)
    assert "cannot be resumed from" in line


def test_two_averages_are_rejected(rejected):
    assert "accepted: one of them" in rejected(EMA, EQUAL)


def test_an_average_of_split_weights_is_rejected(rejected):
    line = rejected(EMA, "--trainer.strategy", "fsdp", "--trainer.devices", "2")
    assert "trainer.callbacks: 'EMAWeightAveraging'" in line
    assert "ddp" in line
