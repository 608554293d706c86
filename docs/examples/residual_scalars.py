"""Per-layer scalars on the residual stream and on the first embedding.

    python -m bytelm fit --config my.yaml --model.gpt.block residual_scalars.ResidualScalars

As in modded-nanogpt: each block starts from a x + b x0, where x0 is the stream before the first block. The scalars are
in an optimizer group of their own, `scalar`, whose rate is logged as lr/scalar.
"""

from collections.abc import Callable
from typing import ClassVar

import torch
from torch import Tensor, nn

from bytelm.parts.contract import Attention, Context, FeedForward, Norm


class ResidualScalars(nn.Module):
    """Pre-norm, with a learned mixture of the stream and the first embedding in front.

    Args:
        attention: The block's attention.
        feedforward: The block's feed-forward network.
        norm: Makes a normalisation over d_model.
        dropout: Probability of dropping an element of what a branch adds.
    """

    supports_cache = True
    optimizer_groups: ClassVar = {"scalars": "scalar"}

    def __init__(
        self, attention: Attention, feedforward: FeedForward, norm: Callable[[], Norm], dropout: float
    ) -> None:
        super().__init__()
        self.attention, self.feedforward = attention, feedforward
        self.attention_norm, self.feedforward_norm = norm(), norm()
        self.dropout = nn.Dropout(dropout)
        self.scalars = nn.Parameter(torch.tensor([1.0, 0.0]))

    def forward(self, x: Tensor, context: Context) -> Tensor:
        x = self.scalars[0] * x + self.scalars[1] * context.first
        x = x + self.dropout(self.attention(self.attention_norm(x), context))
        return x + self.dropout(self.feedforward(self.feedforward_norm(x), context))
