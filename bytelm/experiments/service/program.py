"""ProgramJob: one run of a submitted program (`train_code`) as a process with limits. It is not a sandbox.

The program has an environment without the service's secrets, a temporary folder, and limits on time, memory, processes
and files. It still is a process of the same user: it can read that user's files and use the network. The program prints
its own score, as in the challenge.

| limit | enforced by |
| --- | --- |
| time, memory, processes, the size of its folder | this process, which looks at them while the program runs |
| open files, the size of a file, the end of all descendants | supervisor.py |

In the temporary folder, as in the challenge: `train.py`, which is the program, `prepare.py`, `data/train.bin` and
`data/val.bin`. The module `prepare` is also in the folder `on_path`, which is on the import path of this process only.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from shutil import rmtree
from typing import Any

import bytelm
from bytelm.data.bytes import ByteData
from bytelm.errors import ConfigError, StorageError, as_storage_error
from bytelm.experiments.job import LOG, Outcome, RunProcess, tail
from bytelm.experiments.memory_limit import LOOK_SECONDS, SEARCH_SECONDS, memory_of
from bytelm.experiments.service import supervisor
from bytelm.runs import record as records
from bytelm.runs.record import LARGEST, Record
from bytelm.system.process import utc
from bytelm.units import MEMORY_UNITS, Size, time_limit

ON_PATH = Path(__file__).with_name("on_path")
MEMORY = Size(MEMORY_UNITS["GiB"])
MOST_PROCESSES = 64
MOST_FOLDER_BYTES = 256 * 2**20
KEPT_LOG_BYTES = 2**20
CHECK_SECONDS = 10.0
OUT = "stdout.txt"
# Variables of the service that a program gets. All others, which may be secrets, are left out.
VARIABLES = ("PATH", "LANG", "LC_ALL", "LC_CTYPE", "TZ", "LD_LIBRARY_PATH", "CUDA_VISIBLE_DEVICES")
VARIABLES_OF = ("OMP_", "GOMP_", "KMP_", "MKL_", "OPENBLAS_")  # threads and their waiting

# Compiles a program in another process: the compiler can use much memory and stack on the text of a stranger.
_COMPILE = """
import json, resource, sys, warnings
warnings.simplefilter("ignore")
resource.setrlimit(resource.RLIMIT_AS, (2**30, 2**30))
try:
    compile(sys.stdin.buffer.read(), "train.py", "exec", dont_inherit=True)
except SyntaxError as error:
    print(json.dumps(f"line {error.lineno}: {error.msg}" if error.lineno else error.msg))
except (ValueError, RecursionError, MemoryError) as error:
    print(json.dumps(f"it cannot be compiled ({type(error).__name__})"))
else:
    print("null")
