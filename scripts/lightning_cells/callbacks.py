"""Callbacks of lightning.pytorch.callbacks."""

from typing import Any

from lightning_cells.cell import Cell, Check, Run, flags
from lightning_cells.checks import TWO, never, says
from lightning_cells.trainer_options import EPOCHS

GROUP = "Callbacks"
MINE = "lightning_cells.yours."
PREFIX = "--trainer.callbacks"


def callback(name: str, options: dict[str, str], documented: str, check: Check, *more: str, **details: Any) -> Cell:
    """A cell of one callback, with its options; further options of the run follow."""
    cls = details.pop("cls", name)
    given = (f"{PREFIX}+={cls}", *flags(PREFIX, options))
    return Cell(GROUP, name, given, documented, check, more, **{"key": cls.rpartition(".")[2], **details})


def _is_scored(run: Run) -> tuple[Any, Any]:
    scores = {name: run.again("validate", "--ckpt_path", name).score for name in ("last", "best")}
    differs = run.seen["weights"] != run.plain().seen["weights"]
    return {**scores, "differs": differs}, {"last": run.score, "best": run.score, "differs": True}


is_scored = Check("val_bpb, last.ckpt and best.ckpt are of the average; the weights are not a plain run's", _is_scored)


def has_files(*names: str) -> Check:
    """Checkpoints in the run's folder, beside others."""
    return Check(f"checkpoints {', '.join(names)}", lambda run: (
        [name for name in names if run.files(f"runs/tiny/version_0/checkpoints/{name}")], [*names]))  # fmt: skip


def logs(tag: str) -> Check:
    """TensorBoard's log has curves whose names begin so."""
    return Check(f"curves `{tag}…` in TensorBoard's log", lambda run: (
        any(name.startswith(tag) for name in run.tags()), True))  # fmt: skip


def has_bar(*words: str) -> Check:
    """A progress bar in place of bytelm's, and its output."""
    return Check("its bar, and no BudgetBar", lambda run: (
        ([word for word in words if word in run.out + run.err], "BudgetBar" in run.seen["callbacks"]),
        ([*words], False)))  # fmt: skip


