"""The scores: cross-entropy in nats per token, and in bits per byte of text."""

import math

import torch
from torch import Tensor
from torchmetrics import Metric


class NatsPerToken(Metric):
    """Mean cross-entropy: sum of nats / number of targets, over all batches and ranks."""

    full_state_update = False
    higher_is_better = False
    is_differentiable = False

    nats: Tensor
    count: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("nats", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, nats: Tensor, targets: Tensor) -> None:
        """Adds a batch.

        Args:
            nats: Cross-entropy of each target in nats, any shape.
            targets: The tokens predicted, of the same shape.
        """
        # In double precision: a float32 sum of 10^5 and more terms would lose the digits that runs differ in. Again
        # each time, as a network that is converted to bf16 as a whole takes this state along.
        self.nats = self.nats.double() + nats.sum(dtype=torch.float64)
        self.count = self.count + targets.numel()

    def compute(self) -> Tensor:
        """The mean of all that was added."""
        return self.nats / self.count


class BitsPerByte(NatsPerToken):
    """Cross-entropy in bits per byte of text: sum of nats / ln 2 / bytes, over all batches and ranks.

    Counted per byte, models with different vocabularies can be compared. Targets that stand for no text, such as the
    token that ends a document, count neither in the nats nor in the bytes: how many there are depends on how the text
    was cut into documents. `val/loss` counts them, as it counts every target.

    Args:
        token_bytes: Number of bytes that each token stands for, (vocab_size,); None where every token is a byte.
    """

    def __init__(self, token_bytes: Tensor | None = None) -> None:
        super().__init__()
        self.token_bytes = token_bytes  # no buffer, which ddp would send to all ranks before every training batch

    def update(self, nats: Tensor, targets: Tensor) -> None:
        """Adds a batch; see NatsPerToken."""
        if self.token_bytes is None:
            return super().update(nats, targets)
        self.token_bytes = self.token_bytes.to(targets.device)
        n_bytes = self.token_bytes[targets]
        text = torch.where(n_bytes > 0, nats, 0.0)  # of the same shape: the sum of the others is the same to the bit
        self.nats = self.nats.double() + text.sum(dtype=torch.float64)
        self.count = self.count + n_bytes.sum()

    def compute(self) -> Tensor:
        """Bits per byte of all that was added."""
        return super().compute() / math.log(2)
