"""Orders: the sequence of a text's rows. All orders have one interface; all ranks together take rows from one order.

A row is identified by the position of its first byte. An order is a place in the text that can be saved. The number of
rows taken at once may change from one batch to the next; in sequential order, their length may change too.
"""

from abc import ABC, abstractmethod
from functools import lru_cache
from typing import Any, Literal

import torch
from torch import Tensor

OrderName = Literal["sequential", "shuffled", "folds"]
N_FOLDS, CHUNK_ROWS = 8, 64


class Order(ABC):
    """Base of the orders.

    Args:
        n_bytes: Length of the text.
        seq_len: Bytes of a row.
        seed: Seed of random orders.

    Attributes:
        position: Rows taken so far.
        fold: Fold of the last rows that were taken; None before any are taken, and in orders without folds.
    """

    fixed_seq_len = True
    """Whether all rows must have the same length."""

    def __init__(self, n_bytes: int, seq_len: int, seed: int) -> None:
        self.n_bytes = n_bytes
        self.seq_len = seq_len
        self.seed = seed
        self.position = 0

    @property
    def fold(self) -> int | None:
        return None

    @property
    def most_rows(self) -> int | None:
        """Maximum number of rows that can be taken at once; None: no maximum."""
        return None

    @abstractmethod
    def take(self, n_rows: int, seq_len: int) -> Tensor:
        """Returns the first bytes of the next rows, (n_rows,), of seq_len bytes each."""

    def state_dict(self) -> dict[str, Any]:
        """Returns the place, for a checkpoint."""
        return {"position": self.position}

    def load_state_dict(self, state: dict[str, Any], n_rows: int) -> None:
        """Returns to a place.

        Args:
            state: From `state_dict`. An older version's state has only `position`; all of its steps took n_rows.
            n_rows: Rows of one step.
        """
        self.position = state["position"]


class Sequential(Order):
    """Follows the text without overlap, and wraps around at its end, possibly in the middle of a row."""

    fixed_seq_len = False

    def __init__(self, n_bytes: int, seq_len: int, seed: int = 0) -> None:
        super().__init__(n_bytes, seq_len, seed)
        self._byte = 0  # the next byte; not modulo n_bytes

    def take(self, n_rows: int, seq_len: int) -> Tensor:
        starts = (self._byte + torch.arange(n_rows) * seq_len) % self.n_bytes
        self._byte += n_rows * seq_len
        self.position += n_rows
        return starts

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "byte": self._byte}

    def load_state_dict(self, state: dict[str, Any], n_rows: int) -> None:
        super().load_state_dict(state, n_rows)
        self._byte = state.get("byte", self.position * self.seq_len)


class Shuffled(Order):
    """Takes the text's whole rows in a new random order in every epoch."""

    def take(self, n_rows: int, seq_len: int) -> Tensor:
        rows = self.position + torch.arange(n_rows)
        per_epoch = self.n_bytes // self.seq_len
        epochs = rows // per_epoch
        starts = torch.empty_like(rows)
        for epoch in epochs.unique().tolist():
            inside = epochs == epoch
            starts[inside] = shuffled(per_epoch, self.seed, epoch)[rows[inside] % per_epoch] * self.seq_len
        self.position += n_rows
        return starts


class Folds(Order):
    """Takes the folds of the rows (deal_rows) one after another; each epoch has a new random order of folds and rows.

    Rows that are taken at once belong to one fold. Each fold leaves out its last rows if they are too few.
    """

    def __init__(self, n_bytes: int, seq_len: int, seed: int = 0) -> None:
        super().__init__(n_bytes, seq_len, seed)
        self._fold_of_row = deal_rows(n_bytes // seq_len)
        self._epoch, self._turn, self._row = 0, 0, 0  # the current fold, and the number of its rows that are taken
        self._order = self._shuffled_folds(0)

    @property
    def fold(self) -> int | None:
        return self._order[self._turn][0] if self.position else None

    @property
    def most_rows(self) -> int:
        return int(torch.bincount(self._fold_of_row).max())

    def take(self, n_rows: int, seq_len: int) -> Tensor:
        while len(self._order[self._turn][1]) - self._row < n_rows:
            self._next_fold()
        rows = self._order[self._turn][1][self._row : self._row + n_rows]
        self._row += n_rows
        self.position += n_rows
        return rows * self.seq_len

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "epoch": self._epoch, "turn": self._turn, "row": self._row}

    def load_state_dict(self, state: dict[str, Any], n_rows: int) -> None:
        if "turn" in state:
            super().load_state_dict(state, n_rows)
            self._go_to(state["epoch"], state["turn"], state["row"])
            return
        self.position = state["position"] - state["position"] % n_rows
        per_epoch = sum(size // n_rows * n_rows for size in torch.bincount(self._fold_of_row).tolist())
        last = max(self.position - n_rows, 0)  # the first row of the last step
        self._go_to(last // per_epoch, 0, 0)
        row = last % per_epoch
        while row >= (taken := len(self._order[self._turn][1]) // n_rows * n_rows):
            row -= taken
            self._next_fold()
        self._row = row + n_rows if self.position else 0

    def _next_fold(self) -> None:
        ended = self._turn + 1 == len(self._order)
        self._go_to(self._epoch + ended, 0 if ended else self._turn + 1, 0)

    def _go_to(self, epoch: int, turn: int, row: int) -> None:
        if epoch != self._epoch:
            self._order = self._shuffled_folds(epoch)
        self._epoch, self._turn, self._row = epoch, turn, row

    def _shuffled_folds(self, epoch: int) -> list[tuple[int, Tensor]]:
        """Returns the folds of an epoch with their rows, in the epoch's order."""
        generator = epoch_generator(self.seed, epoch)
        folds = []
        for fold in torch.randperm(N_FOLDS, generator=generator).tolist():
            rows = (self._fold_of_row == fold).nonzero()[:, 0]
            folds.append((fold, rows[torch.randperm(len(rows), generator=generator)]))
        return folds


ORDERS: dict[OrderName, type[Order]] = {"sequential": Sequential, "shuffled": Shuffled, "folds": Folds}


def deal_rows(n_rows: int) -> Tensor:
    """Returns each row's fold, (n_rows,): groups of CHUNK_ROWS adjacent rows are dealt to N_FOLDS folds at random.

    Adjacent rows stay together because nearby text repeats itself. The result depends only on the number of rows.
    """
    n_chunks = -(-n_rows // CHUNK_ROWS)
    dealt = torch.randperm(n_chunks, generator=torch.Generator().manual_seed(0)) % N_FOLDS
    return dealt.repeat_interleave(CHUNK_ROWS)[:n_rows]


def epoch_generator(seed: int, epoch: int) -> torch.Generator:
    """Returns a generator that depends only on seed and epoch, not on other draws of random numbers."""
    return torch.Generator().manual_seed(seed * 1_000_003 + epoch)


@lru_cache(maxsize=2)  # a batch may end one epoch and begin the next
def shuffled(n_rows: int, seed: int, epoch: int) -> Tensor:
    """Returns the row numbers in an epoch's order, (n_rows,)."""
    return torch.randperm(n_rows, generator=epoch_generator(seed, epoch))
