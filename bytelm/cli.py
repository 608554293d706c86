"""The command line: LightningCLI with bytelm's defaults.

    python -m bytelm {fit,validate,test,predict} --config FILE [--config FILE …] [--key value …]

What it adds to LightningCLI: `time_budget`, `lr_schedule`, `checkpoint` and `throughput` as top-level keys, durations
with units, a run folder runs/<experiment>/version_N, the run record, and errors that are one line and an exit status (errors.py).
"""

import json
import logging
import sys
import warnings
from pathlib import Path
from typing import Any, NoReturn

from jsonargparse.typing import register_type
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from torch.utils.tensorboard.summary import hparams

import bytelm.data.corpora  # noqa: F401 (makes the corpora's short names known)
from bytelm.config_file import ConfigFileParser
from bytelm.data.bytes import ByteData
from bytelm.errors import ConfigError, RunError
from bytelm.gpt import GPT
from bytelm.language_model import LanguageModel
from bytelm.messages import clarify
from bytelm.parts.attention import Attention
from bytelm.run_folder import RunLogger
from bytelm.units import Duration
from callbacks import BudgetBar, LRSchedule, PredictionWriter, RunRecord, Throughput, TimeBudget

register_type(Duration, serializer=str, deserializer=Duration.parse, deserializer_exceptions=(ValueError,))

TRAINER_DEFAULTS = {
    "max_epochs": -1,  # the time budget alone ends a run
    "log_every_n_steps": 10,
    "num_sanity_val_steps": 0,  # a validation before training tells nothing that the final one does not
    "enable_model_summary": False,
}
KEYS: dict[str, type] = {
    "experiment": str,
    "seed_everything": int,
    "trainer": Trainer,
    "model": LanguageModel,
    "data": ByteData,
    "time_budget": TimeBudget,
    "lr_schedule": LRSchedule,
    "checkpoint": ModelCheckpoint,
    "throughput": Throughput,
}
COMPARED_TRAINER_KEYS = ("devices", "strategy", "precision", "gradient_clip_val", "accumulate_grad_batches")
METHOD_DEFAULTS = {
    "weights_only": True,  # checkpoints load without unpickling code
    "verbose": False,  # the run record prints the scores
}
CHECKPOINT_DEFAULTS = {
    "checkpoint.filename": "best",
    "checkpoint.monitor": "val/bpb",
    "checkpoint.save_last": True,
    "checkpoint.enable_version_counter": False,
}


