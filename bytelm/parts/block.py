"""Block orders: where the normalisation stands, and whether attention and feed-forward follow each other."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from bytelm.parts.attention import Attention
from bytelm.parts.feedforward import FeedForward
from bytelm.parts.norm import Norm
from bytelm.parts.position import PositionEncoding


class Block(nn.Module, ABC):
    """Base of the blocks: holds the parts; a subclass orders them.

    Args:
        attention: The block's attention.
        feedforward: The block's feed-forward network.
        norm: Makes a normalisation over d_model.
        dropout: Probability of dropping an element of what a branch adds to the residual stream.
    """

    def __init__(
        self, attention: Attention, feedforward: FeedForward, norm: Callable[[], Norm], dropout: float
    ) -> None:
        super().__init__()
        self.attention_norm = norm()
        self.attention = attention
        self.feedforward_norm = norm()
        self.feedforward = feedforward
        self.dropout = nn.Dropout(dropout)

    @abstractmethod
    def forward(self, x: Tensor, position: PositionEncoding, **beside: Any) -> Tensor:
        """(B, T, d_model) to the same shape; what is given `beside` is for the attention (see Attention.forward)."""


class PreNorm(Block):
    """x + f(norm(x)) for both branches (GPT-2)."""

    def forward(self, x: Tensor, position: PositionEncoding, **beside: Any) -> Tensor:
        x = x + self.dropout(self.attention(self.attention_norm(x), position, **beside))
        return x + self.dropout(self.feedforward(self.feedforward_norm(x)))


class PostNorm(Block):
    """norm(x + f(x)) for both branches (Vaswani et al. 2017, arXiv:1706.03762)."""

    def forward(self, x: Tensor, position: PositionEncoding, **beside: Any) -> Tensor:
        x = self.attention_norm(x + self.dropout(self.attention(x, position, **beside)))
        return self.feedforward_norm(x + self.dropout(self.feedforward(x)))


class Parallel(Block):
    """x + attention(norm(x)) + feedforward(norm(x)), each with a norm of its own (GPT-NeoX, arXiv:2204.06745)."""

    def forward(self, x: Tensor, position: PositionEncoding, **beside: Any) -> Tensor:
        attended = self.attention(self.attention_norm(x), position, **beside)
        return x + self.dropout(attended) + self.dropout(self.feedforward(self.feedforward_norm(x)))
