"""Options that count epochs, or shares of one, behave as Lightning documents, or are rejected before the run."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from added_callback import added_callback
from lightning.pytorch import Callback
from lightning.pytorch.loops import evaluation_loop, fit_loop, training_epoch_loop
from resuming import Signal, assert_same_checkpoints
from thinned import thinned

from bytelm.errors import Interrupted
from bytelm.trainer_options import epochs

EPOCH = 5  # batches


@pytest.fixture
def run(run, folder):
    """Runs on a text of 5 batches; returns the finished CLI."""
    text = (folder / "corpus.txt").read_bytes()
    (folder / "short.txt").write_bytes(text[:1000])

    def short(*options, **kwargs):
        return run("--data.path", "short.txt", "--data.train_fraction", "0.64", *options, **kwargs)

    return short


class Recorder(Callback):
    """Records what happened: the number of each batch in its epoch, `val`, and `end` of an epoch."""

    def __init__(self):
        self.events = []
        self.batches = []
        self.losses = []
        self.val_rows = 0

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.events.append(batch_idx)
        self.batches.append(batch[1].tolist())
        self.losses.append(float(outputs["loss"]))

    def on_validation_batch_end(self, trainer, pl_module, outputs, batch, batch_idx, dataloader_idx=0):
        self.val_rows += len(batch[0])

    def on_validation_end(self, trainer, pl_module):
        self.events.append("val")

    def on_train_epoch_end(self, trainer, pl_module):
        self.events.append(f"end {trainer.current_epoch}")


def recorded(run, *options):
    recorder = Recorder()
    with added_callback(recorder):
        run(*options)
    return recorder


def record(version=0):
    return json.loads(Path(f"runs/tiny/version_{version}/record.json").read_text())


TWELVE = ("--time_budget.limit", "12 steps")
AT_THE_END = ("--trainer.val_check_interval", "null")
FIRST, SECOND, REST = [0, 1, 2, 3, 4], [0, 1, 2, 3, 4], [0, 1]


def test_without_an_interval_epochs_pass_without_validation_and_the_run_ends_with_one(run):
    recorder = recorded(run, *TWELVE, *AT_THE_END)
    assert recorder.events == [*FIRST, "end 0", *SECOND, "end 1", *REST, "val", "end 2"]
    text = Path("short.txt").read_bytes()[:640]
    assert (
        bytes(torch.tensor(recorder.batches).flatten().tolist()) == (text * 3)[: 12 * 128]
    )  # pass after pass over the text
    assert record()["val_bpb"] > 0


@pytest.mark.parametrize(
    ("options", "events"),
    thinned(
        {
            "check_val_every_n_epoch 2": "01234| 01234v| 01|v",
            "check_val_every_n_epoch 1": "01234v| 01234v| 01v|",
            "val_check_interval 4": "0123v4| 012v34| 01v|",  # batches of the run
            "val_check_interval 4 --trainer.check_val_every_n_epoch 1": "0123v4| 0123v4| 01v|",  # of each epoch
            "val_check_interval 0.6": "012v34| 012v34| 01v|",
            "val_check_interval 1.0": "01234v| 01234v| 01v|",
            "val_check_interval 25%": "012v34| 0v123v4| 01v|",  # of the run
            "val_check_interval 01:00:00:00": "01234| 01234| 01v|",
        }.items(),
        4,
        several=True,
    ),
)
def test_validation_is_when_lightning_says_and_once_at_the_end(run, options, events):
    recorder = recorded(run, *TWELVE, *f"--trainer.{options}".split())
    assert "".join("|" if "end" in str(e) else str(e)[0] for e in recorder.events) == events.replace(" ", "")
    assert record()["val_bpb"] > 0


def test_a_limit_in_batches_or_a_share_makes_epochs_shorter_and_the_text_continues(run):
    number = recorded(run, *TWELVE, *AT_THE_END, "--trainer.limit_train_batches", "2")
    share = recorded(run, *TWELVE, *AT_THE_END, "--trainer.limit_train_batches", "0.5")
    assert number.events == share.events == [0, 1, *(e for n in range(5) for e in (f"end {n}", 0, 1)), "val", "end 5"]
    assert number.batches == share.batches == recorded(run, *TWELVE).batches


@pytest.mark.parametrize("order", thinned(["sequential", "shuffled"], 1))
def test_overfit_batches_trains_on_the_same_batches_again_and_again(run, order):
    options = (*TWELVE, *AT_THE_END, "--data.order", order)
    expected = recorded(run, *options).batches
    for value, n_batches in (("1", 1), ("2", 2), ("0.4", 2)):
        recorder = recorded(run, *options, "--trainer.overfit_batches", value)
        assert recorder.batches == expected[:n_batches] * (12 // n_batches)
        assert recorder.val_rows == 4 * (n_batches if value != "0.4" else 1)  # as Lightning: of validation, too


@pytest.mark.parametrize("accumulated", [2, 3])
def test_an_epoch_is_whole_steps_of_accumulated_batches(run, accumulated):
    recorder = recorded(run, "--time_budget.limit", "6 steps", "--trainer.accumulate_grad_batches", str(accumulated))
    assert max(event for event in recorder.events if isinstance(event, int)) == 5
    assert record()["total_steps"] == 6
    assert len(recorder.batches) == 6 * accumulated


def test_every_step_is_logged_once_across_epochs(run):
    run(*TWELVE, "--trainer.logger", "CSVLogger")
    (file,) = Path("runs/tiny/version_0").rglob("metrics.csv")
    header, *lines = file.read_text().splitlines()
    column = {name: i for i, name in enumerate(header.split(","))}
    losses = [line.split(",") for line in lines if line.split(",")[column["train/loss"]]]
    assert [int(each[column["step"]]) for each in losses] == [*range(12)]


# Resuming


OPTIONS = {
    "every epoch": ("--trainer.check_val_every_n_epoch", "1"),
    "a share": ("--trainer.val_check_interval", "0.6"),
    "limited": ("--trainer.limit_train_batches", "3", "--trainer.check_val_every_n_epoch", "2"),
    "overfit": ("--trainer.overfit_batches", "3"),
}


@pytest.mark.parametrize("options", thinned(OPTIONS.values(), 2), ids=OPTIONS)
def test_a_run_that_is_cut_at_or_in_an_epoch_resumes_as_if_uninterrupted(run, options):
    uncut = recorded(run, *TWELVE, *options, "--experiment", "uncut")
    for n in (5, 7):
        name = f"after-{n}"
        with added_callback(Signal("on_train_batch_end", n)), pytest.raises(Interrupted):
            run(*TWELVE, *options, "--experiment", name)
        rest = recorded(run, *TWELVE, *options, "--experiment", name, "--ckpt_path", "last")
        assert rest.losses == uncut.losses[n:]
        assert rest.events == uncut.events[-len(rest.events) :]
        trained = [event for event in rest.events if isinstance(event, int)]
        before = len(uncut.events) - len(rest.events)
        assert sum(isinstance(event, int) for event in uncut.events[:before]) == n
        assert before == 0 or isinstance(uncut.events[before - 1], int), "an epoch's end, or a validation, is left out"
        assert len(trained) == 12 - n
        assert_same_checkpoints("runs/uncut/version_0", f"runs/{name}/version_0")


@pytest.mark.parametrize("steps", thinned([3, 5, 7], 1))
def test_checkpoints_of_runs_with_one_endless_epoch_continue_in_the_epoch_that_they_are_in(run, steps):
    uncut = recorded(run, *TWELVE)
    run("--time_budget.limit", f"{steps} steps", "--experiment", "old")
    path = Path("runs/old/version_0/checkpoints/last.ckpt")
    checkpoint = torch.load(path, weights_only=True)
    del checkpoint["callbacks"]["Resume"]["ended_step"]  # as version 0.1.0 wrote it
    ended = {"ready": steps, "started": steps, "processed": steps, "completed": steps}
    epoch = {"ready": 1, "started": 1, "processed": 1, "completed": 0}
    loops = checkpoint["loops"]["fit_loop"]
    loops["epoch_loop.batch_progress"] = {"total": ended, "current": ended, "is_last_batch": False}
    loops["epoch_progress"] = {"total": epoch, "current": epoch}
    torch.save(checkpoint, path)
    rest = recorded(run, *TWELVE, "--experiment", "old", "--ckpt_path", "last")
    assert rest.losses == uncut.losses[steps:]
    assert [e for e in rest.events if e != "end 0"] == [e for e in uncut.events[-len(rest.events) :] if e != "end 0"]


# Lightning's callbacks


def test_a_checkpoint_of_every_second_epoch_is_written(run):
    options = "every_n_epochs: 2, save_top_k: -1, save_on_train_epoch_end: true, filename: 'e{epoch}'"
    callback = f"{{class_path: ModelCheckpoint, init_args: {{{options}}}}}"
    run(*TWELVE, "--trainer.limit_train_batches", "2", f"--trainer.callbacks+={callback}")
    files = sorted(path.name for path in Path("runs/tiny/version_0/checkpoints").glob("eepoch*"))
    assert files == ["eepoch=1.ckpt", "eepoch=3.ckpt", "eepoch=5.ckpt"]


def test_early_stopping_ends_a_run_with_the_score_of_its_last_weights(run):
    stopping = "{class_path: EarlyStopping, init_args: {monitor: val/bpb, mode: max, patience: 1"
    options = ("--trainer.check_val_every_n_epoch", "1", *TWELVE)
    recorder = recorded(run, *options, f"--trainer.callbacks+={stopping}}}}}")
    assert recorder.events == [*FIRST, "val", "end 0", *SECOND, "val", "end 1"]
    options = ("--trainer.check_val_every_n_epoch", "2", "--time_budget.limit", "30 steps")
    stopping += ", check_on_train_epoch_end: true, strict: false"
    recorder = recorded(run, *options, f"--trainer.callbacks+={stopping}}}}}")
    assert recorder.events == [*FIRST, "end 0", *SECOND, "val", "end 1", *FIRST, "end 2", "val"]
    assert record(version=1)["total_steps"] == 15


def test_early_stopping_sees_validations_at_times(run, monkeypatch):
    recorder = Recorder()
    clock = SimpleNamespace(monotonic=lambda: 3600.0 * len(recorder.batches))  # a step takes an hour
    for module in (fit_loop, training_epoch_loop, evaluation_loop):
        monkeypatch.setattr(module, "time", clock)
    stopping = "{class_path: EarlyStopping, init_args: {monitor: val/bpb, mode: max, patience: 1}}"
    with added_callback(recorder):
        run(*TWELVE, "--trainer.val_check_interval", "00:04:00:00", f"--trainer.callbacks+={stopping}")
    assert recorder.events == [0, 1, 2, 3, "val", 4, "end 0", 0, 1, 2, "val", "end 1"]


def test_learning_rates_are_logged_at_every_epoch(run):
    monitor = "{class_path: LearningRateMonitor, init_args: {logging_interval: epoch}}"
    run(*TWELVE, "--trainer.logger", "CSVLogger", f"--trainer.callbacks+={monitor}")
    (file,) = Path("runs/tiny/version_0").rglob("metrics.csv")
    header, *lines = (line.split(",") for line in file.read_text().splitlines())
    (name,) = [name for name in header if name.startswith("lr-") and name.endswith("hidden")] or [
        next(name for name in header if name.startswith("lr-"))
    ]
    assert sum(bool(line[header.index(name)]) for line in lines) == 3


# Rejected


CALLBACKS = {
    "{class_path: StochasticWeightAveraging, init_args: {swa_lrs: 0.01}}": "EMAWeightAveraging",
    "{class_path: StochasticWeightAveraging, init_args: {swa_lrs: 0.01, swa_epoch_start: 2}}": "EMAWeightAveraging",
    "{class_path: GradientAccumulationScheduler, init_args: {scheduling: {0: 2}}}": "schedules.data.batch_size",
    "{class_path: ModelPruning, init_args: {pruning_fn: l1_unstructured, amount: 0.5}}": "torch.nn.utils.prune",
    "BackboneFinetuning": "schedules.lr.<group>",
    "LearningRateFinder": "model.optimizer.lr",
    "BatchSizeFinder": "data.batch_size",
    "{class_path: EarlyStopping, init_args: {monitor: val/bpb}}": "val_check_interval",
}


WITH = {
    "LearningRateMonitor": (("--trainer.logger", "false"), "with trainer.logger"),
    "DeviceStatsMonitor": (("--trainer.logger", "false"), "with trainer.logger"),
    "{class_path: EarlyStopping, init_args: {monitor: val/bpb, check_on_train_epoch_end: true}}": (
        ("--trainer.val_check_interval", "3"),
        "trainer.check_val_every_n_epoch 1",
    ),
}


@pytest.mark.parametrize(("callback", "options", "instead"), [(name, *case) for name, case in WITH.items()])
def test_callbacks_that_lack_a_requirement_are_rejected(rejected, callback, options, instead):
    line = rejected(f"--trainer.callbacks+={callback}", *options)
    assert line.startswith("bytelm: error: trainer.callbacks: ")
    assert instead in line
    assert not Path("runs").exists()


def test_statistics_of_a_cpu_without_their_package_are_rejected(rejected, monkeypatch):
    monkeypatch.setattr(epochs, "find_spec", lambda name: None)
    assert "pip install psutil" in rejected("--trainer.callbacks+=DeviceStatsMonitor")


@pytest.mark.parametrize(("callback", "instead"), CALLBACKS.items())
def test_callbacks_that_cannot_work_are_rejected_before_the_run_has_a_folder(rejected, callback, instead):
    line = rejected(f"--trainer.callbacks+={callback}")
    name = callback.removeprefix("{class_path: ").partition(",")[0]
    assert "trainer.callbacks" in line
    assert name in line
    assert instead in line
    assert not Path("runs").exists()


OPTIONS = {
    "max_steps 0": ["max_steps", "time_budget.limit"],
    "max_epochs 0": ["max_epochs", "time_budget.limit"],
    "min_epochs 2": ["min_epochs", "time_budget.limit"],
    "limit_train_batches 0": ["limit_train_batches", "more than 0"],
    "limit_train_batches 0.0": ["limit_train_batches", "more than 0"],
    "limit_train_batches 0.001": ["limit_train_batches", "an epoch has", "from 0.0"],
    "overfit_batches 0.001": ["overfit_batches", "an epoch has", "from 0.0"],
    "limit_val_batches 0.01": ["limit_val_batches", "from 0.12"],
    "check_val_every_n_epoch -1": ["check_val_every_n_epoch: -1 ", "from 1"],
    "check_val_every_n_epoch 0": ["check_val_every_n_epoch", "from 1"],
    "reload_dataloaders_every_n_epochs 1": ["reload_dataloaders_every_n_epochs", "accepted: 0"],
    "limit_train_batches 3 --trainer.accumulate_grad_batches 2": ["limit_train_batches: 3 ", "such as 2"],
    "val_check_interval 1000 --trainer.check_val_every_n_epoch 1": ["val_check_interval: 1000 ", "null"],
}


@pytest.mark.parametrize(("option", "parts"), thinned(OPTIONS.items(), 6, several=True))
def test_counts_that_leave_nothing_are_rejected_before_the_run_has_a_folder(rejected, option, parts):
    line = rejected(*f"--trainer.{option}".split())
    for part in parts:
        assert part in line
    assert not Path("runs").exists()


@pytest.mark.parametrize(
    ("options", "key"),
    [
        (["--checkpoint.every_n_epochs", "2"], "checkpoint.every_n_epochs: 2 "),
        (["--checkpoint.save_on_train_epoch_end", "true"], "checkpoint.save_on_train_epoch_end: True "),
        (
            ["--trainer.callbacks+={class_path: ModelCheckpoint, init_args: {every_n_epochs: 1}}"],
            "trainer.callbacks.ModelCheckpoint.every_n_epochs: 1 ",
        ),
    ],
)
def test_checkpoints_that_wait_for_validations_which_never_come_are_rejected(rejected, options, key):
    line = rejected(*options)
    assert key in line
    assert "trainer.check_val_every_n_epoch" in line
    assert not Path("runs").exists()
