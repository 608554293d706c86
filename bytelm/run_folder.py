"""The run's folder: runs/<experiment>/version_N, one for each run, also when several start at the same moment."""

import os
from collections.abc import Mapping
from pathlib import Path

from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from bytelm.errors import StorageError


class RunLogger(TensorBoardLogger):
    """TensorBoardLogger that claims its version by making the folder, which only one process can.

    Lightning's own looks for the highest number and takes the next, so that two runs that start together share a
    folder. The claim is made when the folder is first asked for: a run refused before that leaves nothing behind.

    Args:
        root: Folder of all experiments.
        experiment: Name of this one.

    Raises:
        StorageError: The folder cannot be made.
    """

    def __init__(self, root: str, experiment: str) -> None:
        super().__init__(os.path.expandvars(Path(root).expanduser()), name=experiment, default_hp_metric=False)
        self._claimed: int | None = None

    @property
    def version(self) -> int:
        if self._claimed is None:
            # Other ranks are told the folder by rank 0; what they would claim is not used.
            self._claimed = self._claim() if rank_zero_only.rank == 0 else 0  # type: ignore[attr-defined]
        return self._claimed

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        # Lightning adds the epoch to what it logs; a budgeted run has none.
        super().log_metrics({tag: value for tag, value in metrics.items() if tag != "epoch"}, step)

    def save(self) -> None:
        self.experiment.flush()  # and no hparams.yaml beside config.yaml

    def _claim(self) -> int:
        root = Path(self.root_dir)
        try:
            root.mkdir(parents=True, exist_ok=True)
            taken = [path.name.removeprefix("version_") for path in root.glob("version_*")]
            version = max((int(number) for number in taken if number.isdecimal()), default=-1) + 1
            while True:
                try:
                    (root / f"version_{version}").mkdir()
                    return version
                except FileExistsError:
                    version += 1
        except OSError as error:
            raise StorageError(
                f"runs: {str(root)!r} cannot be used; the run's folder cannot be made there: {error}"
            ) from error
