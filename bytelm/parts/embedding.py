"""Token embeddings: token ids (B, T) to vectors (B, T, d_model)."""

import math

from torch import Tensor, nn
from torch.nn import functional as F


class TokenEmbedding(nn.Embedding):
    """One learned vector a token. A tied head reads logits off the same `weight`, (vocab_size, d_model).

    Args:
        vocab_size: Number of tokens.
        d_model: Width of the residual stream.
    """

    def __init__(self, vocab_size: int, d_model: int) -> None:
        super().__init__(vocab_size, d_model)


class ScaledEmbedding(TokenEmbedding):
    """Embeddings times sqrt(d_model) (Vaswani et al. 2017, arXiv:1706.03762, 3.4).

    Args:
        vocab_size: Number of tokens.
        d_model: Width of the residual stream.
    """

    def forward(self, tokens: Tensor) -> Tensor:
        return F.embedding(tokens, self.weight) * math.sqrt(self.embedding_dim)
