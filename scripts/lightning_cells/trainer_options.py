"""Options of the Trainer, but for those whose values are classes: callbacks.py, loggers.py, …"""

from typing import Any

from lightning_cells.cell import Cell, Check
from lightning_cells.checks import TWO, clipped, never, notes, ranks_agree, same_as_plain, trained
from lightning_cells.running import EPOCH, VALIDATION

GROUP = "Options of the Trainer"
EPOCHS = ("--time_budget.limit", "20 steps")  # two epochs and a half
CSV = ("--trainer.logger", "CSVLogger")
ANOMALY = "--trainer.callbacks+=lightning_cells.yours.BadGradient"
BATCH_NORM = ("--model.gpt.feedforward", "lightning_cells.yours.WithBatchNorm")


def option(name: str, value: str, documented: str, check: Check, *more: str, **details: Any) -> Cell:
    """A cell of one option; further options follow it."""
    return Cell(GROUP, name, (f"--trainer.{name}", value), documented, check, more, **details)


CELLS = (
    option("accelerator", "cpu", "trains on the CPU", trained(6, device="cpu")),
    option("accelerator", "auto", "trains on the best device", trained(6)),
    option("accelerator", "gpu", "trains on a GPU", trained(6, device="cuda"), everywhere=False),
    option("accelerator", "cuda", "trains on an NVIDIA GPU", trained(6, device="cuda"), everywhere=False),
    option("accelerator", "mps", "trains on an Apple GPU", trained(6, device="mps"), everywhere=False),
    option("accelerator", "tpu", "trains on a TPU", trained(6, device="xla"), everywhere=False),
    option("accelerator", "hpu", "trains on Gaudi", trained(6, device="hpu"), everywhere=False),
    option("devices", "2", "two processes, with data of their own and the same weights", ranks_agree(),
           "--time_budget.limit", "3 steps"),
    option("devices", "auto", "all devices; of CPUs one process", trained(6, world_size=1)),
    option("devices", "0", "an error", never, in_ci=True),
    option("devices", "-1", "all devices; not for CPUs", never),
    option("devices", "[0]", "the device with this number; not for CPUs", never),
    option("num_nodes", "2", "waits for the second host", never),
    option("num_nodes", "0", "an error", never),
    option("fast_dev_run", "true", "one batch of training, one of validation; writes nothing", Check(
        "1 batch of training, 1 of validation, no file in runs/",
        lambda run: ((len(run.seen["batches"]), run.validated, run.files("runs/**/*")), (1, [1], []))), in_ci=True),
    option("fast_dev_run", "2", "two batches of each", Check(
        "2 batches of training, 2 of validation",
        lambda run: ((len(run.seen["batches"]), run.validated), (2, [2])))),
    option("fast_dev_run", "3", "replaces val_check_interval, by one validation at its end", Check(
        "1 validation, and the note `trainer.val_check_interval has no effect with trainer.fast_dev_run 3`",
        lambda run: ((run.steps, "val_check_interval has no effect with" in run.err), ([3], True))),
        "--trainer.val_check_interval", "10%"),
    option("max_epochs", "1", "ends after one epoch", never, *EPOCHS),
    option("max_epochs", "-1", "no limit", trained(20), *EPOCHS),
    option("min_epochs", "2", "trains two epochs at least", never),
    option("max_steps", "3", "ends after 3 steps", never, in_ci=True),
    option("max_steps", "0", "trains nothing", never),
    option("max_steps", "-1", "no limit", trained(6)),
    option("min_steps", "10", "trains 10 steps at least", never),
    option("max_time", "00:00:01:00", "ends after a minute", never),
    option("limit_train_batches", "0.5", "an epoch is half of the batches", Check(
        "4 of 8 batches in each epoch", lambda run: (run.seen["epochs"], [i // 4 for i in range(20)])), *EPOCHS),
    option("limit_train_batches", "3", "an epoch is 3 batches", Check(
        "3 batches in each epoch", lambda run: (run.seen["epochs"], [i // 3 for i in range(20)])), *EPOCHS),
    option("limit_train_batches", "0", "trains nothing", never),
    option("limit_train_batches", "0.01", "less than a batch", never),
    option("limit_val_batches", "2", "validates 2 batches", Check(
        "2 batches", lambda run: (set(run.validated), {2}))),
    option("limit_val_batches", "0.4", "validates a share of the batches", Check(
        "1 of 3 batches", lambda run: (set(run.validated), {1}))),
    option("limit_val_batches", "0", "validates nothing", Check(
        "no batches, no score", lambda run: ((run.validated, run.score), ([], None)))),
    option("limit_test_batches", "2", "a limit of test; no effect in fit", notes(
        "trainer.limit_test_batches: no effect in fit")),
    option("limit_test_batches", "2", "tests 2 batches", Check(
        "2 batches", lambda run: (run.seen["test"], 2)), command="test"),
    option("limit_test_batches", "0.4", "tests a share of the batches", Check(
        "2 of 5 batches", lambda run: (run.seen["test"], 2)), command="test"),
    option("limit_test_batches", "0", "tests nothing", Check(
        "no batches", lambda run: (run.seen["test"], 0)), command="test"),
    option("limit_predict_batches", "2", "predicts 2 batches", Check(
        "2 batches", lambda run: (run.seen["predict"], 2)), "--ckpt_path", "last", command="predict"),
    option("limit_predict_batches", "0.5", "predicts a share of the batches", Check(
        "2 of 5 batches", lambda run: (run.seen["predict"], 2)), "--ckpt_path", "last", command="predict"),
    option("overfit_batches", "1", "trains on one batch and validates on it", Check(
        "6 steps of the same batch", lambda run: (run.seen["batches"], run.seen["batches"][:1] * 6)), in_ci=True),
    option("overfit_batches", "0.5", "trains on half of the batches", Check(
        "4 of 8 batches, again and again",
        lambda run: (run.seen["batches"], run.seen["batches"][: EPOCH // 2] * 5)), *EPOCHS),
    option("overfit_batches", "2", "replaces limit_train_batches", notes(
        "trainer.limit_train_batches has no effect with trainer.overfit_batches 2"),
        "--trainer.limit_train_batches", "4"),
    option("limit_train_batches", "3", "not a whole number of steps", never, "--trainer.accumulate_grad_batches", "2"),
    option("val_check_interval", "33%", "batches, or a share of an epoch; here also a share of the run", Check(
        "after steps 2, 4, 6", lambda run: (run.steps, [2, 4, 6]))),
    option("val_check_interval", "33%", "with check_val_every_n_epoch, a share of the run has no meaning", never,
           "--trainer.check_val_every_n_epoch", "1"),
    option("val_check_interval", "2", "no effect without validation", notes(
        "trainer.val_check_interval has no effect with trainer.limit_val_batches 0"),
        "--trainer.limit_val_batches", "0"),
    option("val_check_interval", "0.25", "validates 4 times an epoch", Check(
        "after steps 2, 4, 6, 8, …", lambda run: (run.steps[:9], [2, 4, 6, 8, 10, 12, 14, 16, 18])), *EPOCHS),
    option("val_check_interval", "4", "validates every 4 batches", Check(
        "after steps 4, 8, 12, 16", lambda run: (run.steps[:4], [4, 8, 12, 16])), *EPOCHS),
    option("val_check_interval", "9", "more batches than an epoch has: an error", never, *EPOCHS,
           "--trainer.check_val_every_n_epoch", "1"),
    option("val_check_interval", "9", "with check_val_every_n_epoch null, the default here: every 9 batches", Check(
        "after steps 9, 18", lambda run: (run.steps[:2], [9, 18])), *EPOCHS),
    option("val_check_interval", "00:00:00:01", "validates every second", Check(
        "1 to 4 validations in 2 s", lambda run: (1 <= len(run.steps) <= 4, True)), "--time_budget.limit", "2s"),
    option("val_check_interval", "0", "an error", never),
    option("check_val_every_n_epoch", "2", "validates after every second epoch", Check(
        "after steps 16, 20 (the end)", lambda run: ((run.steps, run.score is not None), ([16, 20], True))), *EPOCHS),
    option("check_val_every_n_epoch", "1", "validates after each epoch", Check(
        "after steps 8, 16, 20 (the end)", lambda run: (run.steps, [8, 16, 20])), *EPOCHS),
    option("check_val_every_n_epoch", "0", "an error", never),
    option("check_val_every_n_epoch", "-1", "nothing that is documented", never),
    option("num_sanity_val_steps", "2", "validates 2 batches before training", Check(
        "2 batches", lambda run: (run.seen["sanity"], 2))),
    option("num_sanity_val_steps", "-1", "validates all batches before training", Check(
        "3 batches", lambda run: (run.seen["sanity"], VALIDATION))),
    option("num_sanity_val_steps", "-2", "an error", never),
    option("log_every_n_steps", "2", "logs every second step", Check(
        "train/loss of steps 1, 3, 5", lambda run: ([step for step, _ in run.tags()["train/loss"]], [1, 3, 5]))),
    option("log_every_n_steps", "0", "logs no step", Check(
        "no train/loss in TensorBoard's log", lambda run: ("train/loss" in run.tags(), False))),
    option("enable_checkpointing", "false", "an error with a ModelCheckpoint", never,
           "--trainer.callbacks+=ModelCheckpoint"),
    option("enable_checkpointing", "false", "writes no checkpoint", Check(
        "6 steps, no .ckpt file", lambda run: ((run.seen["steps"], run.files("**/*.ckpt")), (6, [])))),
    option("enable_progress_bar", "false", "an error with a progress bar", never,
           "--trainer.callbacks+=TQDMProgressBar"),
    option("enable_progress_bar", "false", "no progress bar", Check(
        "no line of the bar on standard error",
        lambda run: (("| done" in run.err, "tok/s" in run.err, run.seen["steps"]), (False, False, 6)))),
    option("enable_model_summary", "true", "prints the modules and their parameters", Check(
        "the line of `gpt` with its parameters", lambda run: (run.summary("gpt"), True))),
    option("enable_model_summary", "false", "prints no summary", Check(
        "neither that table nor the lines before and after a run",
        lambda run: ((run.summary("gpt"), "budget  " in run.err, "next  " in run.err), (False, False, False)))),
    option("accumulate_grad_batches", "2", "a step is 2 batches", Check(
        "12 batches in 6 steps", lambda run: ((run.seen["steps"], len(run.seen["batches"])), (6, 12))), in_ci=True),
    option("accumulate_grad_batches", "0", "an error", never),
    option("gradient_clip_val", "0.1", "clips gradients to a norm of 0.1", clipped(norm=0.1)),
    option("gradient_clip_val", "0", "no clipping", same_as_plain),
    option("gradient_clip_val", "-1", "no clipping", never, in_ci=True),
    option("gradient_clip_algorithm", "value", "clips each value", clipped(value=0.01),
           "--trainer.gradient_clip_val", "0.01"),
    option("gradient_clip_algorithm", "norm", "clips the norm", clipped(norm=0.1),
           "--trainer.gradient_clip_val", "0.1"),
    option("gradient_clip_algorithm", "value", "no effect without gradient_clip_val", notes(
        "trainer.gradient_clip_algorithm has no effect with trainer.gradient_clip_val null")),
    option("gradient_clip_algorithm", "mean", "an error", never, "--trainer.gradient_clip_val", "0.1"),
    option("deterministic", "true", "deterministic algorithms alone", Check(
        "torch's mode in training", lambda run: (
            (run.seen["flags"]["deterministic"], run.seen["flags"]["warn_only"]), (True, False)))),
    option("deterministic", "warn", "warns of others", Check(
        "torch's mode in training", lambda run: (
            (run.seen["flags"]["deterministic"], run.seen["flags"]["warn_only"]), (True, True)))),
    option("benchmark", "true", "cuDNN tries its algorithms", Check(
        "torch's flag in training", lambda run: (run.seen["flags"]["benchmark"], True))),
    option("inference_mode", "true", "validate runs in torch's inference mode", Check(
        "torch's mode in validation", lambda run: (run.seen["flags"]["inference_mode"], True)), command="validate"),
    option("inference_mode", "false", "validate runs under no_grad", Check(
        "torch's mode in validation", lambda run: (run.seen["flags"]["inference_mode"], False)), command="validate"),
    option("use_distributed_sampler", "false", "no sampler is added; the data deal rows to ranks themselves",
           ranks_agree(), *TWO),
    option("detect_anomaly", "true", "an error where a gradient becomes NaN", Check(
        "the error names the operation", lambda run: ("returned nan values" in run.err, True)), ANOMALY, status=1),
    option("barebones", "true", "no logs, no checkpoints", never),
    option("sync_batchnorm", "true", "BatchNorm layers use the batches of all ranks, on GPUs", never,
           *TWO, *BATCH_NORM),
    option("sync_batchnorm", "true", "of one process: nothing to do", same_as_plain),
    option("reload_dataloaders_every_n_epochs", "1", "rebuilds the loader in each epoch", never, *EPOCHS),
    option("default_root_dir", "elsewhere", "runs are in this folder", Check(
        "record.json is there, and no file in runs/", lambda run: (
            (run.files("runs/**/*"), bool(run.files("elsewhere/**/record.json"))), ([], True))), in_ci=True),
    option("enable_autolog_hparams", "true", "loggers get the hyper-parameters", Check(
        "the model's, in hparams.yaml", lambda run: ("model" in run.text("**/hparams.yaml"), True)), *CSV),
    option("enable_autolog_hparams", "false", "loggers get no hyper-parameters", Check(
        "metrics.csv, and none in hparams.yaml", lambda run: (
            (bool(run.files("**/metrics.csv")), "model" in run.text("**/hparams.yaml")), (True, False))), *CSV),
    option("enable_autolog_hparams", "false", "no effect without a logger", notes(
        "trainer.enable_autolog_hparams has no effect with trainer.logger false"), "--trainer.logger", "false"),
    option("model_registry", "me/team/model", "uploads checkpoints to Lightning's registry", never),
)  # fmt: skip
