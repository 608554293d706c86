"""GPT: a causal transformer whose every part is injected.

    tokens -> embedding -> memory.embed -> position.embed -> n_layers x block -> norm -> head -> memory.mix -> logits

The constructor takes small factories, one a part; a config names another class to swap one. Notable:
- one position encoding, shared by all blocks, acts on embeddings, on queries and keys, or on scores;
- a memory, none by default, tells of what followed the same context elsewhere;
- writing token by token (generate.py), a cache keeps the keys and values of the tokens before;
- the head is tied to the token embedding unless told otherwise;
- the last thing that happens is the initialisation, a part too.
"""

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from bytelm.config.values import PositiveFloat, PositiveInt, UnitInterval
from bytelm.errors import ConfigError
from bytelm.parts.attention import SDPA, Attention, KVCache
from bytelm.parts.block import Block, PreNorm
from bytelm.parts.embedding import TokenEmbedding
from bytelm.parts.feedforward import GELU, FeedForward
from bytelm.parts.init import Initialization, Normal
from bytelm.parts.memory import Memory, NoMemory
from bytelm.parts.norm import LayerNorm, Norm
from bytelm.parts.position import PositionEncoding, Rotary


class GPT(nn.Module):
    """A causal transformer language model.

    Args:
        d_model: Width of the residual stream.
        n_heads: Number of attention heads; divides d_model.
        n_layers: Number of blocks.
        d_ff: Width of the feed-forward's hidden layer; default 4 d_model.
        vocab_size: Number of tokens; 256 for bytes.
        max_seq_len: Longest sequence, in tokens.
        position: Position encoding: Rotary, Learned, Sinusoidal, ALiBi, NoPosition.
        embedding: Token embedding: TokenEmbedding, ScaledEmbedding, ValueEmbedding, HashedNGrams.
        attention: Attention: SDPA, Explicit, FlashAttention; its options are n_kv_heads, qk_norm, dropout, bias.
        feedforward: Feed-forward: ReLU, GELU, SiLU, ReLUSquared, SwiGLU, GeGLU, FusedGELU.
        memory: Memory: NoMemory, NGramMemory.
        norm: Normalisation: LayerNorm, RMSNorm.
        block: Order of a block: PreNorm, PostNorm, Parallel.
        init: Initialisation: Normal, FanIn.
        tie_embeddings: Whether the head reads logits off the token embedding's weights.
        head_bias: Whether the head has a bias.
        norm_embeddings: Whether the embeddings are normalised before the first block.
        logit_softcap: Logits become c tanh(logits / c), within (-c, c), before a memory mixes into them (Gemma 2,
            arXiv:2408.00118); none by default.
        residual_autocast: Whether under mixed precision the residual stream is in its lower precision, too. Otherwise
            it is in float32, as the embeddings are, and takes twice the memory's time.
        dropout: Probability of dropping an element of the embeddings and of what each branch adds (GPT-2's).

    Raises:
        ConfigError: Values that do not fit together; the message names them.
    """

    def __init__(
        self,
        d_model: PositiveInt = 128,
        n_heads: PositiveInt = 4,
        n_layers: PositiveInt = 4,
        d_ff: PositiveInt | None = None,
        vocab_size: PositiveInt = 256,
        max_seq_len: PositiveInt = 256,
        position: Callable[[int, int, int], PositionEncoding] = Rotary,
        embedding: Callable[[int, int], TokenEmbedding] = TokenEmbedding,
        attention: Callable[[int, int], Attention] = SDPA,
        feedforward: Callable[[int, int], FeedForward] = GELU,
        memory: Callable[[int, int], Memory] = NoMemory,
        norm: Callable[[int], Norm] = LayerNorm,
        block: Callable[[Attention, FeedForward, Callable[[], Norm], float], Block] = PreNorm,
        init: Callable[[], Initialization] = Normal,
        tie_embeddings: bool = True,
        head_bias: bool = False,
        norm_embeddings: bool = False,
        logit_softcap: PositiveFloat | None = None,
        residual_autocast: bool = False,
        dropout: UnitInterval = 0.0,
    ) -> None:
        super().__init__()
        if d_model % n_heads:
            raise ConfigError("n_heads", n_heads, f"accepted: divisors of d_model, which is {d_model}")
        self.vocab_size = vocab_size
        self.max_seq_len = max_seq_len
        self.d_model = d_model
        self.logit_softcap = logit_softcap
        self.residual_autocast = residual_autocast
        self.tie_embeddings = tie_embeddings

        self.embedding = embedding(vocab_size, d_model)
        self.memory = memory(vocab_size, d_model)
        self.position = position(d_model, n_heads, max_seq_len)
        self.embedding_norm = norm(d_model) if norm_embeddings else nn.Identity()
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(
            block(
                attention(d_model, n_heads),
                feedforward(d_model, 4 * d_model if d_ff is None else d_ff),
                lambda: norm(d_model),
                dropout,
            )
            for _ in range(n_layers)
        )
        if self.embedding.gives_values:
            self._make_values()
        self.norm = norm(d_model)
        self.head = nn.Linear(d_model, vocab_size, bias=head_bias)
        if tie_embeddings:
            self.head.weight = self.embedding.weight
        init()(self, n_layers)
        self.memory.initialize()

    def forward(self, tokens: Tensor, cache: list[KVCache] | None = None) -> Tensor:
        """Logits of each next token.

        Args:
            tokens: Token ids (B, T), T <= max_seq_len.
            cache: Of the first tokens, as many as are in it, the keys and values, one entry a block (`new_cache`). They
                are not computed again, and those of the others are added to it.

        Returns:
            (B, T, vocab_size); with a cache those of the tokens that were not in it.
        """
        assert tokens.shape[1] <= self.max_seq_len, f"{tokens.shape[1]} tokens, max_seq_len is {self.max_seq_len}"
        seen = 0 if cache is None else cache[0].length
        # Parts are told of a cache, and of values, only where there are any: a user's own may know of neither.
        start: dict[str, Any] = {"start": seen} if seen else {}
        evidence = self.memory.recall(tokens, **start)
        x, values = self.embedding(tokens), self.embedding.values(tokens)
        if seen:  # embeddings may look back over all tokens; what follows is of the new ones alone
            x, values = x[:, seen:], None if values is None else values[:, seen:]
        x = self.dropout(self.embedding_norm(self.position.embed(self.memory.embed(x, evidence), **start)))
        if self.residual_autocast and torch.is_autocast_enabled(x.device.type):
            x = x.to(torch.get_autocast_dtype(x.device.type))
        beside: dict[str, Any] = {} if values is None else {"values": values}
        for i, block in enumerate(self.blocks):
            own = beside if cache is None else {**beside, "cache": cache[i]}
            x = block(x, self.position, **own)
        x = self.norm(x)
        logits = self.head(x)
        if self.logit_softcap is not None:
            logits = self.logit_softcap * torch.tanh(logits / self.logit_softcap)
        return self.memory.mix(logits, x, evidence)

    def new_cache(self) -> list[KVCache] | None:
        """An empty cache for `forward`; None where a part, one of the user's own, knows of none."""
        block: Any = self.blocks[0]
        telling = [(part.forward, "cache") for part in (self, block, block.attention)]
        telling += [(self.position.embed, "start"), (self.position.rotate, "start"), (self.memory.recall, "start")]
        if not all(_takes(function, argument) for function, argument in telling):
            return None
        return [KVCache(self.max_seq_len) for _ in self.blocks]

    def hidden(self) -> nn.Module:
        """What lies between the embeddings and the head: its matrices are what Muon is for."""
        return nn.ModuleList([*self.blocks, self.memory.reader])

    def num_params(self) -> int:
        """Number of parameters, shared ones counted once."""
        return sum(p.numel() for p in self.parameters())

    def flops_per_token(self, seq_len: int) -> int:
        """FLOPs that training takes per token, forward and backward: 6 N + 12 n_layers d_model seq_len.

        N leaves out tables that are only looked up. The second term is attention's, unmasked, as is the custom
        (Chowdhery et al. 2022, arXiv:2204.02311, appendix B).
        """
        looked_up = [*self.position.parameters(), *self.embedding.looked_up()]
        if self.tie_embeddings:  # then the head multiplies with the token embedding
            looked_up = [p for p in looked_up if p is not self.head.weight]
        n_looked_up = sum(p.numel() for p in looked_up)
        return 6 * (self.num_params() - n_looked_up) + 12 * len(self.blocks) * self.d_model * seq_len

    def _make_values(self) -> None:
        """Lets the embedding give values to the attentions, now that their width is known."""
        block: Any = self.blocks[0]
        for part in (block, block.attention):
            if not _takes(part.forward, "values"):
                raise ConfigError(
                    "embedding",
                    type(self.embedding).__name__,
                    f"accepted with {type(part).__name__}, whose forward takes no `values`: embeddings without them",
                )
        self.embedding.make_values(block.attention.n_kv_heads * block.attention.head_dim)


def _takes(function: Callable[..., Any], argument: str) -> bool:
    """Whether a function has an argument of this name, or passes on what it does not know."""
    parameters = inspect.signature(function).parameters.values()
    return any(p.name == argument or p.kind is p.VAR_KEYWORD for p in parameters)
