"""Callbacks of lightning.pytorch.callbacks."""

from typing import Any

from lightning_cells.cell import Cell, Check, Run
from lightning_cells.running import EPOCH
from lightning_cells.trainer_options import EPOCHS, never

GROUP = "Callbacks"
MINE = "lightning_cells.yours."
PREFIX = "--trainer.callbacks"


def callback(name: str, options: dict[str, str], documented: str, check: Check, *more: str, **details: Any) -> Cell:
    """A cell of one callback, with its options; further options of the run follow."""
    given = [word for key, value in options.items() for word in (f"{PREFIX}.{key}", value)]
    cls = details.pop("cls", name)
    return Cell(GROUP, name, (f"{PREFIX}+={cls}", *given, *more), documented, check, **{"key": name, **details})


def kept_are_scored(run: Run) -> tuple[Any, Any]:
    """The printed score is that of last.ckpt and best.ckpt, and the weights are not those of a plain run."""
    scores = {name: run.again("validate", "--ckpt_path", name).score for name in ("last", "best")}
    differs = run.seen["weights"] != run.plain().seen["weights"]
    return {**scores, "differs": differs}, {"last": run.score, "best": run.score, "differs": True}


def ckpts(run: Run) -> list[str]:
    """Names of the checkpoints in the run's folder."""
    return [file.rpartition("/")[2] for file in run.files("runs/tiny/version_0/checkpoints/*")]


