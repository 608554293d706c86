"""Attention with a table of token values in every other layer, gated by head, as in nanochat and autoresearch."""

import math
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from bytelm.config.values import PositiveInt
from bytelm.errors import ConfigError
from bytelm.parts.attention import WindowedSDPA, gates_of, head_gate
from bytelm.parts.contract import Context, PositionEncoding, Run

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class ValueTable(nn.Embedding):
    """A vector of values for each token, uniform with the standard deviation 1 / sqrt(d_model) of a projection.

    Args:
        vocab_size: Number of tokens.
        value_dim: Width of the values.
        d_model: Width of the residual stream.
        dtype: Type of the table.
    """

    initializes_itself = True

    def __init__(self, vocab_size: int, value_dim: int, d_model: int, dtype: torch.dtype) -> None:
        self.bound = math.sqrt(3 / d_model)
        super().__init__(vocab_size, value_dim, dtype=dtype)

    def reset_parameters(self) -> None:
        nn.init.uniform_(self.weight, -self.bound, self.bound)


class GatedValueAttention(WindowedSDPA):
    """WindowedSDPA with a value table in every other layer, the last one included.

    A layer with a table adds 2 sigmoid(W x[:gate_dim]) times the token's vector to the values, with one gate for each
    key/value head. x is the attention's input. W starts at zero: the gates start at 1. Value embeddings: Zhou
    et al. 2024, arXiv:2410.17897, and modded-nanogpt.

    Positions rotate queries and keys before `qk_norm`. The order matters for BF16Rotary, whose rounded tables change
    lengths.

    Args:
        d_model: Width of the residual stream.
        n_heads: Number of query heads; divides d_model.
        args: SDPA's other options.
        gate_dim: Number of dimensions of x that the gates read.
        table_dtype: Type of the value tables, `float32` or `bfloat16`. bfloat16 halves the memory traffic of the
            optimizer, and its steps are rounded to three digits.
        layer: Number of the layer, from 0.
        n_layers: Number of layers.
        kwargs: WindowedSDPA's other options. `bias` does not apply to the gates.

    Raises:
        ConfigError: gate_dim is above d_model, or the pattern has other letters.
    """

    optimizer_groups: ClassVar = {"value_table": "value_embedding"}

    def __init__(
        self,
        d_model: int,
        n_heads: int,
        *args: Any,
        gate_dim: PositiveInt = 32,
        table_dtype: Literal["float32", "bfloat16"] = "float32",
        layer: int,
        n_layers: int,
        **kwargs: Any,
    ) -> None:
        super().__init__(d_model, n_heads, *args, layer=layer, n_layers=n_layers, **kwargs)
        self.d_model = d_model
        self.table_dtype = DTYPES[table_dtype]
        has_table = (n_layers - 1 - layer) % 2 == 0
        self.gate = head_gate(d_model, gate_dim, self.n_kv_heads) if has_table else None
        self.value_table: ValueTable | None = None

    def connect(self, network: nn.Module) -> None:
        if self.gate is not None:  # only here the size of the vocabulary is known
            vocab_size: int = network.vocab_size  # type: ignore[assignment]
            self.value_table = ValueTable(vocab_size, self.value_dim, self.d_model, self.table_dtype)

    def after_init(self) -> None:
        if self.gate is not None:
            nn.init.zeros_(self.gate.weight)

    def check(self, run: Run) -> None:
        if run.strategy == "fsdp" and self.table_dtype != torch.float32:
            accepted = "accepted with fsdp, which shards weights of one type together: float32"
            raise ConfigError("model.gpt.attention.table_dtype", "bfloat16", accepted)

    def with_values(self, v: Tensor, x: Tensor, context: Context) -> Tensor:
        v = super().with_values(v, x, context)
        if self.gate is None or self.value_table is None:
            return v
        of_tokens = self.value_table(context.tokens[:, context.start :]).unflatten(-1, (self.n_kv_heads, -1))
        return v + (gates_of(self.gate, x)[..., None] * of_tokens).transpose(1, 2).to(v.dtype)

    def placed(self, q: Tensor, k: Tensor, position: PositionEncoding, start: int) -> tuple[Tensor, Tensor]:
        q, k = position.rotate(q, k, start)
        return self.q_norm(q), self.k_norm(k)
