"""Training from Python: `from bytelm import fit`. It is the command `fit` as a function.

    run = fit("configs/quickstart.yaml", {"time_budget.limit": "30s"})
    run = fit(model=GPT(), data=Shakespeare(), limit="30s", lr_schedule=Cosine())

The first form takes configs; the run is the one that the command line makes of them. The second form takes objects,
with callbacks and a trainer's options as Lightning's Trainer takes them.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer

from bytelm.cli import build
from bytelm.errors import ConfigError, UsageError, run_error
from bytelm.gpt import GPT
from bytelm.inference.model import Model, load
from bytelm.runs import record as records
from bytelm.runs.folder import CONFIG, RunFolder
from bytelm.schedules import Schedule
from bytelm.system.process import begin_program
from bytelm.system.threads import set_waiting
from bytelm.train_objects import fit_objects

Config = str | Path | Mapping[str, Any]
# Keys of configs for the arguments of the second form; its others are options of the trainer.
OF_CONFIGS = {"limit": "time_budget.limit", "seed": "seed_everything"}
OF_CONFIGS |= {key: key for key in ("model", "data", "lr_schedule", "schedules", "ckpt_path", "init_from")}


@dataclass(frozen=True)
class Fitted:
    """A finished run.

    Attributes:
        folder: Its folder, runs/<experiment>/version_N; None under `fast_dev_run`, which writes no files.
        record: The contents of its record.json (bytelm/runs/record.py); empty without a folder.
        module: The trained LightningModule.
        trainer: The Trainer.
    """

    folder: Path | None
    record: records.Record = field(repr=False)
    module: LightningModule = field(repr=False)
    trainer: Trainer = field(repr=False)

    @property
    def val_bpb(self) -> float | None:
        """The final score, in bits per byte; None if the data do not count bytes."""
        return self.record.get("val_bpb")

    def load(self, device: str = "auto") -> Model:
        """Loads the run's best model; of a run that was made from configs.

        Args:
            device: See `bytelm.load`.

        Raises:
            ConfigError: The run was made from objects: its checkpoints do not say what network they are of.
        """
        if self.folder is None:
            raise ConfigError("fast_dev_run", True, "accepted by load: runs with a folder")
        if not (config := self.folder / CONFIG).exists():
            accepted = "accepted: run.module, the trained module; or a run that is made from configs"
            raise ConfigError("load", str(self.folder), f"it was made from objects, and has no config; {accepted}")
        return load(self.folder, config, device)


def fit(
    *configs: Config,
    model: GPT | LightningModule | None = None,
    data: LightningDataModule | None = None,
    limit: str | list[str] | None = None,
    lr_schedule: Schedule | None = None,
    schedules: Mapping[str, Schedule] | None = None,
    callbacks: Callback | Sequence[Callback] | None = None,
    experiment: str | None = None,
    seed: int | None = None,
    **trainer: Any,
) -> Fitted:
    """Trains a model.

    Args:
        configs: Config files, or mappings of keys to values as in a config file; later ones take precedence. Keys may
            contain dots: `{"time_budget.limit": "30s"}`. All other arguments but `experiment` are then keys of the
            configs.
        model: A GPT, which AdamW trains, or a LightningModule, such as a LanguageModel with a loss and an optimizer.
        data: The data.
        limit: Limit of the budget, or a list of limits: `30s`, `500 steps`, `300 Mtok`; default `180s`.
        lr_schedule: Schedule of the learning rate; default the optimizer's learning rate throughout.
        schedules: Schedules of other values, by target (docs/schedules.md).
        callbacks: Callbacks of Lightning or bytelm, beside those that every run has; those that the command rejects
            (docs/lightning.md) are rejected here, too.
        experiment: Name of the run's folder in runs/; default the names of the config files, or `python`.
        seed: Seed of the order of the data and of dropout, default 42. The weights are those of the given model.
        trainer: Options of Lightning's Trainer.

    Returns:
        The finished run.

    Raises:
        ConfigError, UsageError: An argument or a value cannot be used; the message names it.
        DataError: The data are missing or too short.
        Diverged: The loss became NaN or infinite.
        Interrupted: A signal ended the run, such as that of an interrupted notebook's kernel.
    """
    begin_program()
    set_waiting()
    objects: dict[str, Any] = {
        **{"model": model, "data": data, "limit": limit, "lr_schedule": lr_schedule, "schedules": schedules},
        **{"callbacks": callbacks, "seed": seed},
    }
    with _RunErrors():
        if not configs:
            return _fitted(*fit_objects(**objects, experiment=experiment, trainer=trainer))
        for key, value in {**objects, **trainer}.items():
            if value is not None:
                name = OF_CONFIGS.get(key, f"trainer.{key}")
                raise ConfigError(key, value, f"accepted without configs; with configs: fit(…, {{{name!r}: …}})")
        return _fit_configs(configs, experiment)


def _fit_configs(configs: Sequence[Config], experiment: str | None) -> Fitted:
    options = []
    for config in configs:
        options += ["--config", _as_text(config) if isinstance(config, Mapping) else str(config)]
    if experiment is None and all(isinstance(config, Mapping) for config in configs):
        named = [config["experiment"] for config in configs if isinstance(config, Mapping) and config.get("experiment")]
        experiment = named[-1] if named else "python"
    if experiment is not None:
        options += ["--experiment", experiment]
    cli = build(["fit", *options])
    return _fitted(cli.folder, cli.model, cli.trainer)


def _as_text(config: Mapping[str, Any]) -> str:
    """A mapping as the text of a config.

    Raises:
        ConfigError: A value is an object, which a config cannot contain.
    """

    def reject(value: Any) -> str:
        if isinstance(value, Path):
            return str(value)
        raise ConfigError("config", value, "accepted in a config: texts, numbers, lists and mappings of these")

    return json.dumps(dict(config), default=reject)


def _fitted(folder: RunFolder | None, module: LightningModule, trainer: Trainer) -> Fitted:
    if folder is None:
        return Fitted(None, {}, module, trainer)
    # Rank 0 writes the record, when the others may have ended already; their hosts may not have its disk.
    record = records.read(folder.path) if trainer.is_global_zero else {}
    return Fitted(folder.path, trainer.strategy.broadcast(record), module, trainer)


class _RunErrors:
    """Context in which an error that is equivalent to one of errors.py, such as a lack of memory, is raised as that.

    An invalid value is the caller's: its traceback ends at `fit`, as what lies between says nothing about it. Therefore
    this is no generator: for an exception that passes one, contextlib restores the traceback.
    """

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type | None, error: BaseException | None, traceback: object) -> None:
        cause = run_error(error) if isinstance(error, Exception) else None
        if isinstance(cause, ConfigError | UsageError):
            raise cause.with_traceback(None) from None
        if cause is not None and cause is not error:
            raise cause from error