CELLS = (
    callback("Callback", {}, "hooks of your own are called", lambda run: ("hello 6" in run.out, True),
             cls=MINE + "Hello", in_ci=True),
    callback("LambdaCallback", {"on_train_start": MINE + "say"}, "functions as hooks", lambda run: (
        run.out.count("said"), 1)),
    callback("EarlyStopping", {"monitor": "val/bpb", "patience": "1", "min_delta": "100"},
             "ends the run when a value stops improving", lambda run: (run.seen["steps"], 4),
             "--trainer.val_check_interval", "2"),
    callback("EarlyStopping", {"monitor": "train/loss", "check_on_train_epoch_end": "true", "patience": "1",
             "min_delta": "100"}, "ends the run when the training loss stops improving", lambda run: (
             run.seen["steps"], 2 * EPOCH), *EPOCHS),
    callback("EarlyStopping", {"monitor": "val/nothing"}, "a value that nobody logs: an error", never),
    callback("ModelCheckpoint", {"monitor": "val/bpb", "filename": "mine"}, "keeps the best by a value",
             lambda run: (set(ckpts(run)) >= {"mine.ckpt", "last.ckpt", "best.ckpt"}, True)),
    callback("ModelCheckpoint", {"monitor": "train/loss", "filename": "mine", "every_n_train_steps": "2"},
             "keeps the best by the training loss", lambda run: ("mine.ckpt" in ckpts(run), True)),
    callback("ModelCheckpoint", {"every_n_train_steps": "2", "save_top_k": "-1", "filename": "at-{step}"},
             "keeps every second step", lambda run: (
                 [name for name in ckpts(run) if name.startswith("at")], [f"at-step={n}.ckpt" for n in (2, 4, 6)])),
    callback("ModelCheckpoint", {"train_time_interval": "00:00:00:00.001", "save_top_k": "-1", "filename": "at-{step}"},
             "keeps one at intervals of time", lambda run: (any(name.startswith("at") for name in ckpts(run)), True)),
    callback("ModelCheckpoint", {"monitor": "val/nothing"}, "a value that nobody logs: an error", never),
    callback("Checkpoint", {}, "a checkpoint callback of your own", lambda run: (run.files("own.ckpt"), ["own.ckpt"]),
             cls=MINE + "OwnCheckpoint"),
    callback("OnExceptionCheckpoint", {"dirpath": "failed"}, "a checkpoint where training raises an error",
             lambda run: (run.files("failed/*.ckpt"), ["failed/on_exception.ckpt"]), f"{PREFIX}+={MINE}Fail", status=1),
    callback("LearningRateMonitor", {}, "logs learning rates", lambda run: (
        any(tag.startswith("lr-AdamW") for tag in run.tags()), True)),
    callback("LearningRateMonitor", {"logging_interval": "step", "log_momentum": "true"}, "logs momentum, too",
             lambda run: (any("momentum" in tag for tag in run.tags()), True)),
    callback("DeviceStatsMonitor", {}, "logs memory and use of devices", lambda run: (
        any(tag.startswith("DeviceStatsMonitor") for tag in run.tags()), True), needs="psutil"),
    callback("ThroughputMonitor", {"batch_size_fn": MINE + "batch_size", "window_size": "2"}, "logs batches per second",
             lambda run: (any(tag.startswith("train|") or "batches_per_sec" in tag for tag in run.tags()), True)),
    callback("Timer", {"duration": "00:00:01:00"}, "ends the run after a minute", never),
    callback("ModelSummary", {"max_depth": "2"}, "prints the modules and their parameters", lambda run: (
        "gpt.blocks" in run.out + run.err, True)),
    callback("RichModelSummary", {}, "the same, with the package rich", lambda run: (
        "gpt" in run.out and "Params" in run.out, True), needs="rich"),
    callback("RichProgressBar", {}, "its bar in place of bytelm's", lambda run: (
        (run.seen["steps"], "Epoch 0" in run.out, "BudgetBar" in run.seen["callbacks"]), (6, True, False)), needs="rich"),
    callback("TQDMProgressBar", {}, "its bar in place of bytelm's", lambda run: (
        (run.seen["steps"], "Epoch 0" in run.out + run.err, "BudgetBar" in run.seen["callbacks"]), (6, True, False))),
    callback("ProgressBar", {}, "a bar of your own in place of bytelm's", lambda run: (
        (run.out.count("dot"), "BudgetBar" in run.seen["callbacks"]), (6, False)), cls=MINE + "Bar"),
    callback("GradientAccumulationScheduler", {"scheduling": "{0: 2}"}, "a step is 2 batches", lambda run: (
        (run.seen["steps"], len(run.seen["batches"])), (6, 12))),
    callback("GradientAccumulationScheduler", {"scheduling": "{0: 1, 1: 2}"}, "a step is 2 batches from epoch 1 on",
             lambda run: ((run.seen["steps"], len(run.seen["batches"])), (20, 8 + 24)), *EPOCHS),
    callback("StochasticWeightAveraging", {"swa_lrs": "1e-3", "swa_epoch_start": "1"},
             "the average of the epochs' weights is scored and kept", kept_are_scored, *EPOCHS, "--trainer.max_epochs", "3"),
    callback("StochasticWeightAveraging", {"swa_lrs": "1e-3", "swa_epoch_start": "0.8"},
             "begins at a share of max_epochs", kept_are_scored, *EPOCHS),
    callback("WeightAveraging", {}, "the average of all steps' weights is scored and kept", kept_are_scored),
    callback("WeightAveraging", {}, "an average of your own is scored and kept", kept_are_scored,
             cls=MINE + "HalfAverage"),
    callback("EMAWeightAveraging", {"decay": "0.5"}, "the moving average of the weights is scored and kept",
             kept_are_scored, in_ci=True),
    callback("ModelPruning", {"pruning_fn": "l1_unstructured", "amount": "0.5"}, "half of the weights are 0",
             lambda run: (0.2 < run.seen["zeros"] <= 0.6 and kept_are_scored(run)[0]["last"] == run.score, True)),
    callback("BaseFinetuning", {}, "freezes modules", lambda run: ("frozen True" in run.out, True),
             cls=MINE + "Freeze"),
    callback("BackboneFinetuning", {}, "freezes pl_module.backbone", never),
    callback("LearningRateFinder", {}, "finds a learning rate before training", never),
    callback("BatchSizeFinder", {}, "finds a batch size before training", never),
    callback("SpikeDetection", {}, "finds batches at which the loss jumps", lambda run: (
        (run.seen["steps"], "SpikeDetection" in run.seen["callbacks"]), (6, True))),
    callback("BasePredictionWriter", {}, "predictions go to a writer of your own", lambda run: (
        run.text("mine.txt") == str(run.seen["predict"]) != "0", True), "--ckpt_path", "last", command="predict",
             cls=MINE + "Predictions"),
)  # fmt: skip
