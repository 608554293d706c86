"""RunLogger: TensorBoard's logs in the run's folder."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import TensorBoardLogger

from bytelm.errors import StorageError
from bytelm.runs.folder import claim
from bytelm.system.process import is_rank_zero


class RunLogger(TensorBoardLogger):
    """TensorBoardLogger that claims its version by making the folder, which only one process can.

    Lightning's own looks for the highest number and takes the next, so that two runs that start together share a
    folder. The claim is made when the folder is first asked for: a run refused before that leaves nothing behind.

    Args:
        root: Folder of all experiments.
        experiment: Name of this one.
        resumed: Number of the version to go on in; default a new one.
        kwargs: Passed on to torch's SummaryWriter, such as `purge_step`: TensorBoard forgets what was logged from that
            step on, before the run was cut.

    Attributes:
        latest: The last step that was logged, and its values by tag.

    Raises:
        StorageError: The folder cannot be made, or another process is at work in it.
    """

    def __init__(self, root: str, experiment: str, resumed: int | None = None, **kwargs: Any) -> None:
        folder = os.path.expandvars(Path(root).expanduser())
        super().__init__(folder, name=experiment, default_hp_metric=False, **kwargs)
        self.latest: tuple[int, dict[str, float]] = (-1, {})
        self._resumed = resumed
        self._claimed: int | None = None
        self._lock: int | None = None

    @property
    def version(self) -> int:
        if self._claimed is None:
            if is_rank_zero():
                self._claimed, self._lock = claim(Path(self.root_dir), self._resumed)
            else:  # other ranks get the folder from rank 0; what they would claim is not used
                self._claimed = self._resumed or 0
        return self._claimed

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        # Lightning adds the epoch to what it logs; a budgeted run has none.
        values = {tag: float(value) for tag, value in metrics.items() if tag != "epoch"}
        if step is not None:
            self.latest = (step, {**(self.latest[1] if step == self.latest[0] else {}), **values})
        self._write(super().log_metrics, values, step)

    def save(self) -> None:
        self._write(self.experiment.flush)  # and no hparams.yaml beside config.yaml

    def finalize(self, status: str) -> None:
        self._write(super().finalize, status)
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _write(self, function: Any, *args: Any) -> None:
        try:
            function(*args)
        except OSError as error:  # of TensorBoard's writing thread, handed on by the next call
            raise StorageError(f"{self.log_dir}: the log could not be written ({error.strerror or error})") from error
