"""Scores: cross-entropy in nats per token and in bits per byte of text, and two scores to compare them with."""

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
            targets: The predicted tokens, of the same shape.
        """
        # In double precision: a float32 sum of 10^5 or more terms loses the digits that distinguish runs. Converted
        # each time, because converting the whole module to bf16 also converts this state.
        self.nats = self.nats.double() + nats.sum(dtype=torch.float64)
        self.count = self.count + targets.numel()

    def compute(self) -> Tensor:
        """The mean over all batches."""
        return self.nats / self.count


class BitsPerByte(NatsPerToken):
    """Cross-entropy in bits per byte of text: sum of nats / ln 2 / bytes, over all batches and ranks.

    Bits per byte are comparable between models with different vocabularies. Targets that represent no text, such as
    the token at the end of a document, count in neither the nats nor the bytes, because their number depends on how
    the text is divided into documents. `val/loss` counts every target.

    Args:
        token_bytes: Number of bytes of each token, (vocab_size,); None: every token is a byte.
    """

    def __init__(self, token_bytes: Tensor | None = None) -> None:
        super().__init__()
        self.token_bytes = token_bytes  # not a buffer, because ddp would broadcast it before every training batch

    def update(self, nats: Tensor, targets: Tensor) -> None:
        """Adds a batch; see NatsPerToken."""
        if self.token_bytes is None:
            return super().update(nats, targets)
        self.token_bytes = self.token_bytes.to(targets.device)
        n_bytes = self.token_bytes[targets]
        text = torch.where(n_bytes > 0, nats, 0.0)  # keeps the shape, and with it the exact order of the sum
        self.nats = self.nats.double() + text.sum(dtype=torch.float64)
        self.count = self.count + n_bytes.sum()

    def compute(self) -> Tensor:
        """Bits per byte over all batches."""
        return super().compute() / math.log(2)


def unigram_score(counts: Tensor, token_bytes: Tensor | None, in_bytes: bool) -> float:
    """The score of a model that gives each token its frequency in the scored text (a unigram model).

    Args:
        counts: Number of each token among the targets, int64, (vocab_size,).
        token_bytes: See BitsPerByte.
        in_bytes: Whether the score is in bits per byte, as BitsPerByte's; otherwise it is in nats per token.
    """
    return _score(counts, -(counts / counts.sum()).log(), token_bytes, in_bytes)


def uniform_score(counts: Tensor, token_bytes: Tensor | None, in_bytes: bool) -> float:
    """The score of a model that gives all tokens the same probability; see `unigram_score`."""
    return _score(counts, torch.full_like(counts, math.log(len(counts)), dtype=torch.float64), token_bytes, in_bytes)


def _score(counts: Tensor, nats: Tensor, token_bytes: Tensor | None, in_bytes: bool) -> float:
    """The score of a model that needs `nats` for each token, (vocab_size,)."""
    token_bytes = torch.ones_like(counts) if token_bytes is None else token_bytes.cpu()
    counted = counts * (token_bytes > 0) if in_bytes else counts
    nats = (counted * nats.double())[counted > 0].sum()  # the nats of a token that does not occur are infinite
    if not in_bytes:
        return float(nats / counted.sum())
    return float(nats / (counted * token_bytes).sum() / math.log(2))