"""


def syntax_error(code: str) -> str | None:
    """Returns the reason why a text is not a Python program; None if it is one."""
    try:
        source = code.encode()
    except UnicodeEncodeError:
        return "it has half of a surrogate pair, which no file can have"
    command = [sys.executable, "-I", "-S", "-X", "utf8", "-c", _COMPILE]
    try:
        done = subprocess.run(command, input=source, capture_output=True, timeout=CHECK_SECONDS, env={})
        return json.loads(done.stdout)
    except (subprocess.TimeoutExpired, ValueError):  # ValueError: the process died and printed nothing
        return "it cannot be compiled"


@dataclass(frozen=True)
class Setting:
    """Settings that all programs of a match share.

    Attributes:
        data: The text, set up.
        time_budget: Seconds of training, which the program gets as TIME_BUDGET and has to keep.
        seed: The seed of all programs, fixed by the service.
    """

    data: ByteData
    time_budget: float | None
    seed: int

    @classmethod
    def of(cls, config: dict[str, Any]) -> "Setting":
        """Reads the setting from the baseline's resolved config.

        Raises:
            ConfigError: The data is not bytes, or the seed is not a number.
        """
        module, _, name = config["data"]["class_path"].rpartition(".")
        data_class = getattr(import_module(module), name)
        if not issubclass(data_class, ByteData):
            raise ConfigError("data", name, "accepted in the baseline with --protocol challenge: data of bytes")
        seed = config.get("seed_everything")
        if not isinstance(seed, int) or isinstance(seed, bool):
            accepted = "accepted in the baseline with --protocol challenge: a number, the seed of all runs"
            raise ConfigError("seed_everything", seed, accepted)
        data = data_class(**config["data"].get("init_args") or {})
        data.prepare_data()
        data.setup("fit")
        return cls(data, time_limit(config["time_budget"]["limit"]), seed)

    def write(self, folder: Path) -> None:
        """Writes the two splits to a folder."""
        folder.mkdir()
        for name, split in (("train", self.data.train_split), ("val", self.data.val_split)):
            split.contiguous().numpy().tofile(folder / f"{name}.bin")

    def environment(self, folder: Path) -> dict[str, str]:
        """Returns the environment of a program.

        Args:
            folder: Its temporary folder.
        """
        kept = {name: value for name, value in os.environ.items() if name in VARIABLES or name.startswith(VARIABLES_OF)}
        return {
            **kept,
            "HOME": str(folder),
            "TMPDIR": str(folder),
            "DATA_DIR": str(folder / "data"),
            "MAX_SEQ_LEN": str(self.data.seq_len),
            "EVAL_TOKENS": str(self.data.eval_bytes),
            "TIME_BUDGET": json.dumps(whole(self.time_budget)),
            "TORCH_SEED": str(self.seed),
            "PYTHONPATH": os.pathsep.join([str(ON_PATH), str(Path(bytelm.__file__).parents[1])]),
            "PYTHONDONTWRITEBYTECODE": "1",
            "PYTHONUNBUFFERED": "1",
        }


def whole(number: float | None) -> float | None:
    """Returns a number, as an int if it has no fraction: 180 is written as 180 and not as 180.0."""
    return int(number) if number is not None and number == int(number) else number


class ProgramJob(RunProcess):
    """Starts a program. Use it in a `with` block, which ends it.

    Args:
        code: The program.
        folder: The folder of the run, which no other run uses. The program's standard error is written there, to
            log.txt, and at the end version_0/record.json.
        setting: The text, the time and the seed.
        timeout: Seconds, from start to end.
        memory_limit: Memory of all its processes together.

    Raises:
        StorageError: A folder cannot be used.
    """

    ending_seconds = 10.0  # for the supervisor to kill the processes of the program
    timeout: float

    def __init__(self, code: str, folder: Path, setting: Setting, timeout: float, memory_limit: Size = MEMORY) -> None:
        super().__init__(folder, timeout, "program")
        self.memory_limit = memory_limit
        self._setting = setting
        self._next_look = self._next_search = 0.0
        self._pids: list[int] = []
        self._place: Path | None = None
        try:
            place = self._place = Path(tempfile.mkdtemp(prefix="bytelm-"))
            (place / "train.py").write_text(code, encoding="utf-8", newline="")
            (place / "prepare.py").write_bytes((ON_PATH / "prepare.py").read_bytes())
            setting.write(place / "data")
            self._most_bytes = _size(place) + MOST_FOLDER_BYTES  # the splits do not count
            self._started, self._clock = time.time(), time.monotonic()
            command = [sys.executable, "-I", "-S", supervisor.__file__, str(place), str(self._lifeline.descriptor)]
            with open(folder / OUT, "wb") as out:
                self.process = subprocess.Popen(
                    [*command, sys.executable, "train.py"],
                    stdin=subprocess.DEVNULL,
                    stdout=out,
                    stderr=self._log,
                    pass_fds=[self._lifeline.descriptor],
                    env=setting.environment(place),
                    start_new_session=True,
                )
        except OSError as error:
            self._lifeline.started()
            self.close()
            self._remove_place()
            raise StorageError(f"the program cannot be started ({error})") from error
        self._lifeline.started()

    def _ask_to_end(self) -> None:
        self.process.terminate()

    def tail(self, size: int = 4000) -> str:
        """The last characters of the program's standard error."""
        return tail(self.log, size)

    def wait(self) -> Outcome:
        """Waits for the end, enforces the limits, and writes the record.

        Raises:
            StorageError: The record cannot be written.
        """
        while (exit_status := self.process.poll()) is None:
            self._check_limits()
            time.sleep(LOOK_SECONDS / 2)
        supervisor.send(signal.SIGKILL, self._pids)  # none are left, unless the program has killed its supervisor
        self._remove_place()
        return self._outcome(exit_status)

    def _check_limits(self) -> None:
        now = time.monotonic()
        if now > self._kill_at:
            self.process.kill()
        if self._ended_by is not None or now < self._next_look:
            return
        self._next_look = now + LOOK_SECONDS
        if self.elapsed > self.timeout:
            return self.end("timeout", f"not done after {self.timeout:g} s")
        if now >= self._next_search:
            self._next_search = now + SEARCH_SECONDS
            self._pids = supervisor.descendants(self.process.pid)
            if len(self._pids) > MOST_PROCESSES:
                return self.end("error", f"it had more than {MOST_PROCESSES} processes, the limit of a run here")
            if _size(self._place) > self._most_bytes:
                limit = Size(MOST_FOLDER_BYTES)
                return self.end("error", f"its files had more than {limit}, the limit of a run here")
        if memory_of(self._pids) > self.memory_limit.bytes:
            self.end("error", f"it used more than {self.memory_limit} of memory, the limit of a run here")

    def _outcome(self, exit_status: int) -> Outcome:
        seconds = self.elapsed
        result, why_none = read_result(_end_of(self.folder / OUT, 10 * KEPT_LOG_BYTES))
        status, reason = "completed", None
        if self._ended_by is not None:
            status, reason = self._ended_by, self._end_reason
        elif result is None and exit_status:
            last = next((line for line in reversed(self.tail().splitlines()) if line.strip()), "")
            status, reason = "error", f"ended with exit status {exit_status}" + (f": {last.strip()}" if last else "")
        elif result is None:
            status, reason = "error", why_none
        record: Record = {
            "status": status,
            "reason": reason,
            **((result or {}) if status == "completed" else {}),  # type: ignore[typeddict-item]
            "total_time_secs": round(seconds, 3),
            "started_at": utc(self._started),
            "ended_at": utc(time.time()),
            "seed": self._setting.seed,
            "corpus": self._setting.data.corpus_record(),
            "run": str(self.folder / "version_0"),
        }
        with as_storage_error(f"{self.folder}: its record cannot be written"):
            for name in (LOG, OUT):
                _shorten(self.folder / name)
            records.write(self.folder / "version_0", record)
        return Outcome(status, reason, self.folder / "version_0", record, exit_status)

    def _remove_place(self) -> None:
        if self._place is not None:  # the supervisor has removed it, unless it was killed
            rmtree(self._place, ignore_errors=True)


