"""RunRecord: a run's settings and results, as record.json in its folder, and as a summary on standard output.

runs/record.py defines its keys.
"""

import contextlib
import os
import platform
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import lightning
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from torch.nn.parameter import is_lazy

import bytelm
from bytelm.callbacks.header import count_parameters, device_name
from bytelm.callbacks.last_checkpoint import LastCheckpoint
from bytelm.callbacks.run_folder import claim_of, run_folder
from bytelm.callbacks.throughput import Throughput
from bytelm.callbacks.time_budget import TimeBudget
from bytelm.config.messages import note
from bytelm.data.base import token_data
from bytelm.errors import RunError, StorageError
from bytelm.log_steps import StepLoss
from bytelm.runs import record
from bytelm.runs.checkpoints import read
from bytelm.runs.folder import checkpoint_of
from bytelm.runs.record import Corpus, Git, InitFrom, Record
from bytelm.runs.score import VAL_BPB, VAL_LOSS
from bytelm.system.memory import peak_device_memory_mb, peak_memory_mb
from bytelm.system.process import process_age, utc

PRINTED = (
    "val_bpb",
    "val_loss",  # if there is no val_bpb
    "train_loss",
    "total_steps",
    "training_time_secs",
    "total_time_secs",
    "wall_time_secs",  # of a resumed run
    "num_params_M",
    "tokens_per_sec",
    "mfu",
    "tokens_seen",
    "peak_memory_mb",
    "run",
)
# The values of a resumed run's last process; the others are of the whole run.
OF_LAST_PROCESS = ("total_time_secs", "wall_time_secs", "startup_time_secs", "peak_memory_mb", "started_at", "ended_at")


