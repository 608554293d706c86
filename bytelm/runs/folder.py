"""The run's folder: runs/<experiment>/version_N, one for each run, also when several start at the same moment.

`--ckpt_path last` goes on in the folder of the newest run, so that TensorBoard shows one curve. A lock keeps a second
process out of it as long as the first one lives.
"""

import os
import time
from pathlib import Path

from bytelm.errors import StorageError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

RUNS = "runs"


def claim(experiment: Path, version: int | None = None) -> tuple[int, int]:
    """Takes possession of a run's folder, as long as this process lives.

    Args:
        experiment: Folder of the experiment; made where it does not exist.
        version: Number of the run to go on with; default a new one.

    Returns:
        The version, and the descriptor of the lock's file: closing it gives the folder back.

    Raises:
        StorageError: The folder cannot be made, or another process is at work in it.
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
            except FileExistsError:  # of another run that has started at the same moment
                version += 1
    except OSError as error:
        raise StorageError(
            f"runs: {str(experiment)!r} cannot be used; the run's folder cannot be made there: {error}"
        ) from error
    return version, _lock_run(experiment / f"version_{version}")


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
