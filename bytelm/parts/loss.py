"""Training losses. Validation always reports plain cross-entropy.

CrossEntropy receives all logits. A chunked loss receives hidden states and the head, and computes the logits of a few
thousand tokens at a time: with a vocabulary of 50,304, all logits of 61,440 tokens are 12 GB in float32.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from bytelm.config.values import NonNegativeFloat, PositiveInt, UnitInterval
from bytelm.parts.contract import Loss
from bytelm.system import compiler


class CrossEntropy(Loss):
    """Mean cross-entropy, with two optional regularisers.

    Args:
        label_smoothing: Share of the target probability that is spread evenly over the vocabulary
            (Szegedy et al. 2015, arXiv:1512.00567).
        z_loss: Weight of the mean of log(Z)^2, with Z the softmax's normaliser, which prevents a drift of the logits
            (Chowdhery et al. 2022, arXiv:2204.02311, 5).
    """

    def __init__(self, label_smoothing: UnitInterval = 0.0, z_loss: NonNegativeFloat = 0.0) -> None:
        super().__init__()
        self.label_smoothing = label_smoothing
        self.z_loss = z_loss

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        logits = logits.float()  # bf16 has only three digits
        loss = F.cross_entropy(logits.flatten(0, -2), targets.flatten(), label_smoothing=self.label_smoothing)
        if self.z_loss:
            loss = loss + self.z_loss * logits.logsumexp(dim=-1).square().mean()
        return loss


class HiddenCrossEntropy(CrossEntropy):
    """CrossEntropy that computes the logits itself, from hidden states.

    With torch.compile, head, cap and loss are then one graph: the logits are in memory once, in the precision of the
    product, and a soft cap costs no memory traffic.

    Args:
        label_smoothing: As in CrossEntropy: the share of the target probability that is spread over the vocabulary.
        z_loss: As in CrossEntropy: the weight of the mean of log(Z)^2, with Z the softmax's normaliser.
    """

    takes_hidden = True

    def forward(self, hidden: Tensor, head: nn.Module, targets: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(head(hidden), targets)


class ChunkedCrossEntropy(CrossEntropy):
    """CrossEntropy with the logits of only `chunk_tokens` tokens in memory at a time.

    The forward pass also computes the gradients of a chunk's logits and propagates them to the hidden states and the
    head, before it computes the next chunk's logits.

    Args:
        chunk_tokens: Number of tokens whose logits are in memory at a time.
        label_smoothing: As in CrossEntropy: the share of the target probability that is spread over the vocabulary.
        z_loss: As in CrossEntropy: the weight of the mean of log(Z)^2, with Z the softmax's normaliser.
    """

    takes_hidden = True

    def __init__(
        self, chunk_tokens: PositiveInt = 2048, label_smoothing: UnitInterval = 0.0, z_loss: NonNegativeFloat = 0.0
    ) -> None:
        super().__init__(label_smoothing, z_loss)
        self.chunk_tokens = chunk_tokens

    @compiler.disable  # it differentiates inside its forward pass, which cannot be traced
    def forward(self, hidden: Tensor, head: nn.Module, targets: Tensor) -> Tensor:  # type: ignore[override]
        return chunked(hidden, head, targets, super().forward, self.chunk_tokens)


class FusedCrossEntropy(Loss):
    """Mean cross-entropy; on GPUs one pass over the logits, which are overwritten with their gradients.

    For vocabularies of tens of thousands. It computes the same as CrossEntropy, and on other devices runs the same
    operations. The kernel is in bytelm/kernels/cross_entropy.py.

    Args:
        chunk_tokens: Number of tokens whose logits are in memory at a time, as in ChunkedCrossEntropy; null: all,
            which is faster.
    """

    def __init__(self, chunk_tokens: PositiveInt | None = None) -> None:
        super().__init__()
        self.takes_hidden = chunk_tokens is not None
        self.chunk_tokens = chunk_tokens
        # The last factor of the loss (a batch's share of a step), which predicts the next one. Not a buffer, because
        # ddp would broadcast it before every batch.
        self._factor: Tensor | None = None

    @compiler.disable
    def forward(self, *arguments: Any) -> Tensor:
        if self.chunk_tokens is None:
            return self._of_logits(*arguments)
        hidden, head, targets = arguments
        return chunked(hidden, head, targets, self._of_logits, self.chunk_tokens)

    def _of_logits(self, logits: Tensor, targets: Tensor) -> Tensor:
        if logits.device.type != "cuda":
            return F.cross_entropy(logits.flatten(0, -2).float(), targets.flatten())
        from bytelm.kernels.cross_entropy import cross_entropy  # needs triton, which only torch for GPUs includes

        if self._factor is None:
            self._factor = torch.ones((), device=logits.device)
        return cross_entropy(logits.flatten(0, -2), targets.flatten(), self._factor)


def chunked(hidden: Tensor, head: nn.Module, targets: Tensor, loss: Any, chunk_tokens: int) -> Tensor:
    """A mean loss over all tokens, computed chunk by chunk.

    Args:
        hidden: Hidden states, (B, T, d_model).
        head: Maps hidden states (..., d_model) to logits (..., vocab_size).
        targets: (B, T).
        loss: Mean loss of logits (n, vocab_size) and targets (n,).
        chunk_tokens: Largest n.

    Returns:
        The loss, ().
    """
    weights = [p for p in head.parameters() if p.requires_grad]
    return _Chunked.apply(hidden.flatten(0, -2), targets.flatten(), head, loss, chunk_tokens, *weights)


class _Chunked(Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, targets: Tensor, head: nn.Module, loss: Any, chunk_tokens: int, *weights: Tensor
    ) -> Tensor:
        differentiates = any(ctx.needs_input_grad)
        total = torch.zeros((), device=hidden.device)
        of_hidden = torch.empty_like(hidden) if differentiates else None
        of_weights = [torch.zeros_like(weight) for weight in weights] if differentiates else []
        chunks = zip(hidden.split(chunk_tokens), targets.split(chunk_tokens), strict=True)
        for number, (x, answers) in enumerate(chunks):
            share = len(x) / len(hidden)
            with torch.set_grad_enabled(differentiates):
                x = x.detach().requires_grad_(differentiates)
                value = loss(head(x), answers) * share
            total += value.detach()
            if of_hidden is not None:
                start = number * chunk_tokens
                gradient, *gradients = torch.autograd.grad(value, [x, *weights])
                of_hidden[start : start + len(x)] = gradient
                for summed, each in zip(of_weights, gradients, strict=True):
                    summed += each
        ctx.gradients = (of_hidden, of_weights)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        of_hidden, of_weights = ctx.gradients
        ctx.gradients = None
        return of_hidden * gradient, None, None, None, None, *(each * gradient for each in of_weights)