class RunConfig(SaveConfigCallback):
    """Saves the resolved config in the run's folder, and as hyper-parameters that TensorBoard compares runs by."""

    def save_config(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage != "fit" or not isinstance(trainer.logger, RunLogger):
            return
        config = self.config.as_dict()
        varied = {key: config[key] for key in ("seed_everything", "data", "time_budget", "lr_schedule")}
        varied["trainer"] = {key: config["trainer"][key] for key in COMPARED_TRAINER_KEYS}
        values = _flat({**varied, **config["model"]})
        writer = trainer.logger.experiment.file_writer
        # Only the metric's name is written: logger.log_hyperparams would also log a first value of it at step 0.
        for summary in hparams(values, {"val/bpb": 0.0}):
            writer.add_summary(summary)


class Parser(ConfigFileParser):
    """A parser whose errors are a message, without the hundred lines of usage before it."""

    def add_method_arguments(self, *args: Any, **kwargs: Any) -> list[str]:
        """Adds the arguments of Trainer.fit, validate, …; here, because their defaults can be set only afterwards."""
        added = super().add_method_arguments(*args, **kwargs)
        self.set_defaults({key: value for key, value in METHOD_DEFAULTS.items() if key in added})
        return added

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        if not self.exit_on_error:
            super().error(message, ex)
        fail(clarify(message, KEYS, nested=(GPT, Attention)))


def fail(message: str, exit_status: int = ConfigError.exit_status) -> NoReturn:
    """Ends the program with one line that says why."""
    line = " ".join(part.strip() for part in message.splitlines() if part.strip())
    print(f"bytelm: error: {line}", file=sys.stderr)
    sys.exit(exit_status)


class BytelmCLI(LightningCLI):
    """LightningCLI with a time budget, a schedule and a run record."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument(
            "--experiment", type=str | None, help="Name of the run's folder in runs/; default: the configs' names."
        )
        parser.add_lightning_class_args(TimeBudget, "time_budget")
        parser.add_lightning_class_args(LRSchedule, "lr_schedule", subclass_mode=True)
        parser.add_lightning_class_args(ModelCheckpoint, "checkpoint")
        parser.add_lightning_class_args(Throughput, "throughput")
        parser.set_defaults({"lr_schedule": {"class_path": "callbacks.Constant"}, **CHECKPOINT_DEFAULTS})

    def after_instantiate_classes(self) -> None:
        self._check()
        # What a checkpoint needs to rebuild the model: plain values, so that it loads without unpickling code.
        config = json.loads(self.parser.dump(self.config, skip_unset=False, format="json"))
        config = config.get(self.subcommand, config)
        instantiator = "lightning.pytorch.cli.instantiate_module"
        self.model.save_hyperparameters({**config["model"], "_instantiator": instantiator}, logger=False)

    def _check(self) -> None:
        """Finds what cannot work before the run has a folder."""
        self.model.check(self.datamodule)
        TimeBudget.of(self.trainer).check(self.trainer)
        if rank_zero_only.rank == 0:  # type: ignore[attr-defined]  # others might look while this one downloads
            self.datamodule.prepare_data()
            self.datamodule.setup(self.subcommand or "fit")

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        settings = self._get(self.config_init, "trainer")
        logger = settings.get("logger")
        if logger is None and self.subcommand in ("validate", "test"):
            kwargs["logger"] = logger = False  # they print their scores and leave nothing
        elif logger in (None, True):
            kwargs["logger"] = RunLogger("runs", self._experiment())
        if logger is False:
            self.save_config_callback = None
        if settings.get("enable_checkpointing") is False:
            self._parser(self.subcommand).callback_keys.remove("checkpoint")
        extra: list[Callback] = []
        if settings.get("enable_progress_bar") in (None, True):
            extra.append(BudgetBar())  # before the record, so that the bar is closed when that is printed
        extra.append(RunRecord())
        if self.subcommand == "predict":
            extra.append(PredictionWriter())
        self.trainer_defaults = {**self.trainer_defaults, "callbacks": extra}
        return super().instantiate_trainer(**kwargs)

    def _experiment(self) -> str:
        if name := self._get(self.config, "experiment"):
            return name
        configs = self._get(self.config, "config") or []
        return "+".join(Path(str(config)).stem for config in configs) or "default"


def main(args: list[str] | None = None) -> None:
    """Runs the command line: what ends a run (errors.py) is said in one line, with an exit status of its own.

    Args:
        args: Arguments; default those that the program was started with.
    """
    try:
        build(args)
    except Exception as error:
        if (cause := _run_error(error)) is None:
            raise
        fail(str(cause), cause.exit_status)


def build(args: list[str] | None = None, run: bool = True) -> BytelmCLI:
    """Makes all that a config describes, as `model`, `datamodule` and `trainer` of what is returned.

    Args:
        args: Arguments, with a subcommand if it is to be run, and without one if not: `["--config", "my.yaml"]`.
        run: Whether to run the subcommand.
    """
    _quieten_lightning()
    return BytelmCLI(
        LanguageModel,
        ByteData,
        subclass_mode_data=True,
        trainer_defaults=TRAINER_DEFAULTS,
        save_config_callback=RunConfig,
        seed_everything_default=42,
        auto_configure_optimizers=False,
        load_from_checkpoint_support=False,  # it would keep class instances; see after_instantiate_classes
        parser_class=Parser,
        parser_kwargs={"prog": "python -m bytelm", "description": "Trains language models under a wall-clock budget."},
        args=args,
        run=run,
    )


def _run_error(error: BaseException | None) -> RunError | None:
    """The RunError that an exception is or came from: jsonargparse wraps those of some constructors."""
    while error is not None and not isinstance(error, RunError):
        error = error.__cause__ or error.__context__
    return error


def _quieten_lightning() -> None:
    # Hints on hardware and services, and warnings about what is so on purpose: nothing that a user could act on.
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for message in (".*LeafSpec.*is deprecated", "The dirpath has changed from", "Couldn't infer the batch indices"):
        warnings.filterwarnings("ignore", message=message)


def _flat(value: Any, key: str = "") -> dict[str, Any]:
    """A nested value as `{"gpt.d_model": 80, "gpt.position": "Rotary", …}`, in types that TensorBoard takes."""
    if not isinstance(value, dict):
        plain = value if isinstance(value, bool | int | float) else str(value)
        return {} if value is None else {key: plain}
    flat: dict[str, Any] = {}
    if "class_path" in value:
        flat = {key: value["class_path"].rpartition(".")[2]}
        value = value.get("init_args") or {}
    for name, inner in value.items():
        flat |= _flat(inner, f"{key}.{name}" if key else name)
    return flat
