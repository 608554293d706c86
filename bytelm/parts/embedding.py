"""Token embeddings: token ids (B, T) to vectors (B, T, d_model), and perhaps to values for the attentions."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bytelm.config.values import PositiveInt
from bytelm.errors import ConfigError


class TokenEmbedding(nn.Embedding):
    """One learned vector a token. A tied head reads logits off the same `weight`, (vocab_size, d_model).

    Args:
        vocab_size: Number of tokens.
        d_model: Width of the residual stream.

    Attributes:
        sparse_tables: Whether it has tables whose gradients are sparse, which not all optimizers and strategies take.
        gives_values: Whether attentions get something of the tokens, too (`values`).
    """

    sparse_tables = False
    gives_values = False

    def __init__(self, vocab_size: int, d_model: int) -> None:
        super().__init__(vocab_size, d_model)

    def make_values(self, dim: int) -> None:
        """Makes room for values of a width that is known once there are attentions; before the initialisation."""

    def values(self, tokens: Tensor) -> Tensor | None:
        """What tokens (B, T) add to the values of every attention, (B, T, n_kv_heads head_dim); None: nothing."""
        return None

    def looked_up(self) -> list[Tensor]:
        """Parameters of which a token reads some rows and multiplies with none: they cost no FLOPs."""
        return [self.weight]


class ScaledEmbedding(TokenEmbedding):
    """Embeddings times sqrt(d_model) (Vaswani et al. 2017, arXiv:1706.03762, 3.4).

    Args:
        vocab_size: Number of tokens.
        d_model: Width of the residual stream.
    """

    def forward(self, tokens: Tensor) -> Tensor:
        return F.embedding(tokens, self.weight) * math.sqrt(self.embedding_dim)


class ValueEmbedding(TokenEmbedding):
    """A second vector a token, added to its values in the attention of every block.

    So what a token hands on does not have to pass through the residual stream. After value residuals (Zhou et al. 2024,
    arXiv:2410.17897), which add the first block's values, and the value embeddings of modded-nanogpt. The table is as
    wide as the attention's values, n_kv_heads times the head dimension. It is looked up, so it costs no FLOPs.

    Args:
        vocab_size: Number of tokens.
        d_model: Width of the residual stream.
    """

    gives_values = True

    def make_values(self, dim: int) -> None:
        self.token_values = nn.Embedding(self.num_embeddings, dim)

    def values(self, tokens: Tensor) -> Tensor:
        return self.token_values(tokens)

    def looked_up(self) -> list[Tensor]:
        return [*super().looked_up(), self.token_values.weight]


class Table(nn.EmbeddingBag):
    """Vectors that are looked up by their row and start at zero; the optimizer has a group for them (see param_groups).

    Of EmbeddingBag it uses the name alone: of torch's two classes of tables, from which DistributedDataParallel expects
    sparse gradients, this is the one that initialisations leave alone.

    Args:
        rows: Number of vectors.
        dim: Their width.
        sparse: Whether the gradient holds only the rows that were looked up.
    """

    def __init__(self, rows: int, dim: int, sparse: bool) -> None:
        super().__init__(rows, dim, sparse=sparse)

    def reset_parameters(self) -> None:
        nn.init.zeros_(self.weight)

    # Inside a compiled graph a gradient cannot be sparse.
    @torch.compiler.disable
    def forward(self, rows: Tensor) -> Tensor:
        """Rows, of any shape, to their vectors, which are the last dimension."""
        return F.embedding(rows, self.weight, sparse=self.sparse)


class HashedNGrams(TokenEmbedding):
    """The token's own vector plus learned vectors of the last n tokens, for several n.

    Each order n has a table whose row is a hash of the last n tokens; what is found in all of them is concatenated and
    projected to d_model. The table is fastText's (Bojanowski et al. 2017, arXiv:1607.04606, 3.2), before a transformer
    as in the Byte Latent Transformer (Pagnoni et al. 2024, arXiv:2412.09871, 3.2.1), whose tables are as wide as the
    model and added up. Tables start at zero, so that training begins as it would without them.

    A table is memory rather than arithmetic: of millions of rows a token reads and changes `len(orders)`. Hence sparse
    gradients, which MuonAdamW takes; not for AdamW, FSDP, or DDP over NCCL.

    Args:
        vocab_size: Number of tokens.
        d_model: Width of the residual stream.
        orders: How many tokens each table's contexts have; each at least 2, none twice.
        buckets: Rows of each table; contexts with equal hashes share one.
        dim: Width of each table.
        sparse: Whether gradients of the tables are sparse; the training is the same.

    Raises:
        ConfigError: Orders that cannot be used.
    """

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
            raise ConfigError("orders", list(orders), "accepted: whole numbers from 2 on, none twice, at least one")
        self.sparse_tables = sparse
        self.orders = sorted(orders)
        self.buckets = buckets
        self.table = Table(len(orders) * buckets, dim, sparse)  # one for all orders: one gather, one sort
        self.project = nn.Linear(len(orders) * dim, d_model, bias=False)
        multipliers = torch.tensor([_int64((2 * n + 1) * GOLDEN) for n in self.orders])
        self.register_buffer("multipliers", multipliers, persistent=False)
        self.register_buffer("first_rows", buckets * torch.arange(len(orders)), persistent=False)

    def forward(self, tokens: Tensor) -> Tensor:
        return F.embedding(tokens, self.weight) + self.project(self.table(self.rows(tokens)).flatten(2))

    def looked_up(self) -> list[Tensor]:
        return [*super().looked_up(), self.table.weight]

    @torch.compiler.disable  # generated C++ promises no wrap-around
    def rows(self, tokens: Tensor) -> Tensor:
        """Token ids (B, T) to rows of the table, (B, T, len(orders)): at (b, t, i) that of the last orders[i] tokens.

        What would lie before a row of tokens is one more token, vocab_size. The hash is exact in 64 bits, and the same
        on every device, for ever: a checkpoint's tables are worth nothing under another.
        """
        seq_len, longest = tokens.shape[1], self.orders[-1]
        padded = F.pad(tokens.long(), (longest - 1, 0), value=self.num_embeddings)
        state = torch.zeros_like(padded[:, :seq_len])
        hashes = []
        for n in range(1, longest + 1):
            # Of the last n - 1 tokens to that of the last n. Both steps lose nothing: contexts that differ in one token
            # do not meet here.
            state = (state + padded[:, longest - n : longest - n + seq_len] + 1) * GOLDEN
            state = (state ^ _high(state)) * MIXER
            if n in self.orders:
                hashes.append(state)
        mixed = _high(torch.stack(hashes, dim=-1) * self.multipliers)
        return mixed % self.buckets + self.first_rows


def _int64(number: int) -> int:
    """The int64 of the same 64 bits."""
    return (number + 2**63) % 2**64 - 2**63


def _high(number: Tensor) -> Tensor:
    """The upper 32 of 64 bits, as a number of their own; int64's own shift would repeat the sign."""
    return (number >> 32) & 0xFFFFFFFF


# Odd, so that multiplying loses nothing: 2^64 over the golden ratio, and one of SplitMix64's (Steele et al. 2014).
GOLDEN = _int64(0x9E3779B97F4A7C15)
MIXER = _int64(0xBF58476D1CE4E5B9)
