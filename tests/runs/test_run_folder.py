"""The run's folder is the same with any logger: its files, resumed runs, and the calls of loggers."""

import csv
import json
import os
import signal
import sys
from pathlib import Path

import programs
import pytest
import torch
import yaml
from added_callback import added_callback
from lightning.pytorch import Callback
from resuming import Signal, curves
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from thinned import thinned

from bytelm.errors import FolderError, Interrupted
from bytelm.program import main
from bytelm.runs.ledger import read_runs

MY_LOGGERS = """
from lightning.pytorch.loggers import Logger

class Mine(Logger):
    "Keeps all in memory; Lightning's base class has no save_dir."
    def __init__(self):
        super().__init__()
        self.rows, self.hyperparams, self.ended = [], {}, None
    name = property(lambda self: "mine")
    version = property(lambda self: "v")
    def log_metrics(self, metrics, step=None):
        self.rows.append((step, dict(metrics)))
    def log_hyperparams(self, params):
        self.hyperparams.update(params)
    def finalize(self, status):
        self.ended = status

class Online(Mine):
    "Like W&B's, Comet's and MLflow's: save_dir is the working directory, the names are the service's."
    save_dir = property(lambda self: ".")
    name = property(lambda self: None)
    version = property(lambda self: "a1b2c3")
"""
MY_CALLBACKS = """
import enum, pathlib
import numpy as np
from lightning.pytorch import Callback

class Color(enum.Enum):
    RED = "red"

class Holding(Callback):
    held, loaded = None, None
    def state_dict(self):
        return {"inner": {"x": self.held}}
    def load_state_dict(self, state):
        Holding.loaded = state["inner"]["x"]
"""
LOGGERS = {
    "default": (),
    "none": ("--trainer.logger", "false"),
    "csv": ("--trainer.logger", "CSVLogger"),
    "list": ("--trainer.logger", "[TensorBoardLogger, CSVLogger]"),
    "elsewhere": ("--trainer.logger", "{class_path: CSVLogger, init_args: {save_dir: logs}}"),
    "mine": ("--trainer.logger", "my_loggers.Mine"),
    "online": ("--trainer.logger", "my_loggers.Online"),
}
LONGER = ("--time_budget.limit", "9 steps", "--trainer.val_check_interval", "3")


@pytest.fixture(autouse=True)
def _modules(folder):
    (folder / "my_loggers.py").write_text(MY_LOGGERS)
    (folder / "my_callbacks.py").write_text(MY_CALLBACKS)
    (folder / "config.yaml").write_text("mine: 1\n")
    (folder / "record.json").write_text("mine too")


def record_of(folder):
    return json.loads(Path(folder, "record.json").read_text())


@pytest.mark.parametrize("logger", thinned(LOGGERS.values(), 2), ids=LOGGERS)
def test_with_any_logger_the_run_is_in_its_folder_and_resumes_there(run, capsys, logger):
    before = set(os.listdir())
    with added_callback(Signal("on_train_batch_end", 5)), pytest.raises(Interrupted, match="--ckpt_path last"):
        run(*logger, *LONGER)
    run_folder = Path("runs/tiny/version_0")
    assert record_of(run_folder)["status"] == "interrupted"
    run(*logger, *LONGER, "--ckpt_path", "last")
    assert [path.name for path in Path("runs/tiny").iterdir()] == ["version_0"]
    for name in ("config.yaml", "record.json", "checkpoints/last.ckpt", "checkpoints/best.ckpt"):
        assert (run_folder / name).is_file(), name
    record = record_of(run_folder)
    assert (record["status"], record["total_steps"], record["run"]) == ("completed", 9, str(run_folder))
    assert record["checkpoint"] == str(run_folder / "checkpoints" / "last.ckpt")
    assert Path("config.yaml").read_text() == "mine: 1\n"
    assert Path("record.json").read_text() == "mine too"
    assert set(os.listdir()) - before <= {"runs", "logs", "__pycache__"}

    capsys.readouterr()
    run("--ckpt_path", "best", subcommand="validate")
    assert f"val_bpb: {record['val_bpb']:.4f}" in capsys.readouterr().out
    (listed,) = read_runs(Path("runs"))
    assert listed.score == record["val_bpb"]


