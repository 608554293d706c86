"""Loggers: TensorBoard's and CSV logs in the run's folder, and one row for each step in all loggers.

TensorBoardLogger and CSVLogger are Lightning's with one difference: without `save_dir` they write to the run's folder.
All other loggers are used unchanged and write where Lightning's documentation says.

| logger | destination |
| --- | --- |
| none given, `true`, TensorBoardLogger | `runs/<experiment>/version_N` |
| CSVLogger | `runs/<experiment>/version_N/csv/version_M`; M counts the processes of the run |
| any logger with `save_dir`, and others | where Lightning's documentation says |
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from lightning.pytorch import Trainer, loggers
from lightning.pytorch.loggers import Logger

from bytelm.errors import ConfigError, StorageError
from bytelm.runs.folder import RunFolder

LIGHTNINGS_NAME = "lightning_logs"


class TensorBoardLogger(loggers.TensorBoardLogger):
    """Lightning's TensorBoardLogger; without `save_dir` it writes to the run's folder.

    Args:
        save_dir: As for Lightning's; default the run's folder.
        name: As for Lightning's; not used in the run's folder.
        version: As for Lightning's; not used in the run's folder.
        log_graph: As for Lightning's.
        default_hp_metric: As for Lightning's; in the run's folder the metric is the run's score.
        prefix: As for Lightning's.
        sub_dir: As for Lightning's.
        kwargs: Passed on to torch's SummaryWriter.

    Attributes:
        folder: The run's folder; None if `save_dir` is given.
        latest: The last logged step, and its values by tag.

    Raises:
        StorageError: The log cannot be written.
    """

    UNUSED_WITH: ClassVar = {"name": ("save_dir", (None,)), "version": ("save_dir", (None,))}

    def __init__(
        self,
        save_dir: str | Path | None = None,
        name: str | None = LIGHTNINGS_NAME,
        version: int | str | None = None,
        log_graph: bool = False,
        default_hp_metric: bool = True,
        prefix: str = "",
        sub_dir: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(save_dir or "", name, version, log_graph, default_hp_metric, prefix, sub_dir, **kwargs)
        self.in_run_folder = save_dir is None
        self.folder: RunFolder | None = None
        self.latest: tuple[int, dict[str, float]] = (-1, {})

    def place(self, folder: RunFolder, purge_step: int | None = None) -> None:
        """Makes the logger write to the run's folder.

        Args:
            folder: The run's folder.
            purge_step: First step whose earlier logs TensorBoard discards, for a resumed run.
        """
        self.folder = folder
        self._kwargs.update({} if purge_step is None else {"purge_step": purge_step})

    @property
    def name(self) -> str:
        return super().name if self.folder is None else self.folder.name

    @property
    def version(self) -> int | str:
        return super().version if self.folder is None else self.folder.version

    @property
    def root_dir(self) -> str:
        return super().root_dir if self.folder is None else str(self.folder.experiment)

    @property
    def log_dir(self) -> str:
        if self.folder is None:
            return super().log_dir
        return os.path.join(self.folder.path, self.sub_dir or "")

    @property
    def save_dir(self) -> str:
        return super().save_dir if self.folder is None else str(self.folder.path)

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        # Lightning adds the epoch to the metrics; a run under a budget has none.
        values = {tag: float(value) for tag, value in metrics.items() if tag != "epoch"}
        if step is not None:
            self.latest = (step, {**(self.latest[1] if step == self.latest[0] else {}), **values})
        self._write(super().log_metrics, values, step)

    def save(self) -> None:
        # In the run's folder config.yaml replaces hparams.yaml.
        self._write(super().save if self.folder is None else self.experiment.flush)

    def finalize(self, status: str) -> None:
        self._write(super().finalize, status)

    @property
    def experiment(self) -> Any:  # makes the file at its first call
        return self._write(lambda: super(TensorBoardLogger, self).experiment)

    def _write(self, function: Any, *args: Any) -> Any:
        try:
            return function(*args)
        except OSError as error:  # from TensorBoard's writing thread, raised by the next call
            raise StorageError(f"{self.log_dir}: the log could not be written ({error.strerror or error})") from error


class CSVLogger(loggers.CSVLogger):
    """Lightning's CSVLogger; without `save_dir` it writes to `csv/version_M` in the run's folder.

    Args:
        save_dir: As for Lightning's; default the run's folder.
        name: As for Lightning's; default `csv` in the run's folder.
        version: As for Lightning's.
        prefix: As for Lightning's.
        flush_logs_every_n_steps: As for Lightning's.
    """

    def __init__(
        self,
        save_dir: str | Path | None = None,
        name: str | None = None,
        version: int | str | None = None,
        prefix: str = "",
        flush_logs_every_n_steps: int = 100,
    ) -> None:
        if name is None:
            name = "csv" if save_dir is None else LIGHTNINGS_NAME
        super().__init__(save_dir or "", name, version, prefix, flush_logs_every_n_steps)
        self.in_run_folder = save_dir is None
        self.folder: RunFolder | None = None

    def place(self, folder: RunFolder, purge_step: int | None = None) -> None:
        """Makes the logger write to the run's folder.

        Args:
            folder: The run's folder.
            purge_step: Not used: each process of a run writes a separate file, as in Lightning.
        """
        self.folder = folder

    @property
    def save_dir(self) -> str:
        return super().save_dir if self.folder is None else str(self.folder.path)

    def _get_next_version(self) -> int:
        self._root_dir = self.save_dir  # Lightning's method searches it for earlier versions
        return super()._get_next_version()


PLACED = (TensorBoardLogger, CSVLogger)


class StepRows:
    """Passes all values of a step to a logger in one call of `log_metrics`.

    Several callbacks log in a training step, and a validation after that. Loggers that write a row for each call, such
    as CSVLogger and W&B's, would have several rows for a step. The values are kept until the next step, or until the
    end of the run (the logger's `finalize`).

    Args:
        logger: A logger of any class; only the methods of this object are replaced.
    """

    def __init__(self, logger: Logger) -> None:
        self._log_metrics, self._finalize = logger.log_metrics, logger.finalize
        self._step: int | None = None
        self._row: dict[str, float] = {}
        logger.log_metrics = self._add  # type: ignore[method-assign]
        logger.finalize = self._write_and_finalize  # type: ignore[method-assign]

    def _add(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        if step is None or step != self._step:
            self._write()
        self._step = step
        self._row.update(metrics)
        if step is None:
            self._write()

    def _write(self) -> None:
        row, self._row = self._row, {}
        if row:
            self._log_metrics(row, step=self._step)

    def _write_and_finalize(self, status: str) -> None:
        self._write()
        self._finalize(status)


def prepare(trainer: Trainer, folder: RunFolder | None, purge_step: int | None = None) -> None:
    """Sets the folders of a trainer's loggers, and makes them write one row for each step.

    Args:
        trainer: The trainer of a run that has not begun.
        folder: The run's folder; None for a run without one.
        purge_step: See `TensorBoardLogger.place`.

    Raises:
        ConfigError: Two CSVLoggers would write the same file.
    """
    _check_csv_files(trainer)
    for logger in trainer.loggers:
        if folder is not None and isinstance(logger, PLACED) and logger.in_run_folder:
            logger.place(folder, purge_step)
        if not isinstance(logger, TensorBoardLogger):  # it has no rows
            StepRows(logger)


def _check_csv_files(trainer: Trainer) -> None:
    # Without a version, each takes the next free one.
    given = [each for each in trainer.loggers if isinstance(each, loggers.CSVLogger) and each._version is not None]
    folders = [logger.log_dir for logger in given]
    for logger, folder in zip(given, folders, strict=True):
        if folders.count(folder) > 1:
            accepted = "two CSVLoggers have the same folder; accepted: another version for each, or none"
            raise ConfigError("trainer.logger.version", logger.version, accepted)
