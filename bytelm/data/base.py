"""TokenData: the base of all data, whatever their tokens are. A subclass defines how batches are made.

The position in the data is saved and restored with the run. A run resumes only with the text that it started with.
"""

import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from lightning.pytorch import LightningDataModule, Trainer
from torch import Tensor

from bytelm.data.epochs import EpochLoader, batches_in_epoch, limited
from bytelm.data.tokenizer import Tokenizer
from bytelm.errors import DataError


class TrainLoader(Protocol):
    """Endless training batches of one rank, whose position can be saved.

    If `batch_size` or `seq_len` is schedulable, the loader has an attribute of that name, which is set between two
    batches.
    """

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]: ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


class TokenData(LightningDataModule, ABC):
    """Base of all data: batches of inputs and targets, token ids, int64, each (batch_size, seq_len).

    Args:
        batch_size: Rows of one batch of one rank.
        seq_len: Tokens of a row.
        seed: Seed of random orders; None for the run's seed (`seed_everything`).

    Attributes:
        vocab_size: All tokens are below it.
        token_bytes: Number of bytes of each token, int64, (vocab_size,), known after `setup`; None if every token is a
            byte, or if the number is unknown.
        counts_bytes: Whether the number of bytes of each token is known, which a score in bits per byte requires.
        schedulable: Which of `batch_size` and `seq_len` can change in the training loader during a run. Validation
            keeps the values given here.
    """

    schedulable: tuple[str, ...] = ()
    vocab_size: int
    token_bytes: Tensor | None = None
    counts_bytes = True

    def __init__(self, batch_size: int, seq_len: int, seed: int | None) -> None:
        super().__init__()
        self.batch_size = batch_size
        self.seq_len = seq_len
        self.seed = seed
        self._epochs: EpochLoader | None = None  # the training batches of this rank
        self._position: dict[str, Any] | None = None  # the loader's position in the checkpoint that is resumed

    @abstractmethod
    def corpus_record(self) -> dict[str, Any]:
        """Returns the text's entry in a run's record: its `name`, its size, and `sha256`, which identifies it.

        Raises:
            DataError: The text does not exist, or cannot be read.
        """

    @classmethod
    def resolved(cls, options: Mapping[str, Any]) -> dict[str, Any]:
        """Returns the values of options whose defaults depend on the files; a run's config contains these values.

        Args:
            options: All arguments of the constructor.
        """
        return {}

    def val_files(self) -> list[Path]:
        """Returns the files for validation, for the lines before a run; empty if it is a part of the text."""
        return []

    def text_tokenizer(self) -> Tokenizer | None:
        """Returns the tokenizer of the tokens; None if it is not known.

        Raises:
            DataError: It cannot be loaded.
        """
        return None

    def changed(self) -> str | None:
        """Returns the changes in the files that this run reads, since `corpus_record`; None if there are none.

        Also None if the whole text is in memory. Called about once a second.
        """
        return None

    @abstractmethod
    def train_loader(self, seed: int, rank: int, world_size: int) -> TrainLoader:
        """Returns a rank's training batches, from the first one.

        Args:
            seed: Seed of random orders.
            rank: This rank.
            world_size: Number of ranks.

        Raises:
            DataError: The text is too short for a batch.
        """

    @abstractmethod
    def train_tokens(self) -> int:
        """Tokens of the training text, after the data are set up. An epoch has this many tokens (epochs.py)."""

    def epoch_batches(self) -> int:
        """Batches of one rank in an epoch of the trainer, before limits such as `limit_train_batches`."""
        batches_per_step = self.trainer.accumulate_grad_batches if self.trainer else 1
        step_tokens = self.batch_size * self.seq_len * self._rank()[1] * batches_per_step
        return batches_in_epoch(self.train_tokens(), step_tokens, batches_per_step)

    def check_sizes(self, key: str, option: str, sizes: Sequence[int]) -> None:
        """Checks that training batches can have these sizes, after the data are set up.

        Args:
            key: Key of the config, for the message.
            option: One of `schedulable`.
            sizes: All values that the option will have.

        Raises:
            ConfigError: Batches cannot have these sizes in this order of the rows.
            DataError: The text is too short.
        """

    def train_dataloader(self) -> EpochLoader:
        seed = int(os.environ.get("PL_GLOBAL_SEED", 0)) if self.seed is None else self.seed
        loader = self.train_loader(seed, *self._rank())
        n_batches = self.epoch_batches()
        share: int | float = self.trainer.overfit_batches if self.trainer else 0  # type: ignore[attr-defined]
        self._epochs = EpochLoader(loader, n_batches, limited(n_batches, share))
        if self._position is not None:
            self._epochs.load_state_dict(self._position)
        return self._epochs

    def predict_dataloader(self) -> Any:
        return self.test_dataloader()

    def state_dict(self) -> dict[str, Any]:
        # Lightning also saves the loader's state, but restores it only from checkpoints that it considers to be from
        # the middle of an epoch. The end of a budget counts as the end of an epoch.
        return {} if self._epochs is None else {**self._epochs.state_dict(), "corpus": self.corpus_record()["sha256"]}

    def check_resume(self, state_dict: dict[str, Any]) -> None:
        """Checks that a run can resume with these data.

        Raises:
            DataError: The corpus is not the one that the run started with.
        """
        if not state_dict:
            return  # no batch has been taken yet
        corpus = self.corpus_record()
        if state_dict["corpus"] != corpus["sha256"]:
            raise DataError(
                "data",
                corpus["name"],
                f"it has changed since the checkpoint was written: its sha256 is {corpus['sha256'][:12]}…, and was "
                f"{state_dict['corpus'][:12]}…",
            )

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._position = state_dict or None

    def _rank(self) -> tuple[int, int]:
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)


def token_data(trainer: Trainer) -> TokenData | None:
    """Returns the data of a trainer, if they are TokenData; None for a user's data or loaders."""
    data = getattr(trainer, "datamodule", None)
    return data if isinstance(data, TokenData) else None
