"""Runs cells as programs, and judges the results."""

import importlib.util
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from bytelm.errors import ConfigError
from lightning_cells.cell import NOTE, Cell, Run

SCRIPTS = Path(__file__).resolve().parents[1]
sys.path.append(str(SCRIPTS.parent / "tests"))
import programs  # type: ignore[import-not-found]  # noqa: E402  (programs that start within milliseconds)

# An epoch is 8 batches, and a validation 3.
CONFIG = """
model:
  gpt: {d_model: 16, n_heads: 2, n_layers: 1, d_ff: 32, max_seq_len: 32}
  optimizer: {class_path: AdamW, init_args: {lr: 3e-3}}
data:
  class_path: Bytes
  init_args: {path: corpus.txt, batch_size: 4, seq_len: 32, train_fraction: 0.64, eval_bytes: 384}
trainer:
  accelerator: cpu
  devices: 1
  log_every_n_steps: 1
time_budget: {limit: 6 steps}
samples: {max_new_tokens: 4}
"""
CORPUS_BYTES = 1600
EPOCH, VALIDATION = 8, 3  # batches
ENVIRONMENT = {"WANDB_MODE": "offline", "MLFLOW_ALLOW_FILE_STORE": "true"}
OBSERVED = "--trainer.callbacks+=lightning_cells.observer.Observer"
ERROR = "bytelm: error: "


@dataclass(frozen=True)
class Result:
    """The result of a cell.

    Attributes:
        outcome: `works`, `rejected`, `needs …`, or a fault: `ignored`, `traceback`, `hangs`, `fails`.
        line: The message of a rejection; of a fault, what was seen.
    """

    outcome: str
    line: str = ""

    @property
    def is_fault(self) -> bool:
        """Whether the cell is neither rejected in one line nor behaves as Lightning documents."""
        return self.outcome not in ("works", "rejected") and not self.outcome.startswith("needs ")


class Bench:
    """Runs cells, each in its own folder.

    Args:
        folder: Where the folders are made.
        timeout: Seconds after which a run hangs.
    """

    def __init__(self, folder: Path, timeout: float = 60.0) -> None:
        self.folder = folder
        self.timeout = timeout
        self._lock = threading.RLock()
        self._made = 0
        self._plain: dict[tuple[str, ...], Run] = {}

    def run(self, cell: Cell) -> Result:
        """Runs a cell."""
        given = (*cell.options, *cell.more)
        run = self._run(cell.command, (OBSERVED, *given) if cell.observed else given, lambda: self.plain(cell.more))
        return self.judge(cell, run)

    def plain(self, options: tuple[str, ...]) -> Run:
        """A run without the options that a cell tests, made once.

        Args:
            options: The other options of the cell.
        """
        with self._lock:
            if options not in self._plain:
                self._plain[options] = self._run("fit", (OBSERVED, *options))
            return self._plain[options]

    def _run(self, command: str, options: tuple[str, ...], plain: Callable[[], Run] | None = None) -> Run:
        with self._lock:
            self._made += 1
            folder = self.folder / f"cell-{self._made}"
        folder.mkdir()
        words = "to be or not that is the question whether nobler in the mind to suffer slings and arrows "
        text = " ".join(word[i % len(word) :] for i in range(60) for word in words.split())  # no two rows are the same
        (folder / "corpus.txt").write_text(text[:CORPUS_BYTES])
        (folder / "tiny.yaml").write_text(CONFIG)
        if command != "fit":
            shutil.copytree(self.plain(()).folder / "runs", folder / "runs")
        return self._program(folder, command, options, plain or (lambda: self.plain(options[1:])))

    def _program(self, folder: Path, command: str, options: tuple[str, ...], plain: Callable[[], Run]) -> Run:
        paths = os.pathsep.join([str(SCRIPTS.parent), str(SCRIPTS)])
        with programs.Program(
            [sys.executable, "-m", "bytelm", command, "--config", "tiny.yaml", *options],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            stdin=subprocess.DEVNULL,
            text=True,
            cwd=folder,
            env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1", **ENVIRONMENT},
            start_new_session=True,
        ) as process:
            status: int | None
            try:
                out, err = process.communicate(timeout=self.timeout)
                status = process.returncode
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                out, err = process.communicate()
                status = None

        def again(command: str, *options: str) -> Run:
            for file in folder.glob("seen-*.json"):
                file.unlink()
            return self._program(folder, command, (OBSERVED, *options), plain)

        return Run(folder, status, out, err, plain, again)

    def judge(self, cell: Cell, run: Run) -> Result:
        """Returns the result of a cell, from its run."""
        lines = [line for line in run.err.splitlines() if not line.startswith(NOTE)]
        said = _anonymous(lines[-1], run.folder) if lines else ""
        if run.status is None:
            return Result("hangs", f"after {self.timeout:g} s; {said}")
        if "Traceback (most recent call last)" in run.err and not cell.status:
            return Result("traceback", said)
        if run.status == ConfigError.exit_status and cell.status != run.status:
            return self._judge_rejection(cell, run, lines, said)
        if run.status != cell.status:
            return Result("fails", f"exit status {run.status}: {said}")
        try:
            observed, expected = cell.check.look(run)
        except Exception as error:  # the effect is missing
            return Result("ignored", f"{type(error).__name__}: {_anonymous(str(error), run.folder)}")
        if observed != expected:
            return Result("ignored", f"observed {observed!r}, expected {expected!r}")
        return Result("works")

    def _judge_rejection(self, cell: Cell, run: Run, lines: list[str], said: str) -> Result:
        if len(lines) != 1 or not said.startswith(ERROR):
            return Result("fails", f"{len(lines)} lines: {said}")
        if run.seen.get("batches") or ((run.folder / "runs").exists() and cell.command == "fit"):
            return Result("fails", f"rejected after the run's folder was made: {said}")
        if cell.needs and importlib.util.find_spec(cell.needs) is None and cell.needs in said.replace("-", "_"):
            return Result(f"needs {cell.needs}", said.removeprefix(ERROR))
        if cell.named not in said:
            return Result("fails", f"the message does not name {cell.named}: {said}")
        return Result("rejected", said.removeprefix(ERROR))


def _anonymous(line: str, folder: Path) -> str:
    """A line without the parts that differ between runs."""
    line = re.sub(re.escape(str(folder.resolve())) + r"|" + re.escape(str(folder)), "…", line)
    line = re.sub(r"(Accepted on this machine:) .*", r"\1 …", line)
    return re.sub(r"0x[0-9a-f]{6,}", "0x…", line)
