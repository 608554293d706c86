"""Loggers of lightning.pytorch.loggers."""

from typing import Any

from lightning_cells.cell import Cell, Check, Run
from lightning_cells.checks import never, notes

GROUP = "Loggers"
MINE = "lightning_cells.yours."


def logger(name: str, value: str, documented: str, check: Check, *options: str, **details: Any) -> Cell:
    """A cell of a logger, with its options."""
    return Cell(GROUP, name, ("--trainer.logger", value, *options), documented, check, **{"key": name, **details})


def _in_tensorboard(run: Run) -> tuple[Any, Any]:
    tags = run.tags()
    return (len(tags["train/loss"]), len(tags["val/bpb"])), (6, 1)


def _in_csv(run: Run) -> tuple[Any, Any]:
    header, *rows = run.text("runs/tiny/version_0/csv/version_0/metrics.csv").splitlines()
    columns = header.split(",")
    losses = [row.split(",")[columns.index("train/loss")] for row in rows]
    scores = [row.split(",")[columns.index("val/bpb")] for row in rows]
    observed = (sum(map(bool, losses)), sum(map(bool, scores)), "d_model" in run.text("**/hparams.yaml"))
    return observed, (6, 1, True)


def _in_both(run: Run) -> tuple[Any, Any]:
    return (_in_tensorboard(run)[0], _in_csv(run)[0]), (_in_tensorboard(run)[1], _in_csv(run)[1])


def _in_own(run: Run) -> tuple[Any, Any]:
    losses = [line for line in run.out.splitlines() if line.startswith("logged") and "train/loss" in line]
    return ("hyperparameters True" in run.out, len(losses), "val/bpb" in run.out), (True, 6, True)


def in_folder(pattern: str) -> Check:
    """The logger's files are in a folder of the working directory, and record.json in the run's folder."""
    return Check(f"its files `{pattern}`, and record.json in the run's folder", lambda run: (
        (bool(run.files(pattern)), run.record["status"]), (True, "completed")))  # fmt: skip


in_tensorboard = Check("train/loss of 6 steps, val/bpb", _in_tensorboard)
in_csv = Check("train/loss of 6 steps, val/bpb; the model in hparams.yaml", _in_csv)

CELLS = (
    logger("true", "true", "a logger by default: TensorBoard's, in the run's folder", in_tensorboard, key="logger"),
    logger("false", "false", "no logs", Check("no loggers, no event files, record.json", lambda run: (
        (run.seen["loggers"], run.files("**/events*"), run.record["status"]), ([], [], "completed"))), key="logger"),
    logger("TensorBoardLogger", "TensorBoardLogger", "TensorBoard", in_tensorboard),
    logger("TensorBoardLogger", "TensorBoardLogger", "TensorBoard, in a folder that you name",
           in_folder("mine/**/events*"), "--trainer.logger.save_dir", "mine"),
    logger("TensorBoardLogger", "TensorBoardLogger", "a name, in the folder that you name", notes(
           "trainer.logger.name has no effect with trainer.logger.save_dir null"), "--trainer.logger.name", "mine"),
    logger("CSVLogger", "CSVLogger", "metrics.csv and hparams.yaml", in_csv, in_ci=True),
    logger("CSVLogger", "CSVLogger", "metrics.csv in a folder that you name", in_folder("mine/**/metrics.csv"),
           "--trainer.logger.save_dir", "mine"),
    Cell(GROUP, "CSVLogger", ("--trainer.logger+=TensorBoardLogger", "--trainer.logger+=CSVLogger"),
         "both, from a list", Check("train/loss of 6 steps, val/bpb, in each", _in_both)),
    logger("WandbLogger", "WandbLogger", "Weights & Biases", in_folder("wandb/**/*.wandb"), needs="wandb"),
    logger("MLFlowLogger", "MLFlowLogger", "MLflow", in_folder("mlruns/**/*"), needs="mlflow"),
    logger("CometLogger", "CometLogger", "Comet", in_folder("**/*.zip"), needs="comet_ml"),
    logger("LitLogger", "LitLogger", "Lightning's own service", in_folder("**/*"), needs="litlogger"),
    logger("Logger", MINE + "ListLogger", "a logger of your own gets hyper-parameters and all metrics", Check(
           "the hyper-parameters, train/loss of 6 steps, val/bpb", _in_own), in_ci=True),
    logger("nonsense", "nonsense", "no logger", never, key="logger"),
)  # fmt: skip
