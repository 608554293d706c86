"""Options of the Trainer, but for those whose values are classes: callbacks.py, loggers.py, …"""

from typing import Any

from lightning_cells.cell import Cell, Check, Run
from lightning_cells.running import EPOCH, VALIDATION

TRAINER = "Options of the Trainer"
PRECISIONS = "Precisions"
EPOCHS = ("--time_budget.limit", "20 steps")  # two epochs and a half


def option(name: str, value: str, documented: str, check: Check, *more: str, **details: Any) -> Cell:
    """A cell of one option; further options follow it."""
    group = PRECISIONS if name == "precision" else TRAINER
    return Cell(group, name, (f"--trainer.{name}", value, *more), documented, check, **details)


def trained(key: str, value: Any) -> Check:
    """Checks something that is observed in a run that trains to its end."""
    return lambda run: ((run.seen[key], run.seen["steps"]), (value, 6))


def never(run: Run) -> tuple[Any, Any]:
    """For what cannot work here: it must be rejected."""
    return "a run", "a rejection"


def same_as_plain(run: Run) -> tuple[Any, Any]:
    """Weights are those of a run without the option."""
    return run.seen["weights"], run.plain().seen["weights"]


def ranks_agree(strategy: str | None = None) -> Check:
    """Two ranks have trained on different batches, and have the same weights, those of their common gradient."""

    def check(run: Run) -> tuple[Any, Any]:
        ranks = run.ranks
        batches = {batch for rank in ranks for batch in rank["batches"]}
        observed = {
            "ranks": len(ranks),
            "weights": len({rank["weights"] for rank in ranks}),
            "batches of one rank in the other's": sum(len(rank["batches"]) for rank in ranks) - len(batches) > 0,
            "trained": all(rank["steps"] == 3 for rank in ranks),
            "status": run.record["status"],
        }
        wanted = {"ranks": 2, "weights": 1, "batches of one rank in the other's": False, "trained": True}
        return observed, {**wanted, "status": "completed"}

    return check


def largest(position: int, bound: float) -> Check:
    """Gradients, by norm (0) or value (1), are clipped to a bound, which the plain run's exceed."""

    def check(run: Run) -> tuple[Any, Any]:
        here = max(step[position] for step in run.seen["gradients"])
        plain = max(step[position] for step in run.plain().seen["gradients"])
        return (here <= bound * 1.0001, plain > bound), (True, True)

    return check


def dtypes(weights: str, product: str) -> Check:
    """Types of the weights and of what a matrix product returns."""
    return lambda run: ({k: run.seen["dtypes"][k] for k in ("weights", "product")} | {"steps": run.seen["steps"]},
                        {"weights": weights, "product": product, "steps": 6})  # fmt: skip


def bf16_with_warning(run: Run) -> tuple[Any, Any]:
    """Lightning's way with 16-mixed on a CPU."""
    warned = "Using `precision='bf16-mixed'` instead" in run.err
    return (run.seen["dtypes"]["product"], warned), ("bfloat16", True)


def precision(value: str, documented: str, check: Check, *more: str, **details: Any) -> Cell:
    """A cell of a precision."""
    return option("precision", value, documented, check, *more, **details)


TWO = ("--trainer.devices", "2", "--time_budget.limit", "3 steps")
NO_RUN: Check = lambda run: (run.files("runs/**/*"), [])  # noqa: E731
FLAG = "--trainer.logger"

