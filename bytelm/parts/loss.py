"""Training losses. Validation does not use them: it always reports plain cross-entropy."""

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bytelm.config.values import NonNegativeFloat, UnitInterval


class Loss(nn.Module, ABC):
    """Base of the training losses."""

    @abstractmethod
    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Logits (B, T, vocab_size) and targets (B, T) to one number, in nats per token."""


class CrossEntropy(Loss):
    """Mean cross-entropy, with two optional regularisers.

    Args:
        label_smoothing: Weight that the targets share out evenly over the vocabulary
            (Szegedy et al. 2015, arXiv:1512.00567).
        z_loss: Weight of the mean of log(Z)^2, Z the softmax's normaliser, which keeps logits from drifting
            (Chowdhery et al. 2022, arXiv:2204.02311, 5).
    """

    def __init__(self, label_smoothing: UnitInterval = 0.0, z_loss: NonNegativeFloat = 0.0) -> None:
        super().__init__()
        self.label_smoothing = label_smoothing
        self.z_loss = z_loss

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        logits = logits.float()  # a bf16 network's too: bf16 has three digits
        loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), label_smoothing=self.label_smoothing)
        if self.z_loss:
            loss = loss + self.z_loss * logits.logsumexp(dim=-1).square().mean()
        return loss


class FusedCrossEntropy(Loss):
    """Mean cross-entropy, on GPUs in one pass over the logits, which become their own gradients.

    For vocabularies of tens of thousands; the mathematics of CrossEntropy. Elsewhere than on GPUs it is the plain one.
    The kernel is in bytelm/kernels/cross_entropy.py.
    """

    def __init__(self) -> None:
        super().__init__()
        # What the loss was multiplied with last time, which is the share that a batch has of a step: guessed to be so
        # again. No buffer, which ddp would send to all ranks before every batch.
        self._factor: Tensor | None = None

    @torch.compiler.disable
    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        if logits.device.type != "cuda":
            return F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten())
        from bytelm.kernels.cross_entropy import cross_entropy  # triton, which torch brings along for GPUs alone

        if self._factor is None:
            self._factor = torch.ones((), device=logits.device)
        return cross_entropy(logits.flatten(0, 1), targets.flatten(), self._factor)
