"""Hashed bigrams that are added to the residual stream before every layer."""

from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bytelm.config.values import PositiveInt
from bytelm.parts.embedding import TokenEmbedding, ZeroTable

# Arbitrary large factors, which spread pairs of tokens over the table. They must never change, because the tables of
# checkpoints depend on them.
CURRENT, PREVIOUS = 36313, 27191


class BigramHash(TokenEmbedding):
    """The token's vector; a vector of the last two tokens is added to the residual stream before every layer.

    Layer l starts from x + s_l table[h], with a learned scalar s_l and the row
    h = (36313 token XOR 27191 previous token) mod (rows - 1). The first token of a row has the last row of the table.
    As in modded-nanogpt, after Svenstrup et al. 2017, arXiv:1709.03933. The table is as wide as the residual stream and
    starts at zero: training begins as without it. HashedNGrams has longer contexts, narrow tables and no scalars.

    The lookup needs no FLOPs. The gradient of the table is dense: the optimizer reads and writes all of its
    `rows_per_token * vocab_size * d_model` elements in every step. It has the optimizer group `bigram_embedding`, the
    scalars have the group `scalar`.

    Args:
        vocab_size: Number of tokens.
        d_model: Width of the residual stream.
        rows_per_token: Rows of the table, in multiples of vocab_size.
        scale: Initial value of the scalars.
    """

    optimizer_groups: ClassVar = {"table": "bigram_embedding", "scalars": "scalar"}

    def __init__(self, vocab_size: int, d_model: int, rows_per_token: PositiveInt = 5, scale: float = 0.05) -> None:
        super().__init__(vocab_size, d_model)
        self.table = ZeroTable(rows_per_token * vocab_size, d_model)
        self.scale = scale

    def connect(self, network: nn.Module) -> None:
        n_layers = len(network.blocks)  # type: ignore[arg-type]
        self.scalars = nn.Parameter(torch.full((n_layers,), self.scale))

    def rows(self, tokens: Tensor) -> Tensor:
        """Token ids (B, T) to rows of the table, (B, T)."""
        last = self.table.num_embeddings - 1
        tokens = tokens.long()
        rows = torch.bitwise_xor(CURRENT * tokens[:, 1:], PREVIOUS * tokens[:, :-1]) % last
        return F.pad(rows, (1, 0), value=last)

    def recurring(self, tokens: Tensor) -> Tensor:
        return self.table(self.rows(tokens))

    def add(self, x: Tensor, vectors: Tensor, layer: int) -> Tensor:
        # An element, not a vector: a float32 vector would convert a stream in bf16 to float32.
        return x + self.scalars[layer] * vectors.to(x.dtype)
