"""Loggers of lightning.pytorch.loggers."""

from typing import Any

from lightning_cells.cell import Cell, Check, Run

GROUP = "Loggers"
MINE = "lightning_cells.yours."


def logger(name: str, value: str, documented: str, check: Check, *more: str, **details: Any) -> Cell:
    """A cell of a logger."""
    return Cell(GROUP, name, ("--trainer.logger", value, *more), documented, check, **{"key": name, **details})


def tensorboard(run: Run) -> tuple[Any, Any]:
    """TensorBoard's log has the curve of the loss and the score."""
    tags = run.tags()
    return (len(tags["train/loss"]), len(tags["val/bpb"])), (6, 1)


def csv(run: Run) -> tuple[Any, Any]:
    """metrics.csv has the curve of the loss and the score, hparams.yaml the model."""
    header, *rows = run.text("runs/tiny/version_0/csv/version_0/metrics.csv").splitlines()
    columns = header.split(",")
    losses = [row.split(",")[columns.index("train/loss")] for row in rows]
    scores = [row.split(",")[columns.index("val/bpb")] for row in rows]
    observed = (sum(map(bool, losses)), sum(map(bool, scores)), "d_model" in run.text("**/hparams.yaml"))
    return observed, (6, 1, True)


def both(run: Run) -> tuple[Any, Any]:
    """Both loggers have the curves."""
    return (tensorboard(run)[0], csv(run)[0]), (tensorboard(run)[1], csv(run)[1])


def wandb(run: Run) -> tuple[Any, Any]:
    """W&B has a run with its metrics, and the run's folder is the same as without."""
    return (bool(run.files("**/*.wandb")), bool(run.files("runs/tiny/version_0/record.json"))), (True, True)


CELLS = (
    logger("true", "true", "TensorBoard, in the run's folder", tensorboard, key="logger"),
    logger("false", "false", "no logs", lambda run: (
        (run.seen["loggers"], run.files("**/events*"), run.record["status"]), ([], [], "completed")), key="logger"),
    logger("TensorBoardLogger", "TensorBoardLogger", "TensorBoard, in the run's folder", tensorboard),
    logger("TensorBoardLogger", "TensorBoardLogger", "TensorBoard, in a folder that you name", lambda run: (
        (bool(run.files("mine/**/events*")), run.record["status"]), (True, "completed")),
        "--trainer.logger.save_dir", "mine"),
    logger("CSVLogger", "CSVLogger", "metrics.csv and hparams.yaml in the run's folder", csv, in_ci=True),
    logger("CSVLogger", "CSVLogger", "metrics.csv in a folder that you name", lambda run: (
        (bool(run.files("mine/**/metrics.csv")), run.record["status"]), (True, "completed")),
        "--trainer.logger.save_dir", "mine"),
    Cell(GROUP, "CSVLogger", ("--trainer.logger+=TensorBoardLogger", "--trainer.logger+=CSVLogger"),
         "both, from a list", both),
    logger("WandbLogger", "WandbLogger", "Weights & Biases", wandb, needs="wandb", everywhere=False),
    logger("MLFlowLogger", "MLFlowLogger", "MLflow", lambda run: (bool(run.files("mlruns/**/*")), True), needs="mlflow",
           everywhere=False),
    logger("CometLogger", "CometLogger", "Comet", lambda run: (run.seen["steps"], 6), needs="comet_ml", everywhere=False),
    logger("LitLogger", "LitLogger", "Lightning's own service", lambda run: (run.seen["steps"], 6), needs="litlogger",
           everywhere=False),
    logger("Logger", MINE + "ListLogger", "a logger of your own gets hyper-parameters and all metrics", lambda run: (
        ("hyperparameters True" in run.out, len([line for line in run.out.splitlines()
         if line.startswith("logged") and "train/loss" in line]), "val/bpb" in run.out), (True, 6, True)), in_ci=True),
)  # fmt: skip