def read_result(printed: str) -> tuple[dict[str, Any] | None, str]:
    """Reads the result that a program has printed: the last line that is a JSON object with `val_bpb`.

    Args:
        printed: Its standard output.

    Returns:
        The values that a record has, or None and the reason.
    """
    for line in reversed(printed.splitlines()):
        try:
            found = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(found, dict) and "val_bpb" in found:
            if _number(found["val_bpb"]) is None:
                return None, f"the program printed no number as val_bpb: {json.dumps(found['val_bpb'])[:80]}"
            steps = _number(found.get("total_steps"))
            names = ("val_bpb", "train_loss", "num_params_M", "training_time_secs")
            result: dict[str, Any] = {name: _number(found.get(name)) for name in names}
            result["total_steps"] = None if steps is None else int(steps)
            return {name: value for name, value in result.items() if value is not None}, ""
    return None, "the program printed no JSON object with val_bpb on a line of its standard output"


def _number(value: Any) -> float | None:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return value if is_number and abs(value) <= LARGEST else None  # NaN is not less either


def _size(folder: Path | None) -> int:
    """The size of all files in a folder; files that disappear meanwhile have none."""
    total = 0
    for parent, _, names in os.walk(folder) if folder is not None else ():
        for name in names:
            with suppress(OSError):
                total += os.lstat(os.path.join(parent, name)).st_blocks * 512
    return total


def _end_of(file: Path, size: int) -> str:
    with suppress(FileNotFoundError), open(file, "rb") as opened:
        opened.seek(max(0, file.stat().st_size - size))
        return opened.read().decode(errors="replace")
    return ""


def _shorten(file: Path) -> None:
    """Keeps only the end of a long file: the logs of 50 runs would fill the disk."""
    if file.stat().st_size > KEPT_LOG_BYTES:
        text = file.read_bytes()[-KEPT_LOG_BYTES:]
        file.write_bytes(text)
