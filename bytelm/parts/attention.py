"""Causal self-attention. The projections are common; the variants differ in how queries are applied to keys and values.

Queries and keys can be normalised per head (QK-norm). Several query heads can share a key/value head (GQA). In
generation a cache keeps the keys and values of earlier tokens (KVCache).
"""

import math
from abc import abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bytelm.config.values import PositiveInt, UnitInterval
from bytelm.errors import ConfigError
from bytelm.kernels import load_for_hopper, on_hopper, optional_on_hopper, row_attention
from bytelm.parts import contract
from bytelm.parts.contract import Context, Norm, PositionEncoding
from bytelm.parts.init import ResidualProjection
from bytelm.parts.position import Rotary


class KVCache:
    """Keys and values of earlier tokens, each computed once. Use it under no_grad.

    Args:
        max_seq_len: Capacity, in tokens.

    Attributes:
        length: Number of tokens in the cache.
    """

    def __init__(self, max_seq_len: int) -> None:
        self.max_seq_len = max_seq_len
        self.length = 0
        self._kv: Tensor | None = None

    def append(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Appends the keys and values of the next tokens, (B, n_kv_heads, T, head_dim); returns all of them."""
        if self._kv is None:
            batch, n_kv_heads, _, head_dim = k.shape
            self._kv = k.new_empty(2, batch, n_kv_heads, self.max_seq_len, head_dim)
        start, self.length = self.length, self.length + k.shape[2]
        self._kv[..., start : self.length, :] = torch.stack([k, v])
        keys, values = self._kv[..., : self.length, :]
        return keys, values


class MultiHeadAttention(contract.Attention):
    """Base of attentions with queries, keys and values in heads; a subclass defines `attend`.

    Args:
        d_model: Width of the residual stream.
        n_heads: Number of query heads; divides d_model.
        n_kv_heads: Number of key/value heads, each shared by n_heads / n_kv_heads query heads
            (Ainslie et al. 2023, arXiv:2305.13245); default n_heads.
        qk_norm: Normalisation of queries and keys over the head dimension, before positions
            (Henry et al. 2020, arXiv:2010.04245); none by default.
        dropout: Probability of dropping an attention weight.
        bias: Whether the projections have biases.

    Raises:
        ConfigError: n_kv_heads does not divide n_heads.
    """

    supports_cache = True

    def __init__(
        self,
        d_model: int,
        n_heads: int,
        n_kv_heads: PositiveInt | None = None,
        qk_norm: Callable[[int], Norm] | None = None,
        dropout: UnitInterval = 0.0,
        bias: bool = True,
    ) -> None:
        super().__init__()
        n_kv_heads = n_heads if n_kv_heads is None else n_kv_heads
        if n_heads % n_kv_heads:
            raise ConfigError("n_kv_heads", n_kv_heads, f"accepted: divisors of n_heads, which is {n_heads}")
        self.n_heads = n_heads
        self.n_kv_heads = n_kv_heads
        self.head_dim = d_model // n_heads
        self.value_dim = n_kv_heads * self.head_dim
        self.dropout = dropout
        self.qkv = nn.Linear(d_model, (n_heads + 2 * n_kv_heads) * self.head_dim, bias=bias)
        self.row_splits = {"qkv": [[self.head_dim] * n for n in (n_heads, n_kv_heads, n_kv_heads)]}
        self.out = ResidualProjection(d_model, d_model, bias=bias)
        self.q_norm = qk_norm(self.head_dim) if qk_norm else nn.Identity()
        self.k_norm = qk_norm(self.head_dim) if qk_norm else nn.Identity()

    @abstractmethod
    def attend(self, q: Tensor, k: Tensor, v: Tensor, scores: Tensor | None) -> Tensor:
        """Mixes values causally.

        Args:
            q: Queries of the last T of S tokens, (B, n_heads, T, head_dim). Without a cache, S is T.
            k: Keys, (B, n_kv_heads, S, head_dim).
            v: Values, of the same shape.
            scores: Added to the scores, causal mask included, (n_heads or 1, T, S); None: only the causal mask, S = T.

        Returns:
            (B, n_heads, T, head_dim).
        """

    def new_cache(self, max_seq_len: int) -> KVCache:
        """An empty cache for up to `max_seq_len` tokens."""
        return KVCache(max_seq_len)

    def scores(self, position: PositionEncoding, seq_len: int, device: torch.device) -> Tensor | None:
        """A term for the scores of `seq_len` queries and keys, causal mask included; None: only the mask."""
        return position.scores(seq_len)

    def with_values(self, v: Tensor, x: Tensor, context: Context) -> Tensor:
        """Adds the embedding's values, if there are any, to those of x (B, T, d_model).

        Args:
            v: Values, (B, n_kv_heads, T, head_dim).
            x: The attention's input.
            context: The other inputs.
        """
        if context.values is None:
            return v
        return v + context.values.unflatten(-1, (-1, self.head_dim)).transpose(1, 2).to(v.dtype)

    def placed(self, q: Tensor, k: Tensor, position: PositionEncoding, start: int) -> tuple[Tensor, Tensor]:
        """Normalises queries and keys and applies positions, from `start` on."""
        return position.rotate(self.q_norm(q), self.k_norm(k), start)

    def attend_rows(self, q: Tensor, k: Tensor, v: Tensor, position: PositionEncoding) -> Tensor:
        """`attend` for whole rows, each of S = T tokens."""
        return self.attend(q, k, v, self.scores(position, q.shape[-2], q.device))

    def gated(self, mixed: Tensor, x: Tensor) -> Tensor:
        """Weights the mixed values (B, T, n_heads, head_dim) by the attention's input x; by default not."""
        return mixed

    def attended_tokens(self, seq_len: int) -> int:
        """Number of tokens that a query sees in a sequence of this length, counted without the causal mask."""
        return seq_len

    def forward(self, x: Tensor, context: Context) -> Tensor:
        batch, seq_len, _ = x.shape
        heads = self.qkv(x).view(batch, seq_len, -1, self.head_dim)
        sizes = [self.n_heads, self.n_kv_heads, self.n_kv_heads]
        q, k, v = (part.transpose(1, 2) for part in heads.split(sizes, dim=2))
        position, start = context.position, context.start
        v = self.with_values(v, x, context)
        q, k = self.placed(q, k, position, start)
        if context.cache is None:
            mixed = self.attend_rows(q, k, v, position)
        else:
            k, v = context.cache.append(k, v)
            scores = self.scores(position, start + seq_len, x.device)
            mixed = self.attend(q, k, v, _last_rows(scores, start, seq_len, x.device))
        return self.out(self.gated(mixed.transpose(1, 2), x).reshape(batch, seq_len, -1))


class SDPA(MultiHeadAttention):
    """PyTorch's fused scaled_dot_product_attention (Flash, cuDNN or a CPU kernel, by device and shape)."""

    gpt2_attention = True

    def attend(self, q: Tensor, k: Tensor, v: Tensor, scores: Tensor | None) -> Tensor:
        return F.scaled_dot_product_attention(
            q,
            k,
            v,
            attn_mask=None if scores is None else scores.to(q.dtype),
            dropout_p=self.dropout if self.training else 0.0,
            is_causal=scores is None,
            enable_gqa=self.n_kv_heads != self.n_heads,
        )


class MatmulAttention(MultiHeadAttention):
    """Attention as matrix products and a softmax, with all scores in memory (Vaswani et al. 2017, arXiv:1706.03762).

    For short rows in bf16 on the CPU: its products are several times as fast as those in float32, which the fused
    kernel computes with. With rows of 256 tokens it takes half the time of SDPA there, forward and backward. In mixed
    precision the scores are in bf16.
    """

    def attend(self, q: Tensor, k: Tensor, v: Tensor, scores: Tensor | None) -> Tensor:
        groups = self.n_heads // self.n_kv_heads
        if groups > 1:
            k, v = (part.repeat_interleave(groups, dim=1) for part in (k, v))
        n_queries, n_keys = q.shape[-2], k.shape[-2]
        if scores is None:
            scores = q.new_full((n_queries, n_keys), -math.inf).triu(1)
        scores = scores.to(v.dtype)
        if scores.ndim == 3 and len(scores) > 1:  # one term a head
            scores = scores.expand(len(q), *scores.shape).flatten(0, 1)
        q, k, v = (part.to(v.dtype).flatten(0, 1) for part in (q, k, v))
        # In the precision of its input: under autocast, softmax would be computed in float32 in memory.
        with torch.autocast(q.device.type, enabled=False):
            weights = torch.baddbmm(scores, q, k.mT, alpha=1 / math.sqrt(self.head_dim)).softmax(dim=-1)
            weights = F.dropout(weights, self.dropout, self.training)
            return (weights @ v).unflatten(0, (-1, self.n_heads))


class RowAttention(MatmulAttention):
    """MatmulAttention with a kernel for training on the CPU (bytelm/kernels/row_attention.cpp).

    The kernel rotates queries and keys (RoPE), computes only what the causal mask leaves, and keeps no scores in
    memory. Its sums are in float32; factors of products are rounded to bf16 if the inputs are in bf16 and the processor
    multiplies pairs of them (docs/speedrun.md has its times). Where there is no kernel, the operators of
    MatmulAttention compute the same: without a C++ compiler, with a cache, with other position encodings, with QK-norm,
    dropout or grouped heads, and for row lengths and head dimensions that are not multiples of 32.
    """

    def forward(self, x: Tensor, context: Context) -> Tensor:
        position = context.position
        if not (isinstance(position, Rotary) and self._is_plain(context)):
            return super().forward(x, context)
        qkv = self.qkv(x)
        if not row_attention.is_available(qkv, self.n_heads):
            return super().forward(x, context)
        attended: Tensor = self.out(row_attention.attend(qkv, position.cos, position.sin, self.n_heads))
        return attended

    def _is_plain(self, context: Context) -> bool:
        """Whether attention is what the kernel computes."""
        return (
            context.cache is None
            and context.values is None
            and self.n_kv_heads == self.n_heads
            and isinstance(self.q_norm, nn.Identity)
            and not (self.training and self.dropout)
            and not torch.compiler.is_compiling()
        )


class WindowedSDPA(SDPA):
    """SDPA in which some layers see only the last `window` tokens (Beltagy et al. 2020, arXiv:2004.05150).

    On GPUs, in half precision and without dropout, torch's FlashAttention skips what is outside. Elsewhere, and under
    trainer.deterministic, the window is a mask: the whole is computed.

    Args:
        d_model: Width of the residual stream.
        n_heads: Number of query heads; divides d_model.
        args: SDPA's other options.
        window: Number of tokens that a query of a windowed layer sees, its own included. Can be scheduled as
            `attention.window`.
        pattern: One letter a layer, repeated over the layers: `S` (short) for a windowed layer, `L` (long) for a full
            one. The last layer is always full.
        layer: Number of the layer, from 0.
        n_layers: Number of layers.
        kwargs: SDPA's other options.

    Raises:
        ConfigError: The pattern has other letters.
    """

    UNUSED_WITH: ClassVar = {"window": ("pattern", ("L",))}
    schedulable = ("window",)

    def __init__(
        self,
        d_model: int,
        n_heads: int,
        *args: Any,
        window: PositiveInt = 128,
        pattern: str = "SSSL",
        layer: int,
        n_layers: int,
        **kwargs: Any,
    ) -> None:
        super().__init__(d_model, n_heads, *args, **kwargs)
        if not pattern or set(pattern) - set("SL"):
            raise ConfigError("pattern", pattern, "accepted: the letters S and L, such as SSSL")
        self.is_windowed = pattern[layer % len(pattern)] == "S" and layer < n_layers - 1
        self.window = window

    def attended_tokens(self, seq_len: int) -> int:
        return min(self.window, seq_len) if self.is_windowed else seq_len

    def scores(self, position: PositionEncoding, seq_len: int, device: torch.device) -> Tensor | None:
        scores = super().scores(position, seq_len, device)
        if not self.is_windowed or self.window >= seq_len:
            return scores
        time = torch.arange(seq_len, device=device)
        distance = time[:, None] - time[None, :]
        outside = (distance < 0) | (distance >= self.window)
        inside = torch.zeros(1, seq_len, seq_len, device=device) if scores is None else scores
        return inside.masked_fill(outside, -math.inf)

    def attend_rows(self, q: Tensor, k: Tensor, v: Tensor, position: PositionEncoding) -> Tensor:
        is_short = self.is_windowed and self.window < q.shape[-2]
        if is_short and self._has_kernel(q) and position.scores(q.shape[-2]) is None:
            return window_attention(q, k, v, self.window)
        return super().attend_rows(q, k, v, position)

    def _has_kernel(self, q: Tensor) -> bool:
        """Whether torch's FlashAttention can skip what is outside of a window; a mask would be computed in full."""
        repeatable = torch.are_deterministic_algorithms_enabled()  # its gradients are summed in any order
        fits = q.dtype in (torch.bfloat16, torch.float16) and self.head_dim % 8 == 0 and self.head_dim <= 256
        return q.device.type == "cuda" and fits and not (self.dropout and self.training) and not repeatable


class GatedAttention(WindowedSDPA):
    """WindowedSDPA with a gate for each head: 2 sigmoid(W x[:gate_dim]) times the head's result.

    x is the attention's input. W starts at zero: the gates start at 1. A head can thus contribute nothing to a token
    (Qiu et al. 2025, arXiv:2505.06708; modded-nanogpt has the narrow input). W has the optimizer group `gate`.

    Args:
        d_model: Width of the residual stream.
        n_heads: Number of query heads; divides d_model.
        args: SDPA's other options.
        pattern: As in WindowedSDPA: `S` for a windowed layer, `L` for a full one.
        gate_dim: Number of dimensions of x that the gates read.
        layer: Number of the layer, from 0.
        n_layers: Number of layers.
        kwargs: WindowedSDPA's other options. `bias` does not apply to the gates.

    Raises:
        ConfigError: gate_dim is above d_model, or the pattern has other letters.
    """

    optimizer_groups: ClassVar = {"gate": "gate"}

    def __init__(
        self,
        d_model: int,
        n_heads: int,
        *args: Any,
        pattern: str = "L",
        gate_dim: PositiveInt = 16,
        layer: int,
        n_layers: int,
        **kwargs: Any,
    ) -> None:
        super().__init__(d_model, n_heads, *args, pattern=pattern, layer=layer, n_layers=n_layers, **kwargs)
        self.gate = head_gate(d_model, gate_dim, n_heads)

    def after_init(self) -> None:
        nn.init.zeros_(self.gate.weight)

    def gated(self, mixed: Tensor, x: Tensor) -> Tensor:
        return mixed * gates_of(self.gate, x)[..., None].to(mixed.dtype)


class FlashAttention(SDPA):
    """SDPA, on Hopper GPUs with FlashAttention-4's backward pass (bytelm/kernels/attention.py).

    That takes 0.7 of the time of PyTorch's. Elsewhere, in float32, without gradients, with dropout, with shared
    key/value heads, where positions give scores, and under trainer.deterministic, it is SDPA: a checkpoint's network
    runs on any device.

    Args:
        args: SDPA's.
        kwargs: SDPA's.

    Raises:
        ConfigError: There is such a GPU, and the kernels are not installed.
    """

    gpt2_attention = True

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        load_for_hopper("attention", "attention", type(self).__name__)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, scores: Tensor | None) -> Tensor:
        heads_fit = self.n_kv_heads == self.n_heads and self.head_dim % 8 == 0 and self.head_dim <= 128
        repeatable = torch.are_deterministic_algorithms_enabled()  # these gradients are summed in any order
        is_theirs = heads_fit and scores is None and not self.dropout and not repeatable and torch.is_grad_enabled()
        if not (is_theirs and on_hopper(q.device, q.dtype)):
            return super().attend(q, k, v, scores)
        from bytelm.kernels.attention import flash_attention  # loaded by the constructor

        return flash_attention(q, k, v)


