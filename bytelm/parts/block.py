"""Blocks: the order of normalisation, attention and feed-forward."""

from collections.abc import Callable

from torch import Tensor, nn

from bytelm.parts import contract
from bytelm.parts.contract import Attention, Context, FeedForward, Norm


class TwoBranchBlock(contract.Block):
    """Base of blocks with one attention and one feed-forward; a subclass defines their order.

    Args:
        attention: The block's attention.
        feedforward: The block's feed-forward network.
        norm: Makes a normalisation over d_model.
        dropout: Probability of dropping an element of a branch's output.
    """

    supports_cache = True
    shares_norm = False  # whether both branches have one normalisation, `norm`, instead of one each

    def __init__(
        self, attention: Attention, feedforward: FeedForward, norm: Callable[[], Norm], dropout: float
    ) -> None:
        super().__init__()
        if self.shares_norm:
            self.norm = norm()
        else:
            self.attention_norm = norm()
        self.attention = attention
        if not self.shares_norm:
            self.feedforward_norm = norm()
        self.feedforward = feedforward
        self.dropout = nn.Dropout(dropout)


class PreNorm(TwoBranchBlock):
    """x + f(norm(x)) for both branches (GPT-2)."""

    def forward(self, x: Tensor, context: Context) -> Tensor:
        x = x + self.dropout(self.attention(self.attention_norm(x), context))
        return x + self.dropout(self.feedforward(self.feedforward_norm(x), context))


class PostNorm(TwoBranchBlock):
    """norm(x + f(x)) for both branches (Vaswani et al. 2017, arXiv:1706.03762)."""

    def forward(self, x: Tensor, context: Context) -> Tensor:
        x = self.attention_norm(x + self.dropout(self.attention(x, context)))
        return self.feedforward_norm(x + self.dropout(self.feedforward(x, context)))


class Parallel(TwoBranchBlock):
    """x + attention(norm1(x)) + feedforward(norm2(x)) (GPT-NeoX, arXiv:2204.06745)."""

    def forward(self, x: Tensor, context: Context) -> Tensor:
        attended = self.attention(self.attention_norm(x), context)
        return x + self.dropout(attended) + self.dropout(self.feedforward(self.feedforward_norm(x), context))


class ParallelSharedNorm(TwoBranchBlock):
    """x + attention(norm(x)) + feedforward(norm(x)), with one normalisation for both branches.

    GPT-J and PaLM (Chowdhery et al. 2022, arXiv:2204.02311, 2).
    """

    shares_norm = True

    def forward(self, x: Tensor, context: Context) -> Tensor:
        normed = self.norm(x)
        return x + self.dropout(self.attention(normed, context)) + self.dropout(self.feedforward(normed, context))
