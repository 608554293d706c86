"""Pre-norm with two learned scalars in front: one for the residual stream, one for the first embedding."""

from collections.abc import Callable
from typing import ClassVar

import torch
from torch import Tensor, nn

from bytelm.parts.block import PreNorm
from bytelm.parts.contract import Attention, Context, FeedForward, Norm


class ScaledPreNorm(PreNorm):
    """PreNorm of a x + b x0, with learned scalars a and b; x0 is the residual stream before the first block.

    As in modded-nanogpt, nanochat and autoresearch. Each scalar has an optimizer group: `stream_scalar` (a) and
    `first_scalar` (b).

    Args:
        attention: The block's attention.
        feedforward: The block's feed-forward network.
        norm: Makes a normalisation over d_model.
        dropout: Probability of dropping an element of a branch's output.
        stream: Initial value of a.
        first: Initial value of b.
    """

    optimizer_groups: ClassVar = {"stream": "stream_scalar", "first": "first_scalar"}

    def __init__(
        self,
        attention: Attention,
        feedforward: FeedForward,
        norm: Callable[[], Norm],
        dropout: float,
        stream: float = 1.0,
        first: float = 0.1,
    ) -> None:
        super().__init__(attention, feedforward, norm, dropout)
        self.stream = nn.Parameter(torch.tensor([stream]))  # one element, because fsdp does not shard scalars
        self.first = nn.Parameter(torch.tensor([first]))

    def forward(self, x: Tensor, context: Context) -> Tensor:
        assert context.first is not None
        # Elements, not vectors: a float32 vector would convert a stream in bf16 to float32.
        return super().forward(self.stream[0] * x + self.first[0] * context.first, context)