def test_a_logger_of_the_users_gets_hyper_parameters_and_one_row_a_step(run):
    logger = run("--trainer.logger", "my_loggers.Online", *LONGER).trainer.logger
    assert [step for step, _ in logger.rows] == list(range(9))
    training = {"train/loss", "grad/norm", "lr/hidden", "throughput/tokens_per_sec", "time_budget/progress"}
    assert all(training <= set(row) for _, row in logger.rows)
    assert [step for step, row in logger.rows if "val/bpb" in row] == [2, 5, 8]
    assert logger.rows[8][1]["val/bpb"] == pytest.approx(record_of("runs/tiny/version_0")["val_bpb"], abs=1e-6)
    assert logger.hyperparams["gpt.d_model"] == 16
    assert logger.hyperparams["optimizer.lr"] == 3e-3
    assert logger.hyperparams["time_budget.limit"] == "9 steps"
    assert logger.ended == "success"


def test_loggers_without_a_save_dir_write_to_the_runs_folder_one_row_a_step(run):
    run("--trainer.logger", "[TensorBoardLogger, CSVLogger]", *LONGER)
    folder = Path("runs/tiny/version_0")
    with open(folder / "csv/version_0/metrics.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["step"]) for row in rows] == list(range(9))
    in_events = curves(folder)
    for tag in ("train/loss", "val/bpb"):
        in_csv = [(int(row["step"]), float(row[tag])) for row in rows if row[tag]]
        assert [step for step, _ in in_csv] == [step for step, _ in in_events[tag]]
        assert [value for _, value in in_csv] == pytest.approx([value for _, value in in_events[tag]], rel=1e-6)
    assert yaml.safe_load((folder / "csv/version_0/hparams.yaml").read_text())["gpt.d_model"] == 16
    events = EventAccumulator(str(folder))
    events.Reload()
    assert "_hparams_/experiment" in events.summary_metadata


def test_two_csv_loggers_of_one_folder_are_rejected(rejected):
    def both(first, second):
        return ("--trainer.logger", f"[{{class_path: CSVLogger, init_args: {first}}}, CSVLogger, {second}]")

    other = "{class_path: CSVLogger, init_args: {version: 3}}"
    line = rejected(*both("{version: 3, prefix: x}", other))
    assert line.startswith(
        "bytelm: error: trainer.logger.version: 3 cannot be used; two CSVLoggers have the same folder"
    )
    other = "{class_path: lightning.pytorch.loggers.CSVLogger, init_args: {save_dir: a, name: b, version: v}}"
    assert "version: 'v' cannot be used; two" in rejected(*both("{save_dir: a, name: b, version: v}", other))
    assert not Path("runs").exists()


def test_csv_rows_of_before_a_cut_are_kept(run):
    with added_callback(Signal("on_train_batch_end", 5)), pytest.raises(Interrupted):
        run("--trainer.logger", "CSVLogger", *LONGER)
    run("--trainer.logger", "CSVLogger", *LONGER, "--ckpt_path", "last")
    steps = []
    for version in (0, 1):
        with open(f"runs/tiny/version_0/csv/version_{version}/metrics.csv", newline="") as file:
            steps += [int(row["step"]) for row in csv.DictReader(file)]
    assert steps == list(range(9))


@pytest.mark.parametrize("name", ["WandbLogger", "MLFlowLogger", "CometLogger"])
@pytest.mark.parametrize("form", ["{}", "[CSVLogger, {}]"])
def test_a_logger_whose_package_is_not_installed_is_one_line(rejected, monkeypatch, name, form):
    package = {"WandbLogger": "wandb", "MLFlowLogger": "mlflow", "CometLogger": "comet-ml"}[name]
    module = sys.modules[f"lightning.pytorch.loggers.{package.partition('-')[0]}"]
    (variable,) = (v for v in vars(module) if v in ("_WANDB_AVAILABLE", "_MLFLOW_AVAILABLE", "_COMET_AVAILABLE"))

    class Missing:
        def __bool__(self):
            return False

        def __str__(self):
            return f"Requirement '{package}>=1.0' not met. HINT: Try running `pip install -U '{package}>=1.0'`"

    monkeypatch.setattr(module, variable, Missing())
    assert rejected("--trainer.logger", form.format(name)) == (
        f"bytelm: error: trainer.logger: '{name}' cannot be used; "
        f"it needs {package}, which is not installed: pip install '{package}>=1.0'"
    )
    assert not Path("runs").exists()


@pytest.mark.parametrize(
    ("key", "options"),
    [
        ("trainer.logger.save_dir", ["--trainer.logger", "TensorBoardLogger"]),
        ("trainer.logger.save_dir", ["--trainer.logger", "CSVLogger"]),
        ("trainer.profiler.dirpath", ["--trainer.profiler", "SimpleProfiler"]),
        ("trainer.callbacks.dirpath", ["--trainer.callbacks+=OnExceptionCheckpoint"]),
        ("checkpoint.dirpath", []),
    ],
)
def test_a_folder_that_cannot_be_created_is_rejected_by_its_key_before_the_run_has_a_folder(rejected, key, options):
    line = rejected(*options, f"--{key}", "corpus.txt/a", status=5)
    assert line.startswith(f"bytelm: error: {key}: ")
    assert line.endswith("corpus.txt is not a folder; accepted: a folder that can be created or written to")
    assert not Path("runs").exists()


def test_runs_are_below_the_trainers_root(run, capsys):
    options = ("--trainer.default_root_dir", "elsewhere")
    run(*options)
    assert not Path("runs").exists()
    folder = Path("elsewhere/runs/tiny/version_0")
    assert record_of(folder)["run"] == str(folder)
    assert [path.name.split(".")[0] for path in folder.glob("events*")] == ["events"]
    run(*options, "--ckpt_path", "last", "--time_budget.limit", "6 steps")
    assert record_of(folder)["total_steps"] == 6
    capsys.readouterr()
    run(*options, "--ckpt_path", "best", subcommand="validate")
    assert f"val_bpb: {record_of(folder)['val_bpb']:.4f}" in capsys.readouterr().out


# Which run is meant


def test_a_runs_config_keeps_its_experiment_and_names_its_run(run, capsys):
    run("--experiment", "a/x")
    first = "runs/a/x/version_0/config.yaml"
    assert yaml.safe_load(Path(first).read_text())["experiment"] == "a/x"
    run("--time_budget.limit", "6 steps", config=first)
    assert sorted(path.name for path in Path("runs/a/x").iterdir()) == ["version_0", "version_1"]
    assert [path.name for path in Path("runs").iterdir()] == ["a"]
    for version in (0, 1):
        for name in ("best", "last"):
            capsys.readouterr()
            run("--ckpt_path", name, subcommand="validate", config=f"runs/a/x/version_{version}/config.yaml")
            score = record_of(f"runs/a/x/version_{version}")["val_bpb"]
            assert f"val_bpb: {score:.4f}" in capsys.readouterr().out
    assert record_of("runs/a/x/version_0")["val_bpb"] != record_of("runs/a/x/version_1")["val_bpb"]
    run("--ckpt_path", "last", "--time_budget.limit", "8 steps", config=first)
    assert [record_of(f"runs/a/x/version_{n}")["total_steps"] for n in (0, 1)] == [8, 6]


def test_a_config_of_before_experiments_were_saved_names_its_run_too(run, capsys):
    run("--experiment", "a/x")
    config = Path("runs/a/x/version_0/config.yaml")
    config.write_text(config.read_text().replace("experiment: a/x", "experiment: null"))
    run(config=str(config))
    assert sorted(path.name for path in Path("runs/a/x").iterdir()) == ["version_0", "version_1"]


class CutAtStart(Callback):
    """As a signal that comes while the network compiles."""

    def on_train_start(self, trainer, pl_module):
        raise Interrupted(signal.SIGTERM)


def cut_before_the_first_checkpoint(run, *options):
    with added_callback(CutAtStart()), pytest.raises(Interrupted):
        run(*options)
    assert not list(Path("runs").glob("tiny/version_1/checkpoints/*"))


def test_the_run_that_was_cut_before_its_first_checkpoint_continues_and_no_older_one(run, trained, capsys):
    cut_before_the_first_checkpoint(run)
    assert record_of("runs/tiny/version_1")["status"] == "interrupted"
    finished = Path("runs/tiny/version_0/record.json").read_bytes()
    run("--ckpt_path", "last")
    captured = capsys.readouterr()
    assert "runs/tiny/version_1 has no last.ckpt yet; starting it again" in captured.err
    assert "used up" not in captured.err
    assert record_of("runs/tiny/version_1")["status"] == "completed"
    assert record_of("runs/tiny/version_1")["total_steps"] == 4
    assert Path("runs/tiny/version_0/record.json").read_bytes() == finished
    assert [step for step, _ in curves("runs/tiny/version_1")["train/loss"]] == [0, 1, 2, 3]
    assert len(list(Path("runs/tiny").iterdir())) == 2


@pytest.mark.parametrize(
    "other",
    [
        ("--model.gpt.d_ff", "48"),
        *thinned([("--time_budget.limit", "3 steps"), ("--seed_everything", "3"), ("--trainer.precision", "64")], 1),
    ],
)
def test_a_run_of_another_command_that_was_cut_is_left_alone(run, trained, capsys, other):
    cut_before_the_first_checkpoint(run, *other)
    run("--ckpt_path", "last")
    assert "has no last.ckpt, and has ended or has another config; starting a new run" in capsys.readouterr().err
    statuses = [record_of(f"runs/tiny/version_{n}")["status"] for n in (0, 1, 2)]
    assert statuses == ["completed", "interrupted", "completed"]


def test_scoring_an_older_run_than_the_newest_is_said(run, trained, capsys):
    cut_before_the_first_checkpoint(run)
    capsys.readouterr()
    run("--ckpt_path", "best", subcommand="validate")
    said = "note: runs/tiny/version_1 has no best.ckpt; using runs/tiny/version_0/checkpoints/best.ckpt"
    assert said in capsys.readouterr().err


# Scores and predictions


def test_predict_makes_no_run_and_overwrites_nothing(run, trained, capsys):
    for name in ("predictions.pt", "predictions-1.pt"):
        run("--ckpt_path", "last", subcommand="predict")
        assert f"predictions: runs/tiny/version_0/{name}" in capsys.readouterr().out
    assert [path.name for path in Path("runs/tiny").iterdir()] == ["version_0"]
    Path("runs/tiny/version_0/checkpoints/last.ckpt").rename("mine.ckpt")
    Path("predictions.pt").write_text("mine")
    run("--ckpt_path", "mine.ckpt", subcommand="predict")
    assert "predictions: predictions-1.pt" in capsys.readouterr().out.replace(f"{Path.cwd()}/", "")
    assert Path("predictions.pt").read_text() == "mine"
    with pytest.raises(FolderError, match=r"trainer.default_root_dir: 'corpus.txt/a' cannot be used; /.* is not a"):
        run("--ckpt_path", "mine.ckpt", "--trainer.default_root_dir", "corpus.txt/a", subcommand="predict")
    assert [run.status for run in read_runs(Path("runs"))] == ["completed"]


def test_loggers_of_a_validation_leave_the_curves_of_the_run_alone(run, trained):
    before = curves("runs/tiny/version_0")
    run("--ckpt_path", "last", "--trainer.logger", "[TensorBoardLogger, CSVLogger]", subcommand="validate")
    assert curves("runs/tiny/version_0") == before
    (metrics,) = Path("runs/tiny/version_0/validate").rglob("metrics.csv")
    with open(metrics, newline="") as file:
        (row,) = csv.DictReader(file)
    assert float(row["val/bpb"]) == pytest.approx(record_of("runs/tiny/version_0")["val_bpb"], abs=1e-6)


WORSE_AND_WORSE = (
    "from bytelm.schedules import Schedule\n\n"
    "class Huge(Schedule):\n"
    "    def multiplier(self, progress):\n"
    "        return 1e3 if progress.fraction > 0.4 else 1.0\n"
)


@pytest.mark.parametrize("filename", [None, "mine-{step}", "{val/bpb:.3f}"])
def test_the_best_of_several_checkpoints_is_the_best(run, capsys, filename):
    Path("my_schedules.py").write_text(WORSE_AND_WORSE)
    named = () if filename is None else ("--checkpoint.filename", filename)
    options = ("--time_budget.limit", "12 steps", "--trainer.val_check_interval", "2")
    cli = run(*options, "--lr_schedule", "my_schedules.Huge", "--checkpoint.save_top_k", "3", *named)
    best = cli.trainer.checkpoint_callback
    kept = {Path(path).resolve(): float(score) for path, score in best.best_k_models.items()}
    assert len(kept) == 3
    folder = Path("runs/tiny/version_0/checkpoints")
    files = {path.resolve() for path in folder.rglob("*.ckpt") if path.name != "last.ckpt"}
    assert files == set(kept)
    assert (folder / "best.ckpt").resolve() == min(kept, key=kept.get)
    assert min(kept.values()) < record_of("runs/tiny/version_0")["val_bpb"]  # the last is not the best
    capsys.readouterr()
    run("--ckpt_path", "best", subcommand="validate")
    assert f"val_bpb: {min(kept.values()):.4f}" in capsys.readouterr().out


def test_one_checkpoint_is_a_file_named_best(run):
    run("--trainer.val_check_interval", "2")
    folder = Path("runs/tiny/version_0/checkpoints")
    assert sorted(path.name for path in folder.iterdir()) == ["best.ckpt", "last.ckpt"]
    assert not (folder / "best.ckpt").is_symlink()


@pytest.mark.parametrize("logger", ["my_loggers.Online", "false"])
def test_another_model_checkpoint_keeps_its_files_in_the_run_too(run, logger):
    mine = "{class_path: ModelCheckpoint, init_args: {monitor: val/bpb, filename: mine}}"
    run("--trainer.callbacks", f"[{mine}]", "--trainer.logger", logger)
    folder = Path("runs/tiny/version_0/checkpoints")
    assert sorted(path.name for path in folder.iterdir()) == ["best.ckpt", "last.ckpt", "mine.ckpt"]
    one, two = (torch.load(folder / name, weights_only=True)["state_dict"] for name in ("best.ckpt", "mine.ckpt"))
    assert all(torch.equal(one[name], two[name]) for name in one)


# Callbacks of the user


@pytest.mark.parametrize(
    ("value", "restored", "told"),
    [
        ("np.float32(1.5)", 1.5, None),
        ("[np.int64(3), {'a': np.bool_(True)}]", [3, {"a": True}], None),
        ("pathlib.Path('a/b')", "a/b", "callbacks.Holding.inner.x: a checkpoint stores pathlib.PosixPath as str"),
        ("Color.RED", "red", "callbacks.Holding.inner.x: a checkpoint stores my_callbacks.Color as str"),
    ],
)
def test_the_state_of_a_users_callback_can_be_read_again(run, capsys, monkeypatch, value, restored, told):
    monkeypatch.setattr("bytelm.runs.plain._told", set())
    with open("my_callbacks.py", "a") as file:
        file.write(f"\nHolding.held = {value}\n")
    run("--trainer.callbacks", "my_callbacks.Holding")
    said = capsys.readouterr().err
    assert said.count("a checkpoint stores") == (told is not None)
    assert told is None or told in said
    run("--trainer.callbacks", "my_callbacks.Holding", "--ckpt_path", "last", "--time_budget.limit", "6 steps")
    loaded = sys.modules["my_callbacks"].Holding.loaded
    assert (loaded, type(loaded)) == (restored, type(restored))


def test_a_state_that_no_checkpoint_can_hold_is_rejected_before_training(folder, capsys):
    with open("my_callbacks.py", "a") as file:
        file.write("\nHolding.held = object()\n")
    with pytest.raises(SystemExit) as ended:
        main(["fit", "--config", "tiny.yaml", "--trainer.callbacks", "my_callbacks.Holding"])
    assert ended.value.code == 4
    assert "bytelm: error: callbacks.Holding.inner.x: an object of object cannot be saved" in capsys.readouterr().err
    assert record_of("runs/tiny/version_0")["total_steps"] == 0


FAILING = (
    "from lightning.pytorch import Callback\n\n"
    "class Failing(Callback):\n"
    "    def setup(self, trainer, pl_module, stage):\n"
    "        raise LookupError('of mine')\n"
)


@pytest.mark.parametrize(("options", "steps"), [(("--experiment", "new"), 0), (("--ckpt_path", "last"), 4)])
def test_a_run_whose_callback_fails_in_setup_has_a_record(run, trained, options, steps):
    Path("my_failing.py").write_text(FAILING)
    with pytest.raises(LookupError, match="of mine"):
        run(*options, "--trainer.callbacks", "my_failing.Failing")
    (failed,) = [each for each in read_runs(Path("runs")) if each.status == "error"]
    assert failed.record["reason"] == "of mine"
    assert failed.record["total_steps"] == steps  # of a run that resumes: those of its checkpoint
    assert (failed.record["checkpoint"] is None) == (steps == 0)
    assert failed.record["num_params_M"] > 0


@pytest.mark.parametrize("recorded", [None, 2], ids=["killed", "resumed and then killed"])
def test_a_run_that_was_killed_and_fails_in_setup_keeps_the_steps_of_its_checkpoint(run, trained, recorded):
    file = Path("runs/tiny/version_0/record.json")
    before = json.loads(file.read_text())
    if recorded is None:
        file.unlink()
    else:
        file.write_text(json.dumps({**before, "total_steps": recorded, "status": "interrupted"}))
    Path("my_failing.py").write_text(FAILING)
    with pytest.raises(LookupError, match="of mine"):
        run("--ckpt_path", "last", "--trainer.callbacks", "my_failing.Failing")
    failed = json.loads(file.read_text())
    assert failed["status"] == "error"
    trained_before = ("total_steps", "progress", "tokens_seen", "train_loss", "training_time_secs")
    assert {key: failed[key] for key in trained_before} == {key: before[key] for key in trained_before}
    assert failed["checkpoint"] == before["checkpoint"]


def test_checkpoints_that_a_thread_writes_are_those_of_the_run(run):
    cli = run("--trainer.plugins", "AsyncCheckpointIO")
    assert type(cli.trainer.strategy.checkpoint_io).__name__ == "AsyncCheckpointIO"
    assert type(cli.trainer.strategy.checkpoint_io.checkpoint_io).__name__ == "AtomicCheckpointIO"
    run("--experiment", "plain")
    one, two = (torch.load(f"runs/{name}/version_0/checkpoints/last.ckpt") for name in ("tiny", "plain"))
    assert one["callbacks"]["TimeBudget"]["steps"] == 4
    assert all(torch.equal(one["state_dict"][name], two["state_dict"][name]) for name in one["state_dict"])
    run("--trainer.plugins", "AsyncCheckpointIO", "--ckpt_path", "last", "--time_budget.limit", "6 steps")
    assert record_of("runs/tiny/version_0")["total_steps"] == 6


@pytest.mark.parametrize("bar", ["RichProgressBar", "TQDMProgressBar"])
def test_a_progress_bar_of_the_users_is_the_only_one(run, bar):
    callbacks = run("--trainer.callbacks", bar).trainer.callbacks
    assert [type(c).__name__ for c in callbacks if "Bar" in type(c).__name__] == [bar]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--trainer.profiler", "simple"), "FIT Profiler Report"),
        (("--trainer.profiler", "advanced"), "Profile stats for: run_training_epoch"),
        (("--trainer.callbacks", "ModelSummary"), "Total params"),
        (
            (
                *("--trainer.callbacks", "{class_path: EarlyStopping, init_args: {monitor: val/bpb, verbose: true}}"),
                *("--trainer.val_check_interval", "2"),
            ),
            "Metric val/bpb improved",
        ),
    ],
)
def test_reports_that_were_asked_for_are_printed_and_hints_are_not(folder, options, said):
    command = [sys.executable, "-m", "bytelm", "fit", "--config", "tiny.yaml", *options]
    ended = programs.run(command)
    assert ended.returncode == 0
    assert said in ended.stderr
    for hint in ("GPU available", "litlogger", "litmodels", "Seed set to", "stopped:"):
        assert hint not in ended.stderr
