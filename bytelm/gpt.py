"""GPT: a causal transformer with injected parts.

    tokens -> embedding -> memory.embed -> position.embed -> n_layers x block -> norm -> head -> memory.mix -> logits

The constructor takes a factory for each part; a config replaces a part by naming another class. parts/contract.py
defines the kinds of parts. This file uses the contracts and no particular part. Notable:

- a block, its attention and its feed-forward can ask for their layer's number, which lets layers differ;
- one Context, shared by all blocks, contains the values that parts can read beside their input;
- one position encoding acts on embeddings, on queries and keys, or on scores;
- in generation a cache keeps the attentions' data of earlier tokens, if all parts support it;
- the head is tied to the token embedding by default;
- the last step of construction is the initialisation, which is also a part.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from bytelm.config.untrusted_config import nameable
from bytelm.config.values import PositiveFloat, PositiveInt, UnitInterval
from bytelm.errors import ConfigError
from bytelm.parts import contract
from bytelm.parts.attention import SDPA
from bytelm.parts.block import PreNorm
from bytelm.parts.contract import (
    Context,
    Embedding,
    Initialization,
    LogitCap,
    MakeAttention,
    MakeBlock,
    MakeFeedForward,
    Memory,
    Norm,
    PositionEncoding,
)
from bytelm.parts.embedding import TokenEmbedding
from bytelm.parts.feedforward import GELU
from bytelm.parts.init import Normal
from bytelm.parts.memory import NoMemory
from bytelm.parts.norm import LayerNorm
from bytelm.parts.position import Rotary


@nameable
class GPT(nn.Module):
    """A causal transformer language model.

    Args:
        d_model: Width of the residual stream.
        n_heads: Number of attention heads; divides d_model.
        n_layers: Number of blocks.
        d_ff: Width of the feed-forward's hidden layer; default 4 d_model.
        vocab_size: Number of tokens; 256 for bytes.
        max_seq_len: Longest sequence, in tokens.
        position: Position encoding.
        embedding: Token embedding.
        attention: Attention.
        feedforward: Feed-forward network.
        memory: Memory.
        norm: Normalisation.
        block: Block: the order of normalisation, attention and feed-forward.
        init: Initialisation.
        tie_embeddings: Whether the head uses the token embedding's weights.
        head_bias: Whether the head has a bias.
        norm_embeddings: Whether the embeddings are normalised before the first block.
        logit_softcap: If given, logits become c tanh(logits / c), within (-c, c), before a memory changes them
            (Gemma 2, arXiv:2408.00118).
        logit_cap: Another limit of the logits, instead of `logit_softcap`.
        residual_autocast: Whether mixed precision applies to the residual stream, too. Otherwise the stream is in
            float32 like the embeddings and needs twice the memory traffic.
        dropout: Probability of dropping an element of the embeddings and of each branch's output (GPT-2).

    Raises:
        ConfigError: Values are incompatible, or a part does not have the methods of its kind; the message names them.
    """

    optimizer_groups: ClassVar = {"blocks": "hidden", "head": "head"}

    def __init__(
        self,
        d_model: PositiveInt = 128,
        n_heads: PositiveInt = 4,
        n_layers: PositiveInt = 4,
        d_ff: PositiveInt | None = None,
        vocab_size: PositiveInt = 256,
        max_seq_len: PositiveInt = 256,
        position: Callable[[int, int, int], PositionEncoding] = Rotary,
        embedding: Callable[[int, int], Embedding] = TokenEmbedding,
        attention: MakeAttention = SDPA,
        feedforward: MakeFeedForward = GELU,
        memory: Callable[[int, int], Memory] = NoMemory,
        norm: Callable[[int], Norm] = LayerNorm,
        block: MakeBlock = PreNorm,
        init: Callable[[], Initialization] = Normal,
        tie_embeddings: bool = True,
        head_bias: bool = False,
        norm_embeddings: bool = False,
        logit_softcap: PositiveFloat | None = None,
        logit_cap: Callable[[], LogitCap] | None = None,
        residual_autocast: bool = False,
        dropout: UnitInterval = 0.0,
    ) -> None:
        super().__init__()
        if d_model % n_heads:
            raise ConfigError("n_heads", n_heads, f"accepted: divisors of d_model, which is {d_model}")
        if logit_softcap is not None and logit_cap is not None:
            raise ConfigError("model.gpt.logit_softcap", logit_softcap, "accepted with a logit_cap: null")
        self.vocab_size = vocab_size
        self.max_seq_len = max_seq_len
        self.d_model = d_model
        self.residual_autocast = residual_autocast
        self.tie_embeddings = tie_embeddings

        self.embedding = contract.make("model.gpt.embedding", embedding, vocab_size, d_model)
        self.memory = contract.make("model.gpt.memory", memory, vocab_size, d_model)
        self.position = contract.make("model.gpt.position", position, d_model, n_heads, max_seq_len)
        for signature in (("embed", "x", "start"), ("rotate", "q", "k", "start"), ("scores", "seq_len")):
            contract.expect("model.gpt.position", self.position, *signature)
        self.embedding_norm = self._make_norm(norm) if norm_embeddings else nn.Identity()
        self.dropout = nn.Dropout(dropout)
        self._attentions: list[nn.Module] = []  # of the blocks, which can store them under any name
        d_ff = 4 * d_model if d_ff is None else d_ff
        self.blocks = nn.ModuleList()
        for layer in range(n_layers):
            of_layer = {"layer": layer, "n_layers": n_layers}
            attend = contract.make("model.gpt.attention", attention, d_model, n_heads, **of_layer)
            feed = contract.make("model.gpt.feedforward", feedforward, d_model, d_ff, **of_layer)
            norms = lambda: self._make_norm(norm)  # noqa: E731
            one = contract.make("model.gpt.block", block, attend, feed, norms, dropout, **of_layer)
            for key, part in (("attention", attend), ("feedforward", feed), ("block", one)):
                contract.give_context(f"model.gpt.{key}", part)
            self._attentions.append(attend)
            self.blocks.append(one)
        for part in contract.declaring(self, "connect"):
            part.connect(self)
        self.norm = self._make_norm(norm)
        cap = None if logit_cap is None else contract.make("model.gpt.logit_cap", logit_cap)
        self.head = Head(d_model, vocab_size, head_bias, logit_softcap, cap)
        if tie_embeddings:
            self.head.weight = self._tied_weight()
        init()(self, n_layers)
        for part in contract.declaring(self, "after_init"):
            part.after_init()

    def forward(self, tokens: Tensor, cache: "Cache | None" = None, to_logits: bool = True) -> Tensor:
        """Logits of each next token.

        Args:
            tokens: Token ids (B, T), T <= max_seq_len.
            cache: Data of the first `cache.length` tokens (see `new_cache`). They are not computed again; the data of
                the other tokens are added to it.
            to_logits: Whether to return logits; otherwise the hidden states, which are the input of `head`.

        Returns:
            (B, T, vocab_size), or (B, T, d_model); with a cache only for the tokens that were not in it.
        """
        assert tokens.shape[1] <= self.max_seq_len, f"{tokens.shape[1]} tokens, max_seq_len is {self.max_seq_len}"
        start = 0 if cache is None else cache.length
        evidence = self.memory.recall(tokens, start)
        x = self.embedding(tokens)
        values = self.embedding.values(tokens) if hasattr(self.embedding, "values") else None
        # Vectors that the embedding adds to the stream before every layer.
        recurring = self.embedding.recurring(tokens) if hasattr(self.embedding, "recurring") else None
        if start:  # embeddings can use all tokens; from here on only the new ones are computed
            x, values = x[:, start:], None if values is None else values[:, start:]
            recurring = None if recurring is None else recurring[:, start:]
        x = self.dropout(self.embedding_norm(self.position.embed(self.memory.embed(x, evidence), start)))
        if self.residual_autocast and torch.is_autocast_enabled(x.device.type):
            x = x.to(torch.get_autocast_dtype(x.device.type))
        context = Context(tokens, self.position, start, first=x, values=values)
        value_layers = None if values is None else getattr(self.embedding, "value_layers", None)
        for layer, block in enumerate(self.blocks):
            if recurring is not None:
                x = self.embedding.add(x, recurring, layer)
            given = context if cache is None else replace(context, cache=cache.layers[layer])
            if value_layers is not None and layer not in value_layers:
                given = replace(given, values=None)
            x = block(x, given)
        x = self.norm(x)
        if cache is not None:
            cache.length = tokens.shape[1]
        return self.memory.mix(self.head(x), x, evidence) if to_logits else x

    def new_cache(self) -> "Cache | None":
        """An empty cache for `forward`; None if a block or an attention does not support it."""
        if not all(getattr(part, "supports_cache", False) for part in (*self.blocks, *self._attentions)):
            return None
        attentions: list[Any] = self._attentions
        return Cache([attention.new_cache(self.max_seq_len) for attention in attentions])

    def num_params(self) -> int:
        """Number of parameters, shared ones counted once."""
        return sum(p.numel() for p in self.parameters())

    def flops_per_token(self, seq_len: int) -> int:
        """FLOPs of training per token, forward and backward: 6 N + 12 d_model (seq_len of all layers).

        N excludes embeddings, which are only looked up. The second term is attention without the mask, as is usual
        (Chowdhery et al. 2022, arXiv:2204.02311, appendix B). Attentions with windows declare how many tokens a query
        sees (`attended_tokens`).
        """
        tables = (module.weight for module in self.modules() if isinstance(module, nn.Embedding))
        looked_up = {id(p): p.numel() for p in (*self.position.parameters(), *tables)}
        if self.tie_embeddings:  # the head then multiplies by the token embedding
            looked_up.pop(id(self.head.weight))
        attentions: list[Any] = self._attentions
        seen = sum(
            attention.attended_tokens(seq_len) if hasattr(attention, "attended_tokens") else seq_len
            for attention in attentions
        )
        return 6 * (self.num_params() - sum(looked_up.values())) + 12 * self.d_model * seen

    def _make_norm(self, norm: Callable[[int], Norm]) -> Any:
        return contract.make("model.gpt.norm", norm, self.d_model)

    def _tied_weight(self) -> nn.Parameter:
        weight = getattr(self.embedding, "weight", None)
        shape = (self.vocab_size, self.d_model)
        if not isinstance(weight, nn.Parameter) or weight.shape != shape:
            name = type(self.embedding).__name__
            accepted = f"accepted with the embedding {name}, which has no `weight` of shape {shape}: false"
            raise ConfigError("model.gpt.tie_embeddings", True, accepted)
        return weight


class Head(nn.Linear):
    """Maps hidden states to logits.

    Args:
        d_model: Width of the hidden states.
        vocab_size: Number of tokens.
        bias: Whether to add a bias.
        softcap: See GPT's `logit_softcap`.
        cap: Another limit of the logits.
    """

    def __init__(
        self, d_model: int, vocab_size: int, bias: bool, softcap: float | None, cap: LogitCap | None = None
    ) -> None:
        super().__init__(d_model, vocab_size, bias=bias)
        self.softcap = softcap
        self.cap = cap

    def forward(self, x: Tensor) -> Tensor:
        """Hidden states (..., d_model) to logits (..., vocab_size)."""
        logits = super().forward(x)
        if self.cap is not None:
            return self.cap(logits)
        if self.softcap is None:
            return logits
        exact = logits.to(torch.promote_types(logits.dtype, torch.float32))  # bf16 has only three digits
        return self.softcap * torch.tanh(exact / self.softcap)


@dataclass
class Cache:
    """Data of earlier tokens, which generation computes once. Use it under no_grad.

    Attributes:
        layers: The data of each layer's attention.
        length: Number of tokens in the cache.
    """

    layers: list[Any]
    length: int = 0
