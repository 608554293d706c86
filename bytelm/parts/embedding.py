"""Token embeddings: token ids (B, T) to vectors (B, T, d_model), and optionally to values for the attentions."""

import math
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bytelm.config.values import PositiveInt
from bytelm.errors import ConfigError
from bytelm.parts import contract
from bytelm.parts.contract import Run
from bytelm.system import compiler


class TokenEmbedding(nn.Embedding, contract.Embedding):
    """One learned vector a token. A tied head uses the same `weight`, (vocab_size, d_model).

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


class ValueEmbedding(TokenEmbedding):
    """A second vector a token, added to its values in the attention of every block, or of chosen ones.

    Attention then has direct access to the tokens, beside the residual stream. Follows value residuals (Zhou et al.
    2024, arXiv:2410.17897), which add the first block's values, and the value embeddings of modded-nanogpt. The table
    is as wide as the attention's values, n_kv_heads times the head dimension. The lookup needs no FLOPs.

    Args:
        vocab_size: Number of tokens.
        d_model: Width of the residual stream.
        layers: Numbers of the blocks, from 0; -1 is the last one. Default: all.

    Raises:
        ConfigError: The network has no block of such a number, or there is no number.
    """

    def __init__(self, vocab_size: int, d_model: int, layers: tuple[int, ...] | None = None) -> None:
        super().__init__(vocab_size, d_model)
        self.layers = layers
        self.value_layers: frozenset[int] | None = None

    def connect(self, network: nn.Module) -> None:
        if self.layers is not None:
            n_layers = len(network.blocks)  # type: ignore[arg-type]
            if not self.layers or not all(-n_layers <= layer < n_layers for layer in self.layers):
                accepted = f"accepted: one or more of {-n_layers} to {n_layers - 1}, as n_layers is {n_layers}"
                raise ConfigError("model.gpt.embedding.layers", list(self.layers), accepted)
            self.value_layers = frozenset(layer % n_layers for layer in self.layers)
        widths = {attention.value_dim for attention in contract.declaring(network, "value_dim")}
        if len(widths) != 1:
            accepted = (
                f"accepted with attentions that take values, all of one width; these take {sorted(widths) or 'none'}"
            )
            raise ConfigError("model.gpt.embedding", type(self).__name__, accepted)
        self.token_values = nn.Embedding(self.num_embeddings, widths.pop())

    def values(self, tokens: Tensor) -> Tensor:
        return self.token_values(tokens)


class ZeroTable(nn.Embedding):
    """A table of vectors that start at zero.

    Args:
        rows: Number of vectors.
        dim: Width of a vector.
        sparse: Whether the gradient contains only the rows that were looked up.
    """

    initializes_itself = True

    def __init__(self, rows: int, dim: int, sparse: bool = False) -> None:
        super().__init__(rows, dim, sparse=sparse)

    def reset_parameters(self) -> None:
        nn.init.zeros_(self.weight)


class UncompiledTable(ZeroTable):
    """A table whose gradient can be sparse, which it cannot be inside a compiled graph."""

    @compiler.disable
    def forward(self, rows: Tensor) -> Tensor:
        """Row numbers, (...), to their vectors, (..., dim)."""
        return super().forward(rows)


class HashedNGrams(TokenEmbedding):
    """The token's vector plus learned vectors of the last n tokens, for several n.

    Each order n has a table; a hash of the last n tokens selects its row. The rows of all orders are concatenated and
    projected to d_model. The tables are fastText's (Bojanowski et al. 2017, arXiv:1607.04606, 3.2). The Byte Latent
    Transformer (Pagnoni et al. 2024, arXiv:2412.09871, 3.2.1) has such tables before a transformer; they are as wide as
    the model, and their rows are summed. The tables are initialised with zeros: training begins as without them.

    Tables need memory and little arithmetic: a token reads and changes `len(orders)` of millions of rows. Their
    gradients are therefore sparse. MuonAdamW accepts sparse gradients; AdamW, FSDP and DDP over NCCL do not.

    Args:
        vocab_size: Number of tokens.
        d_model: Width of the residual stream.
        orders: Number of tokens of each table's contexts; each at least 2, without duplicates.
        buckets: Rows of each table; contexts with equal hashes share a row.
        dim: Width of each table.
        sparse: Whether gradients of the tables are sparse. Training is the same with dense ones.

    Raises:
        ConfigError: The orders are invalid.
    """

    optimizer_groups: ClassVar = {"table": "table"}
    multipliers: Tensor
    first_rows: Tensor

    def __init__(
        self,
        vocab_size: int,
        d_model: int,
        orders: tuple[int, ...] = (2, 3, 4, 5, 6, 7, 8),
        buckets: PositiveInt = 131_072,
        dim: PositiveInt = 32,
        sparse: bool = True,
    ) -> None:
        super().__init__(vocab_size, d_model)
        if not orders or min(orders) < 2 or len(set(orders)) < len(orders):
            raise ConfigError("orders", list(orders), "accepted: one or more distinct integers, each at least 2")
        self.sparse_tables = sparse
        self.orders = sorted(orders)
        self.buckets = buckets
        self.table = UncompiledTable(len(orders) * buckets, dim, sparse)  # one for all orders: one gather, one sort
        self.project = nn.Linear(len(orders) * dim, d_model, bias=False)
        multipliers = torch.tensor([_int64((2 * n + 1) * GOLDEN) for n in self.orders])
        self.register_buffer("multipliers", multipliers, persistent=False)
        self.register_buffer("first_rows", buckets * torch.arange(len(orders)), persistent=False)

    def forward(self, tokens: Tensor) -> Tensor:
        return F.embedding(tokens, self.weight) + self.project(self.table(self.rows(tokens)).flatten(2))

    def check(self, run: Run) -> None:
        key = "model.gpt.embedding.sparse"
        if self.sparse_tables and not run.takes_sparse_gradients():
            accepted = "accepted: false, or the optimizer MuonAdamW"
            raise ConfigError(key, True, f"{run.optimizer} does not support sparse gradients; {accepted}")
        on_gpus = run.strategy == "ddp" and run.device.type == "cuda"
        if self.sparse_tables and (run.strategy in ("fsdp", "ShardedStep") or on_gpus):
            raise ConfigError(key, True, "accepted: false, with fsdp, with ShardedStep or with ddp on GPUs")

    @compiler.disable  # generated C++ does not guarantee wrap-around
    def rows(self, tokens: Tensor) -> Tensor:
        """Token ids (B, T) to rows of the table, (B, T, len(orders)); (b, t, i) is that of the last orders[i] tokens.

        Positions before the first token count as the additional token vocab_size. The hash is exact in 64 bits and the
        same on every device. It must never change, because the tables of checkpoints depend on it.
        """
        seq_len, longest = tokens.shape[1], self.orders[-1]
        padded = F.pad(tokens.long(), (longest - 1, 0), value=self.num_embeddings)
        state = torch.zeros_like(padded[:, :seq_len])
        hashes = []
        for n in range(1, longest + 1):
            # From the hash of the last n - 1 tokens to that of the last n. Both steps are invertible: contexts that
            # differ in one token have different states.
            state = (state + padded[:, longest - n : longest - n + seq_len] + 1) * GOLDEN
            state = (state ^ _high(state)) * MIXER
            if n in self.orders:
                hashes.append(state)
        mixed = _high(torch.stack(hashes, dim=-1) * self.multipliers)
        return mixed % self.buckets + self.first_rows


def _int64(number: int) -> int:
    """The int64 with the same 64 bits."""
    return (number + 2**63) % 2**64 - 2**63


def _high(number: Tensor) -> Tensor:
    """The upper 32 of 64 bits as a non-negative number; a plain shift of an int64 would repeat the sign."""
    return (number >> 32) & 0xFFFFFFFF


# Odd, which makes the products invertible: 2^64 over the golden ratio, and one of SplitMix64's (Steele et al. 2014).
GOLDEN = _int64(0x9E3779B97F4A7C15)
MIXER = _int64(0xBF58476D1CE4E5B9)
