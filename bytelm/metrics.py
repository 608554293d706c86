"""The score: bits per byte."""

import math

import torch
from torch import Tensor
from torchmetrics import Metric


class BitsPerByte(Metric):
    """Cross-entropy in bits per byte of text: sum of nats / ln 2 / bytes, over all batches and ranks.

    Counted per byte, models with different vocabularies can be compared.

    Args:
        token_bytes: Number of bytes that each token stands for, (vocab_size,); None where every token is a byte.
    """

    full_state_update = False
    higher_is_better = False
    is_differentiable = False

    nats: Tensor
    bytes: Tensor
    token_bytes: Tensor | None

    def __init__(self, token_bytes: Tensor | None = None) -> None:
        super().__init__()
        # Double precision: a sum of 10^5 and more float32 terms would lose the digits that runs differ in.
        self.add_state("nats", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("bytes", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")
        self.register_buffer("token_bytes", token_bytes, persistent=False)

    def update(self, nats: Tensor, targets: Tensor) -> None:
        """Adds a batch.

        Args:
            nats: Cross-entropy of each target in nats, any shape.
            targets: The tokens predicted, of the same shape.
        """
        self.nats += nats.sum(dtype=torch.float64)
        self.bytes += targets.numel() if self.token_bytes is None else self.token_bytes[targets].sum()

    def compute(self) -> Tensor:
        """Bits per byte of all that was added."""
        return self.nats / math.log(2) / self.bytes
