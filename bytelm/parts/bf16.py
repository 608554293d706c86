"""Parts whose tables are in bfloat16, whatever the precision of the network."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bytelm.config.values import PositiveFloat
from bytelm.errors import ConfigError
from bytelm.parts.contract import Run
from bytelm.parts.embedding import TokenEmbedding
from bytelm.parts.position import Rotary


class BF16Embedding(TokenEmbedding):
    """TokenEmbedding with its table in bfloat16, for an untied head.

    The table, its gradient and the optimizer's state take half the memory traffic. Steps are rounded to three digits,
    which suits embeddings with a standard deviation near 1 and large steps.

    Args:
        vocab_size: Number of tokens.
        d_model: Width of the residual stream.
    """

    def __init__(self, vocab_size: int, d_model: int) -> None:
        super().__init__(vocab_size, d_model)
        self.to(torch.bfloat16)

    def connect(self, network: nn.Module) -> None:
        if network.tie_embeddings:
            accepted = f"accepted with the embedding {type(self).__name__}, whose table is in bfloat16: false"
            raise ConfigError("model.gpt.tie_embeddings", True, accepted)
        self._network = (network,)  # a tuple: the network is not a child of its embedding

    def check(self, run: Run) -> None:
        if run.strategy == "fsdp":
            accepted = (
                "accepted with fsdp, which shards weights of one type together: embeddings such as TokenEmbedding"
            )
            raise ConfigError("model.gpt.embedding", type(self).__name__, accepted)

    def forward(self, tokens: Tensor) -> Tensor:
        network: Any = self._network[0]
        return F.embedding(tokens, self.weight).to(network.head.weight.dtype)  # float32 unless all weights are lower


class BF16Rotary(Rotary):
    """Rotary with cosines and sines rounded to bfloat16, as in nanochat and autoresearch.

    In bf16-mixed precision Rotary rounds them as well; in float32 the results differ in the third digit.

    Args:
        d_model: Width of the residual stream.
        n_heads: Number of query heads; d_model / n_heads must be even.
        max_seq_len: Longest sequence, in tokens.
        base: Base of the geometric series of wavelengths.

    Raises:
        ConfigError: The head dimension is odd.
    """

    def __init__(self, d_model: int, n_heads: int, max_seq_len: int, base: PositiveFloat = 10_000.0) -> None:
        super().__init__(d_model, n_heads, max_seq_len, base)
        for table in (self.cos, self.sin):
            table.copy_(table.bfloat16())
