"""The run's folder: `runs/<experiment>/version_N`, a separate one for each run, even if several start together.

It contains config.yaml, record.json, checkpoints and predictions, with any logger. `runs` is in
`trainer.default_root_dir` if that is given, else in the working directory. `--ckpt_path last` resumes in the folder of
the newest run; TensorBoard then shows one curve. A lock keeps other processes out of the folder while one uses it.
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bytelm.errors import ConfigError, StorageError
from bytelm.system.locks import is_free, lock
from bytelm.system.process import is_rank_zero

RUNS = "runs"
CONFIG = "config.yaml"
CHECKPOINTS = "checkpoints"


class RunFolder:
    """The folder of a run. Rank 0 claims it at the first access; a run that is rejected earlier has none.

    Args:
        experiment: Folder of the experiment, such as runs/rope.
        version: Number of the run to resume; default a new one.
        name: Name of the experiment.
    """

    def __init__(self, experiment: Path, version: int | None = None, name: str | None = None) -> None:
        self.experiment = experiment
        self.name = name or experiment.name
        self._version = version
        self._path: Path | None = None
        self._lock: int | None = None

    @classmethod
    def inside(cls, run: Path, inner: str, name: str | None = None) -> "RunFolder":
        """A folder inside that of a run that is not resumed. It is not claimed.

        Args:
            run: The run's folder.
            inner: Name of the folder in it.
            name: Name of the experiment.
        """
        folder = cls(run.parent, number_of(run), name)
        folder._path = run / inner
        return folder

    @property
    def path(self) -> Path:
        """The folder. Ranks other than 0 know it after `share`; before, they get a guess and write nothing to it.

        Raises:
            StorageError: It cannot be created, or another process uses it.
        """
        if self._path is not None:
            return self._path
        if not is_rank_zero():
            return self.experiment / f"version_{self._version or 0}"
        self._version, self._lock = claim(self.experiment, self._version)
        self._path = self.experiment / f"version_{self._version}"
        return self._path

    @property
    def is_claimed(self) -> bool:
        """Whether the folder is known: on rank 0, whether it exists."""
        return self._path is not None

    @property
    def version(self) -> int:
        """Number of the run."""
        assert self.path is not None  # claims the folder
        return self._version or 0

    def share(self, broadcast: Callable[[Any], Any]) -> None:
        """Sends the folder of rank 0 to all ranks. Called on all ranks.

        Args:
            broadcast: Returns rank 0's value on all ranks, like a strategy's broadcast.
        """
        path, self._version = broadcast((str(self.path), self.version))
        self._path = Path(path)

    def release(self) -> None:
        """Lets other processes resume the run."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


def runs_root(default_root_dir: str | os.PathLike[str] | None) -> Path:
    """Folder of all experiments.

    Args:
        default_root_dir: The trainer's option.

    Raises:
        ConfigError: It is a URL instead of a local folder.
    """
    if default_root_dir is None:
        return Path(RUNS)
    if "://" in str(default_root_dir):
        raise ConfigError("trainer.default_root_dir", str(default_root_dir), "accepted: a folder of this machine")
    return Path(default_root_dir).expanduser() / RUNS


def run_of(file: Path) -> Path | None:
    """The folder of the run that a config.yaml or a checkpoint belongs to; None if it belongs to no run.

    Args:
        file: runs/x/version_0/config.yaml, or a file in runs/x/version_0/checkpoints.
    """
    folder = file.parent.parent if file.parent.name == CHECKPOINTS else file.parent
    is_run = folder.name.removeprefix("version_").isdecimal() and folder.name.startswith("version_")
    belongs = file.parent.name == CHECKPOINTS or file.name == CONFIG
    return folder if is_run and belongs and folder.is_dir() else None


def name_in_runs(folder: Path) -> str:
    """The path of an experiment's or a study's folder from `runs`; for `runs` itself and folders elsewhere, their name.

    Args:
        folder: runs/x, or runs/x/y.
    """
    parts = folder.parts
    below = parts[len(parts) - parts[::-1].index(RUNS) :] if RUNS in parts else ()
    return str(Path(*below)) if below else folder.name


def claim(experiment: Path, version: int | None = None) -> tuple[int, int]:
    """Claims a run's folder for the life of this process.

    Args:
        experiment: Folder of the experiment; created if it does not exist.
        version: Number of the run to resume; default a new one.

    Returns:
        The version, and the descriptor of the lock file; closing it releases the folder.

    Raises:
        StorageError: The folder cannot be created, or another process uses it.
    """
    if version is not None:
        return version, _lock_run(experiment / f"version_{version}")
    try:
        experiment.mkdir(parents=True, exist_ok=True)
        version = max(_versions(experiment), default=-1) + 1
        while True:
            try:
                (experiment / f"version_{version}").mkdir()
                break
            except FileExistsError:  # another run has started at the same time
                version += 1
    except OSError as error:
        above = [os.fspath(folder) for folder in (experiment, *experiment.parents)]
        file = next((path for path in above if os.path.exists(path) and not os.path.isdir(path)), None)
        reason = error.strerror if file is None else f"{file} is not a folder"
        accepted = "accepted: a --trainer.default_root_dir that can be written to"
        raise StorageError(f"the run's folder {str(experiment)!r} cannot be created ({reason}); {accepted}") from error
    return version, _lock_run(experiment / f"version_{version}")


def newest_checkpoint(experiment: str, name: str = "last", root: str = RUNS) -> Path | None:
    """The checkpoint of an experiment's newest run with such a checkpoint.

    Args:
        experiment: Name of the experiment.
        name: `last` or `best`.
        root: Folder of all experiments.
    """
    folder = Path(root, experiment)
    found = [checkpoint_of(folder / f"version_{version}", name) for version in sorted(_versions(folder), reverse=True)]
    return next((path for path in found if path.is_file()), None)


def checkpoint_of(run: Path, name: str) -> Path:
    """The file of a run's checkpoint `last` or `best`."""
    return run / CHECKPOINTS / f"{name}.ckpt"


def newest_run(experiment: Path) -> Path | None:
    """The folder of an experiment's newest run.

    Args:
        experiment: Folder of the experiment.
    """
    versions = _versions(experiment)
    return experiment / f"version_{max(versions)}" if versions else None


def number_of(run: Path) -> int:
    """The number in the name of a run's folder."""
    return int(run.name.removeprefix("version_"))


def _versions(folder: Path) -> list[int]:
    taken = [path.name.removeprefix("version_") for path in folder.glob("version_*")]
    return [int(number) for number in taken if number.isdecimal()]


def is_running(run: Path) -> bool:
    """Whether a process uses a run's folder."""
    return not is_free(run / ".lock")


def _lock_run(folder: Path) -> int:
    """Keeps other processes out of a run's folder until this one ends."""
    file = os.open(folder / ".lock", os.O_CREAT | os.O_RDWR, 0o644)
    if not lock(file):
        os.close(file)
        raise StorageError(f"{folder}: another process works on this run")
    return file