CELLS = (
    callback("Callback", {}, "hooks of your own are called", says("hello 6"), cls=MINE + "Hello", in_ci=True),
    callback("Callback", {}, "the base, whose hooks do nothing", never),
    callback("LambdaCallback", {"on_train_start": MINE + "say"}, "functions as hooks", says("said")),
    callback("EarlyStopping", {"monitor": "val/bpb", "patience": "1", "min_delta": "100"},
             "ends the run when a value stops improving", Check(
             "ends at step 4, the second validation", lambda run: (run.seen["steps"], 4)),
             "--trainer.val_check_interval", "2"),
    callback("EarlyStopping", {"monitor": "train/loss", "check_on_train_epoch_end": "true", "patience": "1",
             "min_delta": "100"}, "ends the run when the training loss stops improving", Check(
             "ends after the second epoch", lambda run: (run.seen["steps"], 16)), *EPOCHS),
    callback("EarlyStopping", {"monitor": "val/bpb"}, "needs validations during the run", never),
    callback("EarlyStopping", {"monitor": "val/bpb"}, "needs a score", never, "--trainer.val_check_interval", "2",
             "--trainer.limit_val_batches", "0"),
    callback("EarlyStopping", {"monitor": "val/bpb", "check_on_train_epoch_end": "true"},
             "needs a validation in each epoch", never, "--trainer.val_check_interval", "2"),
    callback("EarlyStopping", {"monitor": "val/nothing"}, "a value that nobody logs: an error", never,
             "--trainer.val_check_interval", "2", key="val/nothing", observed=False),
    callback("ModelCheckpoint", {"monitor": "val/bpb", "filename": "mine"}, "keeps the best by a value",
             has_files("mine.ckpt", "last.ckpt", "best.ckpt")),
    callback("ModelCheckpoint", {"monitor": "train/loss", "filename": "mine", "every_n_train_steps": "2"},
             "keeps the best by the training loss", has_files("mine.ckpt")),
    callback("ModelCheckpoint", {"every_n_train_steps": "2", "save_top_k": "-1", "filename": "at-{step}"},
             "keeps every second step", has_files("at-step=2.ckpt", "at-step=4.ckpt", "at-step=6.ckpt")),
    callback("ModelCheckpoint", {"train_time_interval": "00:00:00:00.001", "save_top_k": "-1", "filename": "at-{step}"},
             "keeps one at intervals of time", has_files("at-*.ckpt")),
    callback("ModelCheckpoint", {"filename": "last"}, "a file that the run writes itself", never, key="filename"),
    callback("ModelCheckpoint", {"save_last": "true"}, "a file that the run writes itself", never, key="save_last"),
    callback("ModelCheckpoint", {"every_n_epochs": "1", "filename": "mine"}, "saves after the validation of each epoch",
             never, key="every_n_epochs"),
    callback("ModelCheckpoint", {}, "an error for two whose states have one key", never, f"{PREFIX}+=ModelCheckpoint"),
    callback("ModelCheckpoint", {"monitor": "val/nothing"}, "a value that nobody logs: an error", never,
             key="val/nothing", observed=False),
    callback("Checkpoint", {}, "a checkpoint callback of your own", Check(
             "its file", lambda run: (run.files("own.ckpt"), ["own.ckpt"])), cls=MINE + "OwnCheckpoint"),
    callback("OnExceptionCheckpoint", {"dirpath": "failed"}, "a checkpoint where training raises an error", Check(
             "its file, of a callback that raises", lambda run: (run.files("failed/*"), ["failed/on_exception.ckpt"])),
             f"{PREFIX}+={MINE}Fail", status=1),
    callback("LearningRateMonitor", {}, "logs learning rates", logs("lr-AdamW")),
    callback("LearningRateMonitor", {"logging_interval": "step", "log_momentum": "true"}, "logs momentum, too",
             logs("lr-AdamW/hidden-momentum")),
    callback("LearningRateMonitor", {}, "an error without a logger", never, "--trainer.logger", "false", in_ci=True),
    callback("DeviceStatsMonitor", {}, "logs memory and use of devices", logs("DeviceStatsMonitor"), needs="psutil"),
    callback("ThroughputMonitor", {"batch_size_fn": MINE + "batch_size", "window_size": "2"},
             "logs batches and samples per second", logs("train/device/samples_per_sec")),
    callback("Timer", {"duration": "00:00:01:00"}, "ends the run after a minute", never),
    callback("ModelSummary", {"max_depth": "2"}, "prints the modules, two levels deep, and their parameters",
             says("gpt.blocks", "Total params")),
    callback("RichModelSummary", {}, "the same, with the package rich", says("gpt", "Total params"), needs="rich"),
    callback("RichProgressBar", {}, "its bar", has_bar("Epoch 0"), needs="rich"),
    callback("TQDMProgressBar", {}, "its bar", has_bar("Epoch 0")),
    callback("TQDMProgressBar", {}, "one bar", never, f"{PREFIX}+=RichProgressBar"),
    callback("ProgressBar", {}, "a bar of your own", has_bar("dot"), cls=MINE + "Bar"),
    callback("GradientAccumulationScheduler", {"scheduling": "{0: 2}"}, "a step is 2 batches", never),
    callback("GradientAccumulationScheduler", {"scheduling": "{0: 1, 1: 2}"}, "a step is 2 batches from epoch 1 on",
             never, *EPOCHS),
    callback("StochasticWeightAveraging", {"swa_lrs": "1e-3", "swa_epoch_start": "1"},
             "averages the weights of the last epochs", never, *EPOCHS),
    callback("StochasticWeightAveraging", {"swa_lrs": "1e-3", "swa_epoch_start": "0.8"},
             "begins at a share of max_epochs", never, *EPOCHS),
    callback("WeightAveraging", {}, "averages the weights of all steps", is_scored),
    callback("WeightAveraging", {}, "an average of your own", is_scored, cls=MINE + "HalfAverage"),
    callback("WeightAveraging", {}, "two averages", never, f"{PREFIX}+=EMAWeightAveraging"),
    callback("WeightAveraging", {}, "an average of weights that are split over ranks", never, *TWO,
             "--trainer.strategy", "fsdp"),
    callback("EMAWeightAveraging", {"decay": "0.5"}, "a moving average of the weights", is_scored),
    callback("ModelPruning", {"pruning_fn": "l1_unstructured", "amount": "0.5"}, "sets half of the weights to 0",
             never),
    callback("BaseFinetuning", {}, "freezes modules, in your own class", never, cls=MINE + "Freeze"),
    callback("BackboneFinetuning", {}, "freezes pl_module.backbone", never),
    callback("LearningRateFinder", {}, "finds a learning rate before training", never),
    callback("BatchSizeFinder", {}, "finds a batch size before training", never),
    callback("SpikeDetection", {}, "ends the run when the loss jumps", never),
    callback("BasePredictionWriter", {}, "predictions go to a writer of your own", Check(
             "its file, with the number of predictions", lambda run: (
                 run.text("mine.txt") == str(run.seen["predict"]) != "0", True)), "--ckpt_path", "last",
             command="predict", cls=MINE + "Predictions"),
)  # fmt: skip
