"""record.json: the settings and results of a run. This module defines its keys, writes it and reads it.

A run writes its record when it ends (callbacks/run_record.py). If a run was killed or never began, the command that
notices it writes the known values, with the functions below.
"""

import json
import signal
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal, TypedDict, get_args, get_origin, get_type_hints, is_typeddict

from bytelm.errors import Diverged, Interrupted, StorageError, run_error
from bytelm.system.files import write_text
from bytelm.system.process import utc

FILE = "record.json"
LARGEST = 1e300  # of numbers; larger whole numbers do not fit into a float

Status = Literal["completed", "error", "diverged", "interrupted", "timeout", "pruned", "running"]


class Corpus(TypedDict, total=False):
    """The text that a run was trained on; data of the user can add keys."""

    name: str
    sha256: str  # identifies the text
    bytes: int  # size, for text that is read as bytes
    tokens: dict[str, int]  # size by split, for text in shards of tokens


class Git(TypedDict, total=False):
    """The repository that a run was started in."""

    commit: str
    dirty: bool  # whether files of it were changed; further files are no changes


class Versions(TypedDict, total=False):
    """Versions of the software."""

    python: str
    torch: str
    lightning: str
    bytelm: str


class InitFrom(TypedDict, total=False):
    """The initial weights of a run."""

    path: str
    sha256: str


class Record(TypedDict, total=False):
    """The keys of record.json. Only `status` and `ended_at` are always present; null stands for an unknown value.

    For a resumed run, steps, tokens, training time and wall_time_secs are those of the whole run; started_at,
    total_time_secs, startup_time_secs and the memory are those of its last process.
    """

    status: Status  # `running` is never in a file
    reason: str | None  # why it was not completed
    limit: str  # limits of the budget, as in `time_budget.limit`
    val_bpb: float | None  # final validation, bits per byte of text
    val_loss: float | None  # the same in nats per token
    train_loss: float | None  # of the last step, in nats per token
    total_steps: int
    progress: float  # used share of the budget, 0 to 1
    training_time_secs: float  # by the budget's clock: training steps only
    total_time_secs: float | None  # from the start of the process to its end
    wall_time_secs: float  # of all processes of the run that left a record, if there were several
    startup_time_secs: float | None  # from the start of the process to that of the budget's clock
    num_params_M: float  # parameters, in millions
    tokens_per_sec: float | None
    mfu: float | None  # share of the devices' peak FLOP/s, where that is known
    tokens_seen: int | None
    total_flops: int | None  # FLOPs of training by all ranks, as for mfu
    peak_memory_mb: float | None  # of the process
    peak_device_memory_mb: float  # of its GPU
    started_at: str  # ISO 8601, UTC
    ended_at: str | None
    seed: int | None
    device: str
    strategy: str
    world_size: int
    precision: str
    corpus: Corpus | None
    init_from: InitFrom | None  # null where the weights were initialised
    code: dict[str, str]  # the user's own files that the config uses, by path, each with a part of its SHA-256
    git: Git | None
    versions: Versions
    checkpoint: str | None  # path of last.ckpt
    run: str | None  # the run's folder


