"""MemoryLimit: a run states how much memory its process may use.

    --trainer.callbacks+=MemoryLimit --trainer.callbacks.limit 1GiB

Before training, the limit is compared with an estimate: the memory in use, that of the compiler, and that which parts
declare. Afterwards the largest memory so far is compared with it: after the preparation, at logging steps, after each
validation, and at the end. Both are the resident memory of this process, as `/usr/bin/time -v` reports it; the
compiler's own processes have ended when a step begins.
"""

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from bytelm.errors import ConfigError, OutOfMemory
from bytelm.log_steps import is_log_step
from bytelm.parts import contract
from bytelm.system.memory import memory_mb, peak_memory_mb
from bytelm.units import MEMORY_UNITS, Size

COMPILER_MB = 90  # kept after the compilation of a small network on the CPU
TO_DO = "a larger limit, a smaller batch or network, model.compile: false, or a memory with fewer contexts"


class MemoryLimit(Callback):
    """Ends a run that uses more memory than a limit, if possible before training.

    Args:
        limit: Resident memory of this process: `900MiB`, `1GiB`. GPU memory does not count.

    Raises:
        ConfigError: This system does not report the memory of a process.
    """

    def __init__(self, limit: Size) -> None:
        super().__init__()
        self.limit = Size.parse(limit)
        if peak_memory_mb() is None or memory_mb() is None:
            raise ConfigError("trainer.callbacks.MemoryLimit", str(limit), "this system does not report memory in use")
        self._is_prepared = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._is_prepared = False
        needs = {"in use": memory_mb() or 0.0}
        if getattr(pl_module, "is_compiled", False) and trainer.strategy.root_device.type == "cpu":
            needs["for the compiler"] = COMPILER_MB
        data = getattr(trainer, "datamodule", None)
        for part in contract.declaring(pl_module, "memory_bytes"):
            needs[f"for {type(part).__name__}"] = part.memory_bytes(data) / MEMORY_UNITS["MiB"]
        if sum(needs.values()) > self._limit_mb:
            parts = ", ".join(f"{amount:.0f} {use}" for use, amount in needs.items())
            raise ConfigError(
                "trainer.callbacks.MemoryLimit.limit",
                str(self.limit),
                f"the run needs about {sum(needs.values()):.0f} MiB ({parts}); accepted: {TO_DO}",
            )

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if not self._is_prepared:
            self._is_prepared = True
            self._check("before the first step")

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if is_log_step(trainer, batch_idx):
            self._check("in training")

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._check("in validation")

    @property
    def _limit_mb(self) -> float:
        return self.limit.bytes / MEMORY_UNITS["MiB"]

    def _check(self, when: str) -> None:
        peak = peak_memory_mb() or 0.0
        if peak > self._limit_mb:
            raise OutOfMemory(
                f"trainer.callbacks.MemoryLimit.limit: {str(self.limit)!r} was exceeded {when} ({peak:.0f} MiB); "
                f"accepted: {TO_DO}"
            )
