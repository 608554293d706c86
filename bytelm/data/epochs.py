"""Epochs: how many batches an epoch has, and the loader that hands a rank's endless batches to Lightning by epochs.

An epoch is as many tokens as the training text has, of all ranks together, in whole steps: one pass over the text in
ordered data, the same number of tokens in random crops. Its number of batches follows from the sizes in the config and
is the same for all epochs of a run, as Lightning requires. The next epoch goes on where the last one has ended, so the
sequence of batches depends neither on the length of an epoch nor on where one ends.
"""

from collections.abc import Iterator
from typing import Any

from torch import Tensor


def batches_in_epoch(tokens: int, step_tokens: int, batches_per_step: int) -> int:
    """Batches of one rank in an epoch.

    Whole steps: Lightning takes a step at an epoch's last batch even if fewer batches than `accumulate_grad_batches`
    have been accumulated, and the gradients of that step would be smaller than those of the others.

    Args:
        tokens: Of the training text.
        step_tokens: Tokens of one step of all ranks.
        batches_per_step: Batches whose gradients are accumulated into a step.
    """
    return max(-(-tokens // step_tokens), 1) * batches_per_step


def limited(n_batches: int, limit: int | float) -> int:
    """How many of some batches a limit leaves, as Lightning counts them.

    Args:
        n_batches: Of an epoch.
        limit: A number of batches, or a share of them (`limit_train_batches`, `overfit_batches`).
    """
    return min(n_batches, limit) if isinstance(limit, int) else int(n_batches * limit)


class EpochLoader:
    """A rank's training batches, epoch by epoch.

    Each iteration yields the batches of one epoch. Lightning needs the length for options that are shares of an epoch;
    with a length it also fetches each batch when it is due. Without one it would fetch a batch ahead, and the position
    in a checkpoint would be one batch beyond those that were trained on.

    Args:
        loader: The endless batches (base.TrainLoader); sizes of batches are set on this object or on that one.
        n_batches: Of an epoch.
        n_repeated: The first so many batches are repeated forever (`overfit_batches`); 0: all batches are new ones.
    """

    def __init__(self, loader: Any, n_batches: int, n_repeated: int = 0) -> None:
        self.loader = loader
        self.n_batches = n_batches
        self._n_repeated = n_repeated
        self._first = loader.state_dict()
        self._taken = 0  # of the batches that are repeated

    def __len__(self) -> int:
        return self.n_batches

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        batches = iter(self.loader)
        for _ in range(self.n_batches):
            if self._n_repeated:
                if self._taken >= self._n_repeated:
                    self.loader.load_state_dict(self._first)
                    self._taken = 0
                self._taken += 1
            yield next(batches)

    def state_dict(self) -> dict[str, Any]:
        """Lightning puts this into checkpoints."""
        repeated = {"repeated": self._taken} if self._n_repeated else {}
        return {**self.loader.state_dict(), **repeated}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues from a checkpoint's position; that of a run that repeated no batches is the end of a repetition."""
        self.loader.load_state_dict(state)
        self._taken = state.get("repeated", self._n_repeated)

    @property
    def batch_size(self) -> int:
        """Rows of one batch of one rank, of data whose batch size is schedulable."""
        return self.loader.batch_size

    @batch_size.setter
    def batch_size(self, batch_size: int) -> None:
        self.loader.batch_size = batch_size

    @property
    def seq_len(self) -> int:
        """Tokens of a row, of data whose row length is schedulable."""
        return self.loader.seq_len

    @seq_len.setter
    def seq_len(self, seq_len: int) -> None:
        self.loader.seq_len = seq_len
