"""The run's folder: runs/<experiment>/version_N, one for each run, also when several start at the same moment.

`--ckpt_path last` goes on in the folder of the newest run, so that TensorBoard shows one curve. A lock keeps a second
process out of it as long as the first one lives.
"""

import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from bytelm.errors import StorageError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

RUNS = "runs"


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
            # Other ranks are told the folder by rank 0; what they would claim is not used.
            self._claimed = self._claim() if rank_zero_only.rank == 0 else self._resumed or 0  # type: ignore[attr-defined]
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

    def _claim(self) -> int:
        if self._resumed is not None:
            self._lock = _lock_run(Path(self.root_dir, f"version_{self._resumed}"))
            return self._resumed
        root = Path(self.root_dir)
        try:
            root.mkdir(parents=True, exist_ok=True)
            version = max(_versions(root), default=-1) + 1
            while True:
                try:
                    (root / f"version_{version}").mkdir()
                    break
                except FileExistsError:
                    version += 1
        except OSError as error:
            raise StorageError(
                f"runs: {str(root)!r} cannot be used; the run's folder cannot be made there: {error}"
            ) from error
        self._lock = _lock_run(root / f"version_{version}")
        return version


def newest_checkpoint(experiment: str, name: str = "last", root: str = RUNS) -> Path | None:
    """The checkpoint of an experiment's newest run that has one.

    Args:
        experiment: Name of the experiment.
        name: `last` or `best`.
        root: Folder of all experiments.
    """
    folder = Path(root, experiment)
    found = [folder / f"version_{version}" / "checkpoints" / f"{name}.ckpt" for version in sorted(_versions(folder))]
    return next((path for path in reversed(found) if path.is_file()), None)


def newest_run(experiment: Path) -> Path | None:
    """The folder of an experiment's newest run.

    Args:
        experiment: Folder of the experiment.
    """
    versions = _versions(experiment)
    return experiment / f"version_{max(versions)}" if versions else None


def version_of(checkpoint: Path) -> int:
    """The version whose folder a path from `newest_checkpoint` is in."""
    return int(checkpoint.parent.parent.name.removeprefix("version_"))


def _versions(folder: Path) -> list[int]:
    taken = [path.name.removeprefix("version_") for path in folder.glob("version_*")]
    return [int(number) for number in taken if number.isdecimal()]


def is_running(run: Path) -> bool:
    """Whether a process is at work in a run's folder."""
    return not is_free(run / ".lock")


def is_free(file: Path) -> bool:
    """Whether no process has locked a file; so it is where there is none."""
    try:
        descriptor = os.open(file, os.O_RDWR)
    except FileNotFoundError:
        return True
    try:
        return lock(descriptor, shared=True)  # so that two who ask at the same moment take none of them for a run
    finally:
        os.close(descriptor)


def lock(file: int, shared: bool = False) -> bool:
    """Keeps other processes from locking a file, until all that this process and its children hold of it is closed.

    Args:
        file: Its descriptor.
        shared: Whether others may have it locked, too, if they share it as well.

    Returns:
        Whether no other process has it locked; true also where the system has no locks.
    """
    if fcntl is None:
        return True
    for seconds in (0.05, 0.0):  # twice, as somebody may be asking whether it is free
        try:
            fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            time.sleep(0.0 if shared else seconds)
        except OSError:
            return True  # a file system without locks
    return False


def _lock_run(folder: Path) -> int:
    """Keeps other processes out of a run's folder until this one ends, in whatever way."""
    file = os.open(folder / ".lock", os.O_CREAT | os.O_RDWR, 0o644)
    if not lock(file):
        os.close(file)
        raise StorageError(f"{folder}: another process is at work on this run")
    return file
