"""BatchCounts: the tokens and FLOPs of a run's batches, for TimeBudget.

The module, or its data, counts them by methods `count_tokens(batch)` and `count_flops(batch)`. Tokens of batches with
`input_ids`, as Hugging Face's, are counted without such a method.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from lightning.pytorch import Trainer
from torch import Tensor

from bytelm.data.base import TokenData
from bytelm.units import Unit

NOT_KNOWN: dict[Unit, str] = {
    "tokens": "the tokens of a batch are not known; accepted: a method count_tokens(batch) of the module or the data",
    "flops": "the FLOPs of a batch are not known; accepted: a method count_flops(batch) of the module or the data",
}


class BatchCounts:
    """Counts batches of one rank in tokens and in FLOPs."""

    def __init__(self) -> None:
        self._counters: dict[Unit, Callable[[Any], int]] = {}
        self._has_seen_batch = False

    def find(self, trainer: Trainer, batch: Any = None) -> None:
        """Finds out how batches are counted, for which a batch may be needed."""
        owners = (trainer.lightning_module, getattr(trainer, "datamodule", None))
        for unit in NOT_KNOWN:
            methods = (getattr(owner, f"count_{unit}", None) for owner in owners)
            if (count := next((method for method in methods if callable(method)), None)) is not None:
                self._counters[unit] = count
        if isinstance(batch, Mapping) and isinstance(batch.get("input_ids"), Tensor):
            self._counters.setdefault("tokens", _input_ids)
        self._has_seen_batch |= batch is not None

    def knows(self, unit: Unit) -> bool | None:
        """Returns whether batches can be counted in tokens or FLOPs; None: unknown until the first batch."""
        return True if unit in self._counters else False if self._has_seen_batch else None

    def why_not_in(self, unit: Unit) -> str | None:
        """Returns the reason why the run cannot be measured in a unit; None if it can, or if no batch has shown it yet.

        Args:
            unit: Unit of a duration.
        """
        return NOT_KNOWN[unit] if unit in NOT_KNOWN and self.knows(unit) is False else None

    def of(self, batch: Any, unit: Unit) -> int:
        """Returns the tokens or FLOPs of a batch; 0 if they are not known."""
        return int(self._counters[unit](batch)) if unit in self._counters else 0  # the user's may return tensors


def of_all_ranks(trainer: Trainer, *amounts: int) -> list[int]:
    """Returns sums over all ranks from the amounts of this one; called on all ranks together."""
    if trainer.world_size == 1 or isinstance(getattr(trainer, "datamodule", None), TokenData):
        return [amount * trainer.world_size for amount in amounts]  # bytelm's data give all ranks the same number
    # Ranks with different counts would not agree on when to stop.
    total = torch.tensor(amounts, device=trainer.strategy.root_device)
    return [int(amount) for amount in trainer.strategy.reduce(total, reduce_op="sum").tolist()]


def _input_ids(batch: Any) -> int:
    return batch["input_ids"].numel()
