"""Saves a run's config, and passes it to the loggers as hyper-parameters."""

from typing import Any

from jsonargparse import Namespace
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.cli import LightningArgumentParser, SaveConfigCallback

from bytelm.callbacks.run_folder import run_folder
from bytelm.config.flat import flat
from bytelm.config.parser import header
from bytelm.config.text import dump
from bytelm.runs import summaries
from bytelm.runs.folder import CONFIG
from bytelm.runs.logger import TensorBoardLogger
from bytelm.runs.score import score_for
from bytelm.system.files import write_text

# The hyper-parameters of a run: the options that can change its result, and all of the model.
SECTIONS = ("seed_everything", "data", "time_budget", "lr_schedule", "schedules")
TRAINER_KEYS = ("devices", "strategy", "precision", "gradient_clip_val", "accumulate_grad_batches")


class RunConfig(SaveConfigCallback):
    """Saves the resolved config in the run's folder, and passes it to the loggers as hyper-parameters.

    Args:
        parser: The parser of the command line.
        config: The parsed config.
        plain: The config as plain values.
        varied: Keys that were given beside the config, or beside its base.
    """

    def __init__(
        self, parser: LightningArgumentParser, config: Namespace, plain: dict[str, Any], varied: set[str]
    ) -> None:
        super().__init__(parser, config, save_to_log_dir=False)  # saved below instead, completely or not at all
        self.plain = plain
        self.varied = varied

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage == "fit":
            self._folder = run_folder(trainer)
            super().setup(trainer, pl_module, stage)

    def save_config(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        # Without the checkpoint: `fit --config` on it repeats the run from the start.
        config = {key: value for key, value in self.plain.items() if key != "ckpt_path"}
        if self._folder is not None:
            write_text(self._folder / CONFIG, header() + dump(config))
        compared = {key: config[key] for key in SECTIONS}
        compared["trainer"] = {key: config["trainer"][key] for key in TRAINER_KEYS}
        values = {
            key: value if isinstance(value, bool | int | float) else str(value)
            for key, value in flat({**compared, **config["model"]}).items()
        }
        for each in trainer.loggers if trainer.enable_autolog_hparams else ():
            if isinstance(each, TensorBoardLogger) and each.folder is not None:
                # Only the metric's name is written: log_hyperparams would also log an initial value of it at step 0.
                score = score_for(trainer.datamodule.counts_bytes)  # type: ignore[attr-defined]
                varied = {key.removeprefix("model.") for key in self.varied}
                for summary in (*summaries.settings(values, score.tag, varied), summaries.layout()):
                    each.experiment.file_writer.add_summary(summary)
            else:
                each.log_hyperparams(values)
