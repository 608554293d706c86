"""Throughput: training speed by the budget's clock (without validation and checkpoints).

| logged | value |
| --- | --- |
| throughput/tokens_per_sec | tokens trained per second, on all ranks together, since the last logging step |
| throughput/mfu | share of the devices' peak that the network's own arithmetic takes, 0 to 1, if the peak is known |

A run that is over, or is validated, before its first logging step logs them then, once.
"""

from typing import Any, Optional

import torch
from lightning.fabric.utilities.throughput import get_available_flops
from lightning.pytorch import Callback, LightningModule, Trainer

from bytelm.callbacks.time_budget import TimeBudget
from bytelm.config.values import PositiveFloat
from bytelm.errors import ConfigError
from bytelm.log_steps import is_log_step, log_metrics, logged_steps

# FLOP/s, in bfloat16 and float16, of GPUs that Lightning does not know: from the data sheet, without sparsity.
HALF_PEAKS = {"NVIDIA H200": 989e12}


class Throughput(Callback):
    """Logs tokens per second and MFU.

    Args:
        peak_flops: FLOP/s of one device at the run's precision; default: Lightning's value for the GPU.
    """

    reads_budget = True  # must follow TimeBudget in a trainer's list of callbacks

    def __init__(self, peak_flops: PositiveFloat | None = None) -> None:
        super().__init__()
        self.peak_flops = peak_flops
        self._lengths = Lengths()
        self._recent_lengths = Lengths()  # since the last logging step

    @staticmethod
    def of(trainer: Trainer) -> Optional["Throughput"]:
        """Returns the Throughput of a trainer, if there is one."""
        return next((c for c in trainer.callbacks if isinstance(c, Throughput)), None)  # type: ignore[attr-defined]

    def mfu(self, trainer: Trainer, tokens_per_sec: float) -> float | None:
        """MFU of all steps so far, at their mean speed in tokens per second of all ranks; see `_mfu`."""
        return self._mfu(trainer, tokens_per_sec, self._lengths.mean)

    def _mfu(self, trainer: Trainer, tokens_per_sec: float, seq_len: float) -> float | None:
        """Share of the devices' peak that the network's own arithmetic takes (Chowdhery et al. 2022, arXiv:2204.02311).

        Args:
            trainer: The trainer, which has the network and the number of devices.
            tokens_per_sec: Tokens trained per second, on all ranks together.
            seq_len: Tokens of a row, averaged over tokens.

        Returns:
            0 to 1; None if the peak is unknown.
        """
        gpt = getattr(trainer.lightning_module, "gpt", None)
        if not self.peak_flops or gpt is None:
            return None
        return tokens_per_sec * gpt.flops_per_token(seq_len) / (self.peak_flops * trainer.world_size)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._budget = TimeBudget.of(trainer)
        self._last = (self._budget.tokens, self._budget.training_seconds)
        if self.peak_flops is None:
            self.peak_flops = peak_flops(trainer.strategy.root_device, str(trainer.precision))

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if (reason := self._budget.counts.why_not_in("tokens")) is not None:
            raise ConfigError("throughput", type(pl_module).__name__, reason)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if hasattr(pl_module, "gpt"):  # the MFU of another module is unknown
            for lengths in (self._lengths, self._recent_lengths):
                lengths.add(batch[0].numel(), batch[0].shape[-1])
        if is_log_step(trainer, batch_idx):
            self._log(trainer)

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # Here, and not in on_validation_start, where TrainLog logs earlier steps: loggers get steps in their order.
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._log_early(trainer)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._log_early(trainer)  # of a run without validation

    def _log_early(self, trainer: Trainer) -> None:
        if logged_steps(trainer) < trainer.log_every_n_steps:  # type: ignore[attr-defined]
            self._log(trainer)

    def _log(self, trainer: Trainer) -> None:
        """Logs the speed since the last call."""
        seq_len, self._recent_lengths = self._recent_lengths.mean, Lengths()
        tokens, seconds = self._budget.tokens, self._budget.training_seconds
        last_tokens, last_seconds = self._last
        if tokens == last_tokens:
            return  # the budget has dropped the step, or it is logged
        self._last = (tokens, seconds)
        tokens_per_sec = (tokens - last_tokens) / (seconds - last_seconds)
        metrics = {"throughput/tokens_per_sec": tokens_per_sec}
        if (mfu := self._mfu(trainer, tokens_per_sec, seq_len)) is not None:
            metrics["throughput/mfu"] = mfu
        log_metrics(trainer, metrics)


class Lengths:
    """Lengths of rows, which a schedule may change: the mean over tokens, because FLOPs per token grow with it."""

    def __init__(self) -> None:
        self._tokens = self._sum = 0

    def add(self, tokens: int, seq_len: int) -> None:
        self._tokens += tokens
        self._sum += tokens * seq_len

    @property
    def mean(self) -> float:
        return self._sum / max(self._tokens, 1)


def peak_flops(device: torch.device, precision: str) -> float | None:
    """Returns a GPU's FLOP/s from its data sheet; None for other devices, and if it is unknown.

    Args:
        device: The GPU.
        precision: Lightning's name of the precision, such as bf16-mixed.
    """
    if device.type != "cuda":
        return None
    dtype = torch.bfloat16 if "bf16" in precision else torch.float16 if "16" in precision else torch.float32
    known = None if dtype is torch.float32 else HALF_PEAKS.get(torch.cuda.get_device_name(device))
    return known or get_available_flops(device, dtype)