CELLS = (
    option("accelerator", "cpu", "trains on the CPU", trained("device", "cpu"), in_ci=True),
    option("accelerator", "auto", "trains on the best device", lambda run: (run.seen["steps"], 6)),
    option("accelerator", "gpu", "trains on a GPU", trained("device", "cuda"), everywhere=False),
    option("accelerator", "cuda", "trains on an NVIDIA GPU", trained("device", "cuda"), everywhere=False),
    option("accelerator", "mps", "trains on an Apple GPU", trained("device", "mps"), everywhere=False),
    option("accelerator", "tpu", "trains on a TPU", trained("device", "xla"), everywhere=False),
    option("accelerator", "hpu", "trains on Gaudi", trained("device", "hpu"), everywhere=False),
    option("devices", "2", "two processes, with data of their own and the same weights", ranks_agree(),
           "--time_budget.limit", "3 steps"),
    option("devices", "auto", "all devices; of CPUs one process", trained("world_size", 1)),
    option("devices", "0", "cannot be", never, in_ci=True),
    option("devices", "-1", "all devices; not for CPUs", never),
    option("devices", "[0]", "the device with this number; not for CPUs", never),
    option("num_nodes", "2", "waits for the second host", never),
    option("num_nodes", "0", "cannot be", never),
    option("fast_dev_run", "true", "one batch of training, one of validation; writes nothing",
           lambda run: ((len(run.seen["batches"]), run.validated, run.files("runs/**/*")), (1, [1], [])), in_ci=True),
    option("fast_dev_run", "2", "two batches of each", lambda run: ((len(run.seen["batches"]), run.validated), (2, [2]))),
    option("max_epochs", "1", "ends after one epoch", lambda run: (len(run.seen["batches"]), EPOCH), *EPOCHS),
    option("max_epochs", "-1", "no limit", lambda run: (run.seen["steps"], 20), *EPOCHS),
    option("min_epochs", "2", "trains two epochs at least", lambda run: (run.seen["steps"] >= 2 * EPOCH, True)),
    option("max_steps", "3", "ends after 3 steps", lambda run: (run.seen["steps"], 3), in_ci=True),
    option("max_steps", "0", "trains nothing", never),
    option("max_steps", "-1", "no limit", lambda run: (run.seen["steps"], 6)),
    option("min_steps", "10", "trains 10 steps at least", lambda run: (run.seen["steps"], 10)),
    option("max_time", "00:00:01:00", "ends after a minute", never),
    option("limit_train_batches", "0.5", "an epoch is half of the batches", lambda run: (
        run.seen["batches"], run.seen["batches"][: EPOCH // 2] * 5), *EPOCHS),
    option("limit_train_batches", "3", "an epoch is 3 batches", lambda run: (
        run.seen["batches"], (run.seen["batches"][:3] * 7)[:20]), *EPOCHS, in_ci=True),
    option("limit_train_batches", "0", "trains nothing", never),
    option("limit_val_batches", "2", "validates 2 batches", lambda run: (run.validated, [2])),
    option("limit_val_batches", "0.4", "validates a share of the batches", lambda run: (run.validated, [1])),
    option("limit_val_batches", "0", "validates nothing", lambda run: ((run.validated, run.score), ([], None))),
    option("limit_test_batches", "2", "tests 2 batches", lambda run: (run.seen["test"], 2), command="test"),
    option("limit_test_batches", "0", "tests nothing", lambda run: (run.seen["test"], 0), command="test"),
    option("limit_predict_batches", "2", "predicts 2 batches", lambda run: (run.seen["predict"], 2),
           "--ckpt_path", "last", command="predict"),
    option("limit_predict_batches", "0.5", "predicts a share of the batches", lambda run: (run.seen["predict"] > 0, True),
           "--ckpt_path", "last", command="predict"),
    option("overfit_batches", "1", "trains on one batch and validates on it", lambda run: (
        (len(set(run.seen["batches"])), len(run.seen["batches"])), (1, 6)), in_ci=True),
    option("overfit_batches", "0.5", "trains on half of the batches", lambda run: (
        len(set(run.seen["batches"])), EPOCH // 2), *EPOCHS),
    option("val_check_interval", "0.25", "validates 4 times an epoch", lambda run: (
        run.steps[:9], [2, 4, 6, 8, 10, 12, 14, 16, 18]), *EPOCHS),
    option("val_check_interval", "4", "validates every 4 batches", lambda run: (run.steps[:4], [4, 8, 12, 16]), *EPOCHS,
           in_ci=True),
    option("val_check_interval", "9", "more batches than an epoch has: not with check_val_every_n_epoch", never, *EPOCHS),
    option("val_check_interval", "9", "with check_val_every_n_epoch null: every 9 batches over all epochs",
           lambda run: (run.steps[:2], [9, 18]), "--trainer.check_val_every_n_epoch", "null", *EPOCHS),
    option("val_check_interval", "00:00:00:01", "validates every second", lambda run: (
        1 <= len(run.steps) <= 4, True), "--time_budget.limit", "2s"),
    option("val_check_interval", "0", "cannot be", never),
    option("check_val_every_n_epoch", "2", "validates after every second epoch", lambda run: (
        (run.steps[0], run.score is not None), (2 * EPOCH, True)), *EPOCHS),
    option("check_val_every_n_epoch", "1", "validates after each epoch", lambda run: (
        run.steps[:2], [EPOCH, 2 * EPOCH]), *EPOCHS),
    option("check_val_every_n_epoch", "0", "cannot be", never),
    option("num_sanity_val_steps", "2", "validates 2 batches before training", lambda run: (run.seen["sanity"], 2)),
    option("num_sanity_val_steps", "-1", "validates all before training", lambda run: (run.seen["sanity"], VALIDATION)),
    option("log_every_n_steps", "2", "logs every second step", lambda run: (
        [step for step, _ in run.tags()["train/loss"]], [1, 3, 5])),
    option("log_every_n_steps", "0", "logs no step", lambda run: ("train/loss" in run.tags(), False)),
    option("enable_checkpointing", "false", "writes no checkpoint", lambda run: (
        (run.seen["steps"], run.files("**/*.ckpt")), (6, [])), in_ci=True),
    option("enable_progress_bar", "false", "no progress bar", lambda run: ((run.err, run.seen["steps"]), ("", 6))),
    option("enable_model_summary", "true", "prints the modules and their parameters", lambda run: (
        "LanguageModel" in run.out + run.err or "gpt" in run.out + run.err, True)),
    option("accumulate_grad_batches", "2", "a step is 2 batches", lambda run: (
        (run.seen["steps"], len(run.seen["batches"])), (6, 12)), in_ci=True),
    option("accumulate_grad_batches", "0", "cannot be", never),
    option("gradient_clip_val", "0.1", "clips gradients to a norm of 0.1", largest(0, 0.1)),
    option("gradient_clip_val", "0", "no clipping", same_as_plain),
    option("gradient_clip_val", "-1", "no clipping", same_as_plain),
    option("gradient_clip_algorithm", "value", "clips each value", largest(1, 0.01), "--trainer.gradient_clip_val", "0.01"),
    option("gradient_clip_algorithm", "norm", "clips the norm", largest(0, 0.1), "--trainer.gradient_clip_val", "0.1"),
    option("gradient_clip_algorithm", "mean", "cannot be", never, "--trainer.gradient_clip_val", "0.1"),
    option("deterministic", "true", "deterministic algorithms alone", lambda run: (
        (run.seen["flags"]["deterministic"], run.seen["flags"]["warn_only"]), (True, False))),
    option("deterministic", "warn", "warns of others", lambda run: (
        (run.seen["flags"]["deterministic"], run.seen["flags"]["warn_only"]), (True, True))),
    option("benchmark", "true", "cudnn tries its algorithms", lambda run: (run.seen["flags"]["benchmark"], True)),
    option("inference_mode", "true", "validate runs in torch's inference mode", lambda run: (
        run.seen["flags"]["inference_mode"], True), command="validate"),
    option("inference_mode", "false", "validate runs under no_grad", lambda run: (
        run.seen["flags"]["inference_mode"], False), command="validate"),
    option("use_distributed_sampler", "false", "the data deal rows to ranks by themselves, in either case", ranks_agree(),
           *TWO),
    option("detect_anomaly", "true", "an error where a gradient becomes NaN, with the operation",
           lambda run: ("returned nan values" in run.err, True),
           "--trainer.callbacks+=lightning_cells.yours.BadGradient", status=1),
    option("barebones", "true", "no logs, no checkpoints", lambda run: (run.files("runs/**/*"), [])),
    option("sync_batchnorm", "true", "BatchNorm layers use the batches of all ranks", lambda run: (
        "SyncBatchNorm" in run.seen["modules"], True), *TWO,
        "--model.gpt.feedforward", "lightning_cells.yours.WithBatchNorm"),
    option("sync_batchnorm", "true", "of one process: nothing to do", same_as_plain),
    option("reload_dataloaders_every_n_epochs", "1", "makes the loader anew in each epoch", lambda run: (
        run.seen["loaders"], 3), *EPOCHS),
    option("default_root_dir", "elsewhere", "runs are in this folder", lambda run: (
        (run.files("runs/**/*"), bool(run.files("elsewhere/**/record.json"))), ([], True)), in_ci=True),
    option("enable_autolog_hparams", "true", "loggers get the hyper-parameters", lambda run: (
        "model" in run.text("**/hparams.yaml"), True), FLAG, "CSVLogger"),
    option("enable_autolog_hparams", "false", "loggers get no hyper-parameters", lambda run: (
        "model" in run.text("**/hparams.yaml"), False), FLAG, "CSVLogger"),
    option("model_registry", "me/team/model", "uploads checkpoints to Lightning's registry", never, needs="litmodels",
           everywhere=False),
    precision("32-true", "float32", dtypes("float32", "float32"), in_ci=True),
    precision("32", "float32", dtypes("float32", "float32")),
    precision("64-true", "float64", dtypes("float64", "float64")),
    precision("64", "float64", dtypes("float64", "float64")),
    precision("bf16-mixed", "float32 weights, products in bfloat16", dtypes("float32", "bfloat16"), in_ci=True),
    precision("bf16", "float32 weights, products in bfloat16", dtypes("float32", "bfloat16")),
    precision("bf16-true", "bfloat16", dtypes("bfloat16", "bfloat16")),
    precision("16-true", "float16", dtypes("float16", "float16"), "--model.optimizer.eps", "1e-4"),
    precision("16-mixed", "float16 with float32 weights; on a CPU bfloat16, with a warning", bf16_with_warning),
    precision("16", "float16 with float32 weights; on a CPU bfloat16, with a warning", bf16_with_warning),
    precision("transformer-engine", "FP8 of NVIDIA's library", never, everywhere=False),
    precision("transformer-engine-float16", "FP8 of NVIDIA's library", never, everywhere=False),
    precision("fp8", "no name of Lightning's", never, in_ci=True),
)  # fmt: skip