class Explicit(MultiHeadAttention):
    """softmax(Q K^T / sqrt(head_dim)) V in plain operations: the same as SDPA, with (T, T) scores in memory."""

    gpt2_attention = True

    def attend(self, q: Tensor, k: Tensor, v: Tensor, scores: Tensor | None) -> Tensor:
        groups = self.n_heads // self.n_kv_heads
        k, v = k.repeat_interleave(groups, dim=1), v.repeat_interleave(groups, dim=1)
        logits = q @ k.transpose(-2, -1) / math.sqrt(self.head_dim)
        if scores is None:
            future = torch.ones(q.shape[-2], k.shape[-2], dtype=torch.bool, device=q.device).triu(1)
            logits = logits.masked_fill(future, -math.inf)
        else:
            logits = logits + scores
        weights = F.dropout(logits.softmax(dim=-1), self.dropout, self.training)
        return weights.to(v.dtype) @ v


def head_gate(d_model: int, gate_dim: int, n_heads: int) -> nn.Linear:
    """Makes W of the gates 2 sigmoid(W x[:gate_dim]), one for each head; it must be set to zero after initialisation.

    Raises:
        ConfigError: gate_dim is above d_model.
    """
    if gate_dim > d_model:
        raise ConfigError("gate_dim", gate_dim, f"accepted: up to d_model, which is {d_model}")
    return nn.Linear(gate_dim, n_heads, bias=False)


