"""ByteData: a corpus as a LightningDataModule. A subclass defines only where the bytes come from."""

import hashlib
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import Tensor

from bytelm.config.untrusted_config import nameable
from bytelm.config.values import NonNegativeInt, PositiveInt, UnitInterval
from bytelm.data.base import TokenData
from bytelm.data.orders import ORDERS, OrderName, deal_rows
from bytelm.data.rows import EvalBatches, RowLoader
from bytelm.data.tokenizer import ByteTokenizer, Tokenizer
from bytelm.errors import ConfigError, DataError


@dataclass(frozen=True)
class Corpus:
    """Text as bytes.

    Attributes:
        name: Name in a run record.
        stream: uint8, (n,).
    """

    name: str
    stream: Tensor

    @cached_property
    def sha256(self) -> str:
        """Hash of the bytes, which identifies the text whatever its name is."""
        return hashlib.sha256(self.stream.numpy().data).hexdigest()


@nameable
class ByteData(TokenData):
    """Base of the corpora whose tokens are bytes: splits, rows, batches.

    The first part of the corpus is for training, the rest for validation. `validate` scores the first `eval_bytes` of
    the validation split, as the challenge does; `test` and `predict` use the whole split.

    Args:
        batch_size: Rows of one batch of one rank.
        seq_len: Bytes of a row.
        order: `sequential`, `shuffled` (in each epoch), or `folds`: the 8 folds of the rows one after another,
            shuffled. `folds` is for parts that learn from the text beside the weights, and must not be trained on rows
            that they have learned.
        train_fraction: Share of the corpus for training.
        eval_bytes: Maximum number of bytes of the validation split that `val/bpb` is measured on.
        development: A development split inside the training split, as fractions such as [0.9, 1.0]. It is used for
            validation in place of the validation split, which is then not read. For choices between experiments.
        seed: Seed of the shuffled orders; default: the run's seed (`seed_everything`).
    """

    UNUSED_WITH: ClassVar = {"seed": ("order", ("sequential",))}
    OF_TRAINING: ClassVar = ("order", "seed")
    vocab_size = 256
    schedulable = ("batch_size", "seq_len")
    _loader: RowLoader | None

    def __init__(
        self,
        batch_size: PositiveInt = 16,
        seq_len: PositiveInt = 256,
        order: OrderName = "sequential",
        train_fraction: UnitInterval = 0.9,
        eval_bytes: PositiveInt = 131_072,
        development: tuple[UnitInterval, UnitInterval] | None = None,
        seed: NonNegativeInt | None = None,
    ) -> None:
        super().__init__(batch_size, seq_len, seed)
        self.order: OrderName = order
        self.train_fraction = train_fraction
        self.eval_bytes = eval_bytes
        if development is not None and not development[0] < development[1]:
            raise ConfigError("development", list(development), "accepted: two fractions, the first below the second")
        self.development = development
        self._corpus: Corpus | None = None

    @abstractmethod
    def read(self) -> Corpus:
        """Finds the corpus.

        Raises:
            DataError: It does not exist; the message says which file to place where.
            OSError: It cannot be read.
        """

    @property
    def corpus(self) -> Corpus:
        """The corpus, read on first access.

        Raises:
            DataError: It does not exist, or cannot be read.
        """
        if self._corpus is None:
            try:
                self._corpus = self.read()
            except OSError as error:
                raise DataError("data", type(self).__name__, f"its text cannot be read: {error}") from error
        return self._corpus

    def setup(self, stage: str) -> None:
        stream = self.corpus.stream
        if stage == "fit":
            self.corpus.sha256  # noqa: B018  (now, not when the first checkpoint is written and the clock runs)
        cut = int(len(stream) * self.train_fraction)
        self.train_split, self.val_split = stream[:cut], stream[cut:]
        if self.development is not None:
            start, end = (int(cut * fraction) for fraction in self.development)
            self.val_split = stream[start:end]
            self.train_split = torch.cat([stream[:start], stream[end:cut]])
        needed = {"train": self.train_split} if stage == "fit" else {}
        for name, split in {**needed, "validation": self.val_split}.items():
            if len(split) < self.seq_len:
                most = min(map(len, [*needed.values(), self.val_split]))
                development = "" if self.development is None else f", development {[*self.development]}"
                raise DataError(
                    "data",
                    self.corpus.name,
                    f"its {name} split has {len(split)} bytes (train_fraction {self.train_fraction} of {len(stream)}"
                    f"{development}), fewer than a row of {self.seq_len}; accepted: a longer text"
                    + (", or another development split" if development else "")
                    + (f", or data.seq_len up to {most}" if most else ""),
                )

    def corpus_record(self) -> dict[str, Any]:
        return {"name": self.corpus.name, "bytes": len(self.corpus.stream), "sha256": self.corpus.sha256}

    def text_tokenizer(self) -> Tokenizer:
        return ByteTokenizer()

    def train_tokens(self) -> int:
        return len(self.train_split)

    def train_loader(self, seed: int, rank: int, world_size: int) -> RowLoader:
        self._check_rows("data.batch_size", self.batch_size, world_size)
        return RowLoader(
            self.train_split, self.batch_size, self.seq_len, self.order, seed, rank=rank, world_size=world_size
        )

    def check_sizes(self, key: str, option: str, sizes: Sequence[int]) -> None:
        if option == "seq_len":
            if ORDERS[self.order].fixed_seq_len:
                accepted = [name for name, order in ORDERS.items() if not order.fixed_seq_len]
                raise ConfigError(key, sizes, f"accepted with data.order {', '.join(accepted)}, not {self.order}")
            if max(sizes) > len(self.train_split):
                raise DataError(key, max(sizes), f"accepted: up to {len(self.train_split)}, the bytes that train")
        else:
            self._check_rows(key, max(sizes), self._rank()[1])

    def _check_rows(self, key: str, batch_size: int, world_size: int) -> None:
        most = ORDERS[self.order](len(self.train_split), self.seq_len, 0).most_rows
        if most is not None and batch_size * world_size > most:
            raise DataError(key, batch_size, f"accepted: up to {most // world_size}, the rows of a fold")

    def folds(self) -> Tensor:
        """Fold of each byte of the training split, uint8, (n,)."""
        row = torch.arange(len(self.train_split)).div(self.seq_len, rounding_mode="floor")
        fold_of_row = deal_rows(len(self.train_split) // self.seq_len).to(torch.uint8)
        return fold_of_row[row.clamp(max=len(fold_of_row) - 1)]

    @property
    def fold(self) -> int | None:
        """Fold of the last training batch, if rows are taken by folds."""
        return None if self._epochs is None else self._epochs.loader.fold

    def val_dataloader(self) -> EvalBatches:
        # At least one row; a budget of fewer bytes would otherwise score nothing.
        return self._eval_batches(self.val_split[: max(self.eval_bytes, self.seq_len)])

    def test_dataloader(self) -> EvalBatches:
        return self._eval_batches(self.val_split)

    def _eval_batches(self, split: Tensor) -> EvalBatches:
        return EvalBatches(split, self.batch_size, self.seq_len, *self._rank())


def read_bytes(data: bytes | bytearray) -> Tensor:
    """Bytes as a uint8 tensor (n,)."""
    return torch.frombuffer(bytearray(data), dtype=torch.uint8) if data else torch.empty(0, dtype=torch.uint8)
