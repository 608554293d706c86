"""Block orders: where the normalisation stands, and whether attention and feed-forward follow each other."""

from abc import ABC, abstractmethod
from collections.abc import Callable

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
    def forward(self, x: Tensor, position: PositionEncoding) -> Tensor:
        """(B, T, d_model) to the same shape."""


class PreNorm(Block):
    """x + f(norm(x)) for both branches (GPT-2)."""

    def forward(self, x: Tensor, position: PositionEncoding) -> Tensor:
        x = x + self.dropout(self.attention(self.attention_norm(x), position))
        return x + self.dropout(self.feedforward(self.feedforward_norm(x)))


class PostNorm(Block):
    """norm(x + f(x)) for both branches (Vaswani et al. 2017, arXiv:1706.03762)."""

    def forward(self, x: Tensor, position: PositionEncoding) -> Tensor:
        x = self.attention_norm(x + self.dropout(self.attention(x, position)))
        return self.feedforward_norm(x + self.dropout(self.feedforward(x)))


class Parallel(Block):
    """x + attention(norm(x)) + feedforward(norm(x)), each with a norm of its own (GPT-NeoX, arXiv:2204.06745)."""

    def forward(self, x: Tensor, position: PositionEncoding) -> Tensor:
        attended = self.attention(self.attention_norm(x), position)
        return x + self.dropout(attended) + self.dropout(self.feedforward(self.feedforward_norm(x)))