def gates_of(gate: nn.Linear, x: Tensor) -> Tensor:
    """Returns the gates (B, T, n_heads) of an attention's input x (B, T, d_model); see `head_gate`."""
    return 2 * torch.sigmoid(gate(x[..., : gate.in_features]))


def window_attention(q: Tensor, k: Tensor, v: Tensor, window: int) -> Tensor:
    """Causal attention to the last `window` tokens, by a FlashAttention, which skips all blocks before them.

    On Hopper GPUs, FlashAttention-4 (the extra `hopper`) if it is installed, in 0.55 of the time of torch's.

    Args:
        q: Queries, (B, n_heads, T, head_dim), in bf16 or fp16, on a GPU.
        k: Keys, (B, n_kv_heads, T, head_dim).
        v: Values, of the same shape.
        window: Number of tokens that a query sees, its own included.

    Returns:
        (B, n_heads, T, head_dim).
    """
    if q.shape == k.shape and q.shape[-1] <= 128 and optional_on_hopper("attention", q.device, q.dtype):
        from bytelm.kernels.attention import windowed_flash_attention

        return windowed_flash_attention(q, k, v, window)
    seq_len = q.shape[-2]
    theirs = [tensor.transpose(1, 2) for tensor in (q, k, v)]
    # torch.nn.attention.varlen_attn has windows only from torch 2.11 on.
    mixed, *_ = torch.ops.aten._flash_attention_forward(
        *theirs, None, None, seq_len, seq_len, 0.0, True, False, window_size_left=window - 1, window_size_right=0
    )
    return mixed.transpose(1, 2)


def _last_rows(scores: Tensor | None, start: int, seq_len: int, device: torch.device) -> Tensor | None:
    """Scores of the queries from `start` on. A missing causal mask is added, unless `start` is 0."""
    if start == 0:
        return scores
    if scores is None:
        return torch.full((1, seq_len, start + seq_len), -math.inf, device=device).triu(start + 1)
    return scores[:, start:]