def read(folder: Path) -> Record:
    """The record of a run.

    Args:
        folder: The run's folder.

    Raises:
        StorageError: There is none, or it is damaged; the message names the file.
    """
    file = folder / FILE
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
        check(record)
    except OSError as error:
        raise StorageError(f"{file} cannot be read: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:  # JSON that is damaged, is nested too deeply, or is not a record
        raise StorageError(f"{file} is damaged: {' '.join(str(error).split())}") from error
    return record


def write(folder: Path, record: Record) -> None:
    """Writes a run's record atomically.

    Args:
        folder: The run's folder; created if it does not exist.
        record: Its contents.

    Raises:
        OSError: It cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / FILE, json.dumps(record, indent=2) + "\n")


def check(record: Any) -> None:
    """Checks the types of a record. Keys can be missing; unknown keys are not checked.

    Raises:
        ValueError: A type is wrong; the message names the key.
    """
    if not isinstance(record, dict):
        raise ValueError("it is not an object with keys")
    if not isinstance(record.get("status"), str):
        raise ValueError("it has no status")
    for key, hint in get_type_hints(Record).items():
        if key != "status" and record.get(key) is not None and not _is(record[key], hint):
            raise ValueError(f"{key}: {json.dumps(record[key])[:80]} is not of its type")


def wall_time(record: Mapping[str, Any]) -> float:
    """Time of all processes of a run, in seconds."""
    return record.get("wall_time_secs") or record.get("total_time_secs") or 0.0


# Runs that were not completed


def failed(record: Record, error: BaseException) -> Record:
    """The record of a run that ended with an error.

    Args:
        record: The known values.
        error: The error, as it was raised.
    """
    cause = run_error(error) or error
    status: Status = "interrupted" if isinstance(cause, Interrupted | KeyboardInterrupt) else "error"
    status = "diverged" if isinstance(cause, Diverged) else status
    return {**record, "status": status, "reason": str(cause) or type(cause).__name__}


def of_process(
    left: Record | None,
    earlier: Record | None,
    exit_status: int,
    message: str | None,
    asked: Status | None,
    why: str | None,
    started_at: float,
    seconds: float,
) -> Record:
    """The record of a run whose process has ended.

    Args:
        left: The record that the process left; None if it left none.
        earlier: The record of an earlier process of the same run, if there was one.
        exit_status: Exit status of the process, as in subprocess.
        message: Its last error message.
        asked: The status with which it was asked to end; None if it ended by itself.
        why: The reason of that request.
        started_at: Start of the process, in seconds since 1970.
        seconds: Duration of the process.
    """
    took: Record = {"total_time_secs": round(seconds, 3)}
    reason: str | None = message or f"ended with exit status {exit_status}"
    record: Record
    if left is not None:
        record = {**took, **left}
        reason, status = left.get("reason") or reason, left["status"]
    else:
        if exit_status < 0:
            reason = f"killed by {signal.Signals(-exit_status).name}"
        record = {**(earlier or {}), **took, "started_at": utc(started_at), "ended_at": utc(time.time())}
        status = "error"
    if exit_status == 0:
        status, reason = "completed", None
    elif asked is not None:
        status, reason = asked, why or reason
    record |= {"status": status, "reason": reason}
    if earlier is not None and (before := wall_time(earlier)):
        record["wall_time_secs"] = round(before + seconds, 3)
    return record


def of_lost_run(folder: Path, config: Mapping[str, Any]) -> Record:
    """The record of a run that wrote none: its process was killed, or the machine failed.

    Args:
        folder: The run's folder, with its config.yaml.
        config: Its contents.
    """
    started = (folder / "config.yaml").stat().st_mtime
    ended = folder.stat().st_mtime
    for path in folder.iterdir():
        with suppress(FileNotFoundError):  # a file that another process has just renamed
            ended = max(ended, path.lstat().st_mtime)
    return {
        "status": "interrupted",
        "reason": "it left no record",
        "ended_at": utc(ended),
        "started_at": utc(started),
        "total_time_secs": round(ended - started, 3),
        "seed": config.get("seed_everything"),
    }


def of_unstarted_run(status: Status, reason: str | None, accepted_at: float) -> Record:
    """The record of a run that was accepted and never began.

    Args:
        status: Its status.
        reason: The reason.
        accepted_at: Time of acceptance, in seconds since 1970.
    """
    return {"status": status, "reason": reason, "started_at": utc(accepted_at), "ended_at": utc(accepted_at)}


def of_running(record: Record | None, started_at: float | None) -> Record:
    """The record that is shown for a running run.

    Args:
        record: The record of an earlier process of the run, if there was one.
        started_at: Time at which this process wrote its config, in seconds since 1970; None if it has not.
    """
    seconds = None if started_at is None else round(time.time() - started_at, 3)
    return {**(record or {}), "status": "running", "reason": None, "ended_at": None, "total_time_secs": seconds}


def _is(value: Any, hint: Any) -> bool:
    """Whether a value of a JSON file has the type of a key's annotation."""
    if is_typeddict(hint):
        inner = get_type_hints(hint)
        return isinstance(value, dict) and all(value.get(key) is None or _is(value[key], inner[key]) for key in inner)
    if get_origin(hint) is Literal:
        return isinstance(value, str)
    if get_origin(hint) is dict:
        return isinstance(value, dict) and all(_is(inner, get_args(hint)[1]) for inner in value.values())
    if arguments := get_args(hint):
        return any(_is(value, argument) for argument in arguments)
    if hint in (int, float):
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        return is_number and (isinstance(value, float) or abs(value) <= LARGEST)
    return isinstance(value, hint)