class RunRecord(Callback):
    """Writes record.json when a run has ended, for whatever reason; prints the main lines of a completed run.

    Attributes:
        init_from: The weights that the run started from, if they are another run's.
        code: The user's own files that the config uses (config/own_code.py).
    """

    def __init__(self) -> None:
        super().__init__()
        self.init_from: InitFrom | None = None
        self.code: dict[str, str] = {}
        self._loss = StepLoss()
        self._train_loss: float | None = None
        self._num_params = 0
        self._is_lazy = False  # whether some parameters had no sizes before the first batch
        self._folder: str | None = None
        self._trainer: Trainer | None = None
        self._earlier: Record | None = None  # the record of the run's earlier processes
        self._resumed: Path | None = None  # the checkpoint of its earlier processes
        self._is_restored = False

    def state_dict(self) -> dict[str, Any]:
        self._read_loss()
        return {"train_loss": self._train_loss, "init_from": self.init_from}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._is_restored = True
        self._train_loss = state_dict["train_loss"]
        self.init_from = state_dict.get("init_from")  # older checkpoints, from before the option existed, have none

    @staticmethod
    def of(trainer: Trainer) -> "RunRecord":
        """Returns the RunRecord among a trainer's callbacks."""
        return next(c for c in trainer.callbacks if isinstance(c, RunRecord))  # type: ignore[attr-defined]

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._trainer = trainer
        self._num_params = count_parameters(pl_module)  # before a strategy shards them
        self._is_lazy = any(is_lazy(p) for p in pl_module.parameters())
        # Read here, on all ranks: at the end, only one of them may be left.
        kept = stage == "fit" and (claim_of(trainer) is not None or bool(trainer.loggers))
        folder = run_folder(trainer) if kept else None
        self._folder = None if folder is None else str(folder)
        self._earlier = self._resumed = None
        if folder is not None and trainer.is_global_zero:
            last = checkpoint_of(folder, "last")
            self._resumed = last if last.exists() else None
            with contextlib.suppress(StorageError):  # a new run has no record, and neither has one that was killed
                self._earlier = record.read(folder)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._num_params = max(self._num_params, count_parameters(pl_module))  # some are made in configure_model

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._loss.add(trainer, outputs, batch_idx)  # read only at the end, as reading waits for the device

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._is_lazy:
            self._num_params = count_parameters(pl_module)
        self._read_loss()
        known = self._record(trainer)
        self._write(known)
        _print_record(known)
        others = [name for name in trainer.callback_metrics if name.lower().startswith("val")]
        if others and known["val_loss"] is None and known["val_bpb"] is None:
            logged, scores = ", ".join(others), f"{VAL_LOSS.tag} and {VAL_BPB.tag}"
            note(f"the run has no score: the module logs {logged}; scores are {scores} (docs/guides/python.md)")

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        if trainer.state.fn != "fit":
            return
        claim = claim_of(trainer)
        if self._trainer is not trainer and claim is not None and claim.folder.is_claimed:
            self.setup(trainer, pl_module, "fit")  # not called yet: the setup of a callback or of the data has failed
        self.write_failure(trainer, exception)

    def write_failure(self, trainer: Trainer, error: BaseException) -> None:
        """Writes the record of a run that ended early."""
        known = self._record(trainer)
        if self._resumed is not None and not self._is_restored:
            known = self._before_resuming(trainer, self._resumed)
        with contextlib.suppress(OSError):  # the error itself reports a full disk
            self._write(record.failed(known, error))

    def _before_resuming(self, trainer: Trainer, checkpoint: Path) -> Record:
        """Returns the record of a run that failed before its checkpoint was loaded, which tells what it has trained."""
        budget = TimeBudget.of(trainer)
        with contextlib.suppress(RunError, KeyError):  # one that is damaged is the error itself
            callbacks = read(checkpoint)["callbacks"]
            budget.load_state_dict(callbacks["TimeBudget"])
            self.load_state_dict(callbacks["RunRecord"])
        known: Record = {**self._record(trainer), "checkpoint": str(checkpoint)}
        earlier = self._earlier
        if earlier is not None and (not self._is_restored or earlier.get("total_steps") == budget.steps):
            of_this_process = {key: known.get(key) for key in OF_LAST_PROCESS}
            return cast(Record, {**earlier, **of_this_process})  # which has the scores, too
        return known

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == "validate":
            _print_scores(trainer, "val")

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        _print_scores(trainer, "test")

    def _record(self, trainer: Trainer) -> Record:
        budget = TimeBudget.of(trainer)
        scores = {key: float(value) for key, value in trainer.callback_metrics.items()}
        seconds = budget.training_seconds
        tokens = None if budget.counts.knows("tokens") is False else budget.tokens
        last = LastCheckpoint.of(trainer)
        data = token_data(trainer)
        elapsed = process_age()  # read once: wall_time_secs contains total_time_secs
        known: Record = {
            "status": "completed",
            "reason": None,
            "limit": ", ".join(budget.limits),
            "val_bpb": _rounded(scores.get(VAL_BPB.tag), 6),
            "val_loss": _rounded(scores.get(VAL_LOSS.tag), 6),
            "train_loss": _rounded(self._train_loss, 6),
            "total_steps": budget.steps,
            "progress": round(budget.progress.fraction, 4),
            "training_time_secs": round(seconds, 3),
            "total_time_secs": round(elapsed, 3),
            "startup_time_secs": _rounded(budget.startup_seconds, 3),
            "num_params_M": round(self._num_params / 1e6, 4),
            "tokens_per_sec": round(tokens / seconds, 1) if seconds and tokens is not None else None,
            "mfu": _rounded(_mfu(trainer, budget.tokens / seconds), 4) if seconds else None,
            "tokens_seen": tokens,
            "total_flops": budget.flops if budget.counts.knows("flops") else None,
            "peak_memory_mb": peak_memory_mb(),
            "started_at": utc(time.time() - process_age()),
            "ended_at": utc(time.time()),
            "seed": int(seed) if (seed := os.environ.get("PL_GLOBAL_SEED")) else None,
            "device": device_name(trainer.strategy.root_device),
            "strategy": type(trainer.strategy).__name__,
            "world_size": trainer.world_size,
            "precision": str(getattr(trainer.precision_plugin, "label", trainer.precision)),
            "corpus": None if data is None else cast(Corpus, data.corpus_record()),
            "init_from": self.init_from,
            "code": self.code,
            "git": git_state(),
            "versions": {
                "python": platform.python_version(),
                "torch": torch.__version__,
                "lightning": lightning.__version__,
                "bytelm": bytelm.__version__,
            },
            "checkpoint": str(last.path) if last and last.path and last.path.exists() else None,
            "run": self._folder,
        }
        if self._earlier is not None and (before := record.wall_time(self._earlier)):
            known["wall_time_secs"] = round(before + elapsed, 3)
        if trainer.strategy.root_device.type == "cuda":
            known["peak_device_memory_mb"] = peak_device_memory_mb()
        return known

    def _read_loss(self) -> None:
        """Reads the loss of the last step. Called on all ranks together."""
        if self._trainer is not None and (loss := self._loss.of_all_ranks(self._trainer)) is not None:
            self._train_loss = float(loss)

    @rank_zero_only
    def _write(self, known: Record) -> None:
        if self._folder is not None:
            record.write(Path(self._folder), known)


@rank_zero_only
def _print_record(known: Mapping[str, Any]) -> None:
    sys.stderr.flush()
    left_out = "val_bpb" if known["val_bpb"] is None else "val_loss"
    for key in PRINTED:
        if key != left_out and known.get(key) is not None:
            print(f"{key}: {known[key]:.4f}" if key.startswith(("val_", "train_l")) else f"{key}: {known[key]}")
    sys.stdout.flush()


@rank_zero_only
def _print_scores(trainer: Trainer, split: str) -> None:
    for name in ("bpb", "loss"):
        if f"{split}/{name}" in trainer.callback_metrics:
            print(f"{split}_{name}: {float(trainer.callback_metrics[f'{split}/{name}']):.4f}")


def git_state() -> Git | None:
    """Returns the commit of the working folder's repository, and whether files of it are changed.

    Other files, such as those of runs, are no changes. None outside a repository.
    """

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", *arguments], capture_output=True, text=True, check=True, timeout=10
        ).stdout.strip()

    try:
        return {"commit": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain", "--untracked-files=no"))}
    except (OSError, subprocess.SubprocessError):
        return None


def _mfu(trainer: Trainer, tokens_per_sec: float) -> float | None:
    throughput = Throughput.of(trainer)
    if throughput is None or token_data(trainer) is None:
        return None
    return throughput.mfu(trainer, tokens_per_sec)


def _rounded(value: float | None, digits: int) -> float | None:
    return None if value is None else round(value, digits)
