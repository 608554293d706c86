"""record.json: what a run was and what it came to. Its keys, the one place that writes it, and the one that reads it.

A run writes its record when it ends (callbacks/run_record.py). Of a run that could not, because it was killed or never
began, whoever notices states what is known, with the functions below.
"""

import json
import signal
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, TypedDict, get_args, get_origin, get_type_hints, is_typeddict

from bytelm.errors import Diverged, Interrupted, StorageError, run_error
from bytelm.system.files import replacing
from bytelm.system.process import utc

FILE = "record.json"
LARGEST = 1e300  # of numbers; larger whole numbers do not fit into a float

Status = Literal["completed", "error", "diverged", "interrupted", "timeout", "running"]


class Corpus(TypedDict, total=False):
    """The text that a run was trained on; data of the user's own may add keys."""

    name: str
    sha256: str  # tells texts apart
    bytes: int  # of text that is read as bytes
    tokens: dict[str, int]  # by split, of text that was turned into tokens beforehand


class Git(TypedDict, total=False):
    """The repository that a run was started in."""

    commit: str
    dirty: bool  # whether it had changes


class Versions(TypedDict, total=False):
    """What a run was trained with."""

    python: str
    torch: str
    lightning: str
    bytelm: str


class InitFrom(TypedDict, total=False):
    """The weights that a run began with."""

    path: str
    sha256: str


class Record(TypedDict, total=False):
    """The keys of record.json. Only `status` and `ended_at` are always there; null stands for what is not known.

    Of a run that was resumed, steps, tokens and training time are those of the whole run; started_at, total_time_secs,
    startup_time_secs and the memory are those of its last process.
    """

    status: Status  # `running` is never in a file
    reason: str | None  # why it was not completed
    val_bpb: float | None  # final validation, bits per byte of text
    val_loss: float | None  # the same in nats per token
    train_loss: float | None  # of the last step, in nats per token
    total_steps: int
    training_time_secs: float  # by the budget's clock: training steps only
    total_time_secs: float | None  # from the start of the process to its end
    wall_time_secs: float  # of all processes that the run took, if there were several
    startup_time_secs: float | None  # from the start of the process to that of the budget's clock
    num_params_M: float  # parameters, in millions
    tokens_per_sec: float | None
    mfu: float | None  # share of the devices' peak FLOP/s, where that is known
    tokens_seen: int
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
    except (ValueError, RecursionError) as error:  # JSON that is damaged, is nested too deeply, or is no record
        raise StorageError(f"{file} is damaged: {' '.join(str(error).split())}") from error
    return record


def write(folder: Path, record: Record) -> None:
    """Writes a run's record, whole or not at all.

    Args:
        folder: The run's folder; made where it does not exist.
        record: Its contents.

    Raises:
        OSError: It cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with replacing(folder / FILE) as partial:
        partial.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def check(record: Any) -> None:
    """Checks that a value is a record: its keys may be absent, but are of their types. Other keys are left alone.

    Raises:
        ValueError: It is not; the message names the key.
    """
    if not isinstance(record, dict):
        raise ValueError("it is no object of keys and values")
    if not isinstance(record.get("status"), str):
        raise ValueError("it has no status")
    for key, hint in get_type_hints(Record).items():
        if key != "status" and record.get(key) is not None and not _is(record[key], hint):
            raise ValueError(f"{key}: {json.dumps(record[key])[:80]} is not of its type")


def wall_time(record: Mapping[str, Any]) -> float:
    """Seconds that a run has taken, over all processes that it took."""
    return record.get("wall_time_secs") or record.get("total_time_secs") or 0.0


# Runs that were not completed


def failed(record: Record, error: BaseException) -> Record:
    """The record of a run that an error has ended.

    Args:
        record: What is known of the run.
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
        earlier: That of an earlier process of the same run, if there was one.
        exit_status: Of the process, as subprocess gives it.
        message: Its last error message.
        asked: What it was asked to end as; None if it ended by itself.
        why: Why it was asked to.
        started_at: When it started, in seconds since 1970.
        seconds: How long it took.
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
    """The record of a run that left none: its process was killed, or the machine went down.

    Args:
        folder: The run's folder, with its config.yaml.
        config: What that says.
    """
    started = (folder / "config.yaml").stat().st_mtime
    ended = max(path.lstat().st_mtime for path in [folder, *folder.iterdir()])
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
        status: What became of it.
        reason: Why.
        accepted_at: When it was accepted, in seconds since 1970.
    """
    return {"status": status, "reason": reason, "started_at": utc(accepted_at), "ended_at": utc(accepted_at)}


def of_running(record: Record | None, started_at: float | None) -> Record:
    """What is shown of a run that is under way.

    Args:
        record: That of an earlier process of the run, if there was one.
        started_at: When this process wrote its config, in seconds since 1970; None if it has not.
    """
    seconds = None if started_at is None else round(time.time() - started_at, 3)
    return {**(record or {}), "status": "running", "reason": None, "ended_at": None, "total_time_secs": seconds}


def _is(value: Any, hint: Any) -> bool:
    """Whether a value of a JSON file is of the type that a key is annotated with."""
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
