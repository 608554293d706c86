"""Limits of the logits, other than GPT's `logit_softcap`."""

import torch
from torch import Tensor

from bytelm.config.values import PositiveFloat
from bytelm.parts.contract import LogitCap


class SigmoidCap(LogitCap):
    """scale * sigmoid((logit + shift) / width), in float32: between 0 and `scale` (modded-nanogpt).

    Cross-entropy of these logits is the soft-capped cross-entropy of modded-nanogpt. It is a part of the network, not
    of the loss, because validation and generation need the same probabilities as training.

    Args:
        scale: Upper bound of the logits.
        shift: Added to a logit.
        width: Divides the sum. A larger width makes the curve flatter.
    """

    def __init__(self, scale: PositiveFloat = 23.0, shift: float = 5.0, width: PositiveFloat = 7.5) -> None:
        super().__init__()
        self.scale = scale
        self.shift = shift
        self.width = width

    def forward(self, logits: Tensor) -> Tensor:
        # In bf16, with three digits, the upper end of the curve would be a staircase.
        exact = logits.to(torch.promote_types(logits.dtype, torch.float32))
        return self.scale * torch.sigmoid((exact + self.shift) / self.width)
