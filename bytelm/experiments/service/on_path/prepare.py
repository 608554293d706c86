"""prepare: the module that a submitted program imports, with the interface of the byte-level challenge.

The service sets these environment variables (bytelm/experiments/service/program.py); without them, the values are the
challenge's:

| variable | meaning |
| --- | --- |
| DATA_DIR | the folder with train.bin and val.bin, the splits of the text |
| MAX_SEQ_LEN | bytes of a row |
| EVAL_TOKENS | bytes of the validation split that the score is measured on |
| TIME_BUDGET | seconds of training, which the program has to keep |

Rows are bytelm's (bytelm/data/rows.py): BOS and T - 1 bytes as inputs, T bytes as targets, one row after another.
"""

import json
import math
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor

from bytelm.data.rows import RowLoader
from bytelm.data.tokenizer import BOS

MAX_SEQ_LEN = int(os.environ.get("MAX_SEQ_LEN", "256"))
EVAL_TOKENS = int(os.environ.get("EVAL_TOKENS", "131072"))
TIME_BUDGET = json.loads(os.environ.get("TIME_BUDGET", "180"))  # 180, and not 180.0: the challenge's is an int
VOCAB_SIZE = 256
BOS_TOKEN = BOS
DATA_DIR = os.environ.get("DATA_DIR", "data")


class ByteTokenizer:
    """Text as the bytes of its UTF-8."""

    def __init__(self) -> None:
        self.vocab_size = VOCAB_SIZE
        self.bos_token_id = BOS_TOKEN

    def encode(self, text: str) -> list[int]:
        """Returns the bytes of a text."""
        return list(text.encode())

    def decode(self, ids: list[int]) -> str:
        """Returns the text of bytes; invalid ones become U+FFFD."""
        return bytes(ids).decode(errors="replace")

    def get_vocab_size(self) -> int:
        return self.vocab_size

    def get_bos_token_id(self) -> int:
        return self.bos_token_id


def make_dataloader(B: int, T: int, split: str = "train", device: str = "cpu") -> Iterator[tuple[Tensor, Tensor]]:
    """Yields the batches of a split, in the order of the text and without an end.

    Args:
        B: Rows of a batch.
        T: Bytes of a row.
        split: `train` or `val`.
        device: Device of the batches.

    Yields:
        Inputs and targets, int64, (B, T) each.
    """
    for inputs, targets in RowLoader(_read(split), B, T):
        yield inputs.to(device), targets.to(device)


@torch.no_grad()
def evaluate_bpb(model: Callable[..., Tensor], B: int, device: str = "cpu") -> float:
    """Returns the score: bits per byte of the first EVAL_TOKENS bytes of the validation split.

    As in the challenge, only whole batches count: bytes beyond the last whole batch of B rows are left out.

    Args:
        model: Module with `forward(inputs, targets)`, which returns the mean cross-entropy in nats.
        B: Rows of a batch.
        device: Device of the batches.
    """
    model.eval()  # type: ignore[attr-defined]
    n_batches = max(1, EVAL_TOKENS // (B * MAX_SEQ_LEN))
    batches = make_dataloader(B, MAX_SEQ_LEN, "val", device)
    nats = sum(float(model(*next(batches))) for _ in range(n_batches)) / n_batches  # in double precision
    model.train()  # type: ignore[attr-defined]
    return nats / math.log(2)


def get_data_stats() -> dict[str, float]:
    """Returns the sizes of the splits, and the constants of this module."""
    return {
        **{f"{split}_tokens": len(_read(split)) for split in ("train", "val")},
        **{f"{split}_files": 1 for split in ("train", "val")},
        "vocab_size": VOCAB_SIZE,
        "max_seq_len": MAX_SEQ_LEN,
        "time_budget_secs": TIME_BUDGET,
        "eval_tokens": EVAL_TOKENS,
    }


def _read(split: str) -> Tensor:
    if split not in ("train", "val"):
        raise ValueError(f"split: {split!r} cannot be used; accepted: train, val")
    return torch.frombuffer(bytearray(Path(DATA_DIR, f"{split}.bin").read_bytes()), dtype=torch.uint8)
