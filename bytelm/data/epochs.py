"""Epochs: the number of batches of an epoch, and the loader that divides a rank's endless batches into epochs.

An epoch has as many tokens as the training text, counted over all ranks, in whole steps. In ordered data this is one
pass over the text; in random crops it is the same number of tokens. The number of batches follows from the sizes in the
config and is the same for all epochs of a run, as Lightning requires. Each epoch continues where the previous one
ended. Therefore the sequence of batches does not depend on the length or the end of an epoch.
"""

from collections.abc import Iterator
from typing import Any

from torch import Tensor


def batches_in_epoch(tokens: int, step_tokens: int, batches_per_step: int) -> int:
    """Returns the number of batches of one rank in an epoch.

    The number makes whole steps. Lightning takes a step at an epoch's last batch even if fewer batches than
    `accumulate_grad_batches` have been accumulated, and the gradients of that step would be smaller than the others.

    Args:
        tokens: Tokens of the training text.
        step_tokens: Tokens of one step of all ranks.
        batches_per_step: Batches whose gradients are accumulated for one step.
    """
    return max(-(-tokens // step_tokens), 1) * batches_per_step


def limited(n_batches: int, limit: int | float) -> int:
    """Returns the number of batches that a limit leaves, counted as Lightning does.

    Args:
        n_batches: Batches of an epoch.
        limit: A number of batches, or a share of them (`limit_train_batches`, `overfit_batches`).
    """
    return min(n_batches, limit) if isinstance(limit, int) else int(n_batches * limit)


class EpochLoader:
    """A rank's training batches, epoch by epoch.

    Each iteration yields the batches of one epoch. The length is needed for two reasons. Lightning's options that are
    shares of an epoch require it. With a length, Lightning also fetches each batch when it is due; without one it
    fetches one batch ahead, and the position in a checkpoint would be one batch past the trained ones.

    Args:
        loader: The endless batches (base.TrainLoader); batch sizes are set on this object or on that one.
        n_batches: Batches of an epoch.
        n_repeated: Number of first batches that are repeated forever (`overfit_batches`); 0: no batch is repeated.
    """

    def __init__(self, loader: Any, n_batches: int, n_repeated: int = 0) -> None:
        self.loader = loader
        self.n_batches = n_batches
        self._n_repeated = n_repeated
        self._first = loader.state_dict()
        self._taken = 0  # counts the batches that are repeated

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
        """Lightning stores this state in checkpoints."""
        repeated = {"repeated": self._taken} if self._n_repeated else {}
        return {**self.loader.state_dict(), **repeated}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resumes at a checkpoint's position; that of a run without repeated batches is the end of a repetition."""
        self.loader.load_state_dict(state)
        self._taken = state.get("repeated", self._n_repeated)

    @property
    def batch_size(self) -> int:
        """Rows of one batch of one rank, for data whose batch size is schedulable."""
        return self.loader.batch_size

    @batch_size.setter
    def batch_size(self, batch_size: int) -> None:
        self.loader.batch_size = batch_size

    @property
    def seq_len(self) -> int:
        """Tokens of a row, for data whose row length is schedulable."""
        return self.loader.seq_len

    @seq_len.setter
    def seq_len(self, seq_len: int) -> None:
        self.loader.seq_len = seq_len
