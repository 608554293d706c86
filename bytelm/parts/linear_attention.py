"""Linear attentions: a state (key_dim, value_dim) of each head replaces the keys and values of earlier tokens.

Each token changes the state S and reads it with its query: o_t = q_t S_t. The parts differ in the change:

    Retention             S_t = g S_{t-1} + k_t^T v_t            with a constant g of each head
    GatedLinearAttention  S_t = diag(a_t) S_{t-1} + k_t^T v_t    with a_t computed from the token
    DeltaNet              S_t = S_{t-1} + b_t k_t^T (v_t - k_t S_{t-1})    with b_t computed from the token

Time and memory grow linearly with the length of a row. Training computes chunks of tokens in parallel and passes the
state from chunk to chunk; generation keeps the state in the cache. On GPUs, in bf16 and float16, training uses the
kernels of flash-linear-attention if they are installed (bytelm/kernels/linear_attention.py).
"""

from abc import abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bytelm.config.values import PositiveInt
from bytelm.errors import ConfigError
from bytelm.kernels import linear_attention as kernels
from bytelm.parts import contract
from bytelm.parts.contract import Context
from bytelm.parts.init import ResidualProjection
from bytelm.parts.norm import RMSNorm

Recurrence = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor | None, int], tuple[Tensor, Tensor]]

CHUNK = 64  # tokens that are computed in parallel
GATED_CHUNK = 16  # with a decay of each dimension, whose memory is quadratic in the chunk


class StateCache:
    """State of a linear attention after earlier tokens. Use it under no_grad.

    Attributes:
        length: Number of tokens that are in the state.
        state: (B, n_heads, key_dim, value_dim); None before the first token.
        inputs: The last inputs of a convolution, (B, size - 1, channels); None before the first token.
    """

    def __init__(self) -> None:
        self.length = 0
        self.state: Tensor | None = None
        self.inputs: Tensor | None = None


class LinearAttention(contract.Attention):
    """Base of linear attentions; a subclass defines `mix`.

    Queries and keys are rotated by the position encoding, if it rotates. The output of each head is normalised
    (RMSNorm), multiplied by silu(x W) if there is an output gate, and projected.

    Args:
        d_model: Width of the residual stream.
        n_heads: Number of heads.
        d_key: Width of all heads' queries, and of their keys; a multiple of n_heads. Default d_model.
        d_value: Width of all heads' values; a multiple of n_heads. Default d_model.
        bias: Whether the projections of queries, keys, values and outputs have biases.
        gated: Whether there is an output gate.

    Raises:
        ConfigError: n_heads does not divide a width.
    """

    supports_cache = True

    def __init__(
        self,
        d_model: int,
        n_heads: int,
        d_key: PositiveInt | None = None,
        d_value: PositiveInt | None = None,
        bias: bool = False,
        *,
        gated: bool,
    ) -> None:
        super().__init__()
        self.d_key = d_model if d_key is None else d_key
        self.d_value = d_model if d_value is None else d_value
        for name, width in (("d_key", self.d_key), ("d_value", self.d_value)):
            if width % n_heads:
                raise ConfigError(name, width, f"accepted: multiples of n_heads, which is {n_heads}")
        self.n_heads = n_heads
        self.rotated_dim = d_model // n_heads  # of the heads that position encodings rotate
        self.qkv = nn.Linear(d_model, 2 * self.d_key + self.d_value, bias=bias)
        widths = (self.d_key, self.d_key, self.d_value)
        self.row_splits = {"qkv": [[width // n_heads] * n_heads for width in widths]}
        self.gate = nn.Linear(d_model, self.d_value, bias=False) if gated else None
        self.norm = RMSNorm(self.d_value // n_heads)
        self.out = ResidualProjection(self.d_value, d_model, bias=bias)

    @abstractmethod
    def mix(self, q: Tensor, k: Tensor, v: Tensor, x: Tensor, cache: StateCache | None) -> Tensor:
        """Changes the state by each token and reads it; keeps the state in the cache, if there is one.

        Args:
            q: Queries, (B, n_heads, T, key_dim).
            k: Keys, of the same shape.
            v: Values, (B, n_heads, T, value_dim).
            x: The attention's input, (B, T, d_model).
            cache: The state before these tokens; None: a new row.

        Returns:
            The values that the queries read, (B, n_heads, T, value_dim).
        """

    def project(self, x: Tensor, cache: StateCache | None) -> Tensor:
        """Queries, keys and values side by side, (B, T, 2 d_key + d_value)."""
        return self.qkv(x)

    def new_cache(self, max_seq_len: int) -> StateCache:
        """The empty state; its size does not depend on `max_seq_len`."""
        return StateCache()

    def attended_tokens(self, seq_len: int) -> int:
        """Number of tokens whose attention has the FLOPs of a token's change and reading of the state."""
        return self.d_key * (self.d_value // self.n_heads) // (self.n_heads * self.rotated_dim)

    def connect(self, network: nn.Module) -> None:
        position: contract.PositionEncoding = network.get_submodule("position")  # type: ignore[assignment]
        name = type(position).__name__
        if position.scores(1) is not None:
            accepted = f"accepted with {type(self).__name__}, which has no scores: NoPosition, Learned, Rotary"
            raise ConfigError("model.gpt.position", name, accepted)
        heads = torch.zeros(1, self.n_heads, 1, self.rotated_dim)
        does_rotate = position.rotate(heads, heads)[0] is not heads
        if does_rotate and self.d_key != self.n_heads * self.rotated_dim:
            accepted = f"accepted with {name}: d_model, which is {self.n_heads * self.rotated_dim}"
            raise ConfigError("model.gpt.attention.d_key", self.d_key, accepted)

    def forward(self, x: Tensor, context: Context) -> Tensor:
        cache: StateCache | None = context.cache
        heads = self.project(x, cache).split([self.d_key, self.d_key, self.d_value], dim=-1)
        q, k, v = (part.unflatten(-1, (self.n_heads, -1)).transpose(1, 2) for part in heads)
        q, k = context.position.rotate(q, k, context.start)
        mixed = self.mix(q, k, v, x, cache)
        if cache is not None:
            cache.length += x.shape[1]
        mixed = self.norm(mixed).transpose(1, 2).flatten(2).to(x.dtype)
        return self.out(mixed if self.gate is None else F.silu(self.gate(x)) * mixed)


class Retention(LinearAttention):
    """Retention: each head forgets with a constant rate (Sun et al. 2023, arXiv:2307.08621).

    S_t = g S_{t-1} + k_t^T v_t, o_t = q_t S_t / sqrt(key_dim), with g = 1 - 2^(-5 - h) in head h, and an output gate.
    The paper rotates queries and keys, and its values are twice as wide as the stream.

    Args:
        args: LinearAttention's.
        kwargs: LinearAttention's.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, gated=True, **kwargs)

    def mix(self, q: Tensor, k: Tensor, v: Tensor, x: Tensor, cache: StateCache | None) -> Tensor:
        if cache is None and kernels.support(q):
            return kernels.retention(q, k, v)
        # Not a buffer: in bf16, to which bf16-true would convert it, they are rounded to 1.
        heads = torch.arange(self.n_heads, device=q.device, dtype=torch.promote_types(q.dtype, torch.float32))
        decays = torch.log1p(-(2 ** (-5 - heads)))[:, None, None].expand(1, -1, q.shape[2], 1)
        return _carried(cache, gated, q * q.shape[-1] ** -0.5, k, v, decays, CHUNK)


class GatedLinearAttention(LinearAttention):
    """Gated linear attention: each dimension of a key forgets as the token says (Yang et al. 2023, arXiv:2312.06635).

    S_t = diag(a_t) S_{t-1} + k_t^T v_t, o_t = q_t S_t / sqrt(key_dim), with a_t = sigmoid(x W_1 W_2 + c)^(1 / 16), and
    an output gate. The paper uses no positions, and its keys are half as wide as the stream.

    Args:
        d_model: Width of the residual stream.
        n_heads: Number of heads.
        args: LinearAttention's other options.
        rank: Number of columns of W_1, the first of the two matrices that compute the decays a_t.
        temperature: The root of the sigmoid; a higher one forgets more slowly.
        kwargs: LinearAttention's other options.
    """

    def __init__(
        self,
        d_model: int,
        n_heads: int,
        *args: Any,
        rank: PositiveInt = 16,
        temperature: PositiveInt = 16,
        **kwargs: Any,
    ) -> None:
        super().__init__(d_model, n_heads, *args, gated=True, **kwargs)
        self.temperature = temperature
        self.decay = nn.Sequential(nn.Linear(d_model, rank, bias=False), nn.Linear(rank, self.d_key))

    def mix(self, q: Tensor, k: Tensor, v: Tensor, x: Tensor, cache: StateCache | None) -> Tensor:
        decays = F.logsigmoid(at_least_float32(self.decay(x))) / self.temperature
        decays = decays.unflatten(-1, (self.n_heads, -1)).transpose(1, 2)
        if cache is None and kernels.support(q):
            return kernels.gated(q, k, v, decays)
        return _carried(cache, gated, q * q.shape[-1] ** -0.5, k, v, decays, GATED_CHUNK)


class DeltaNet(LinearAttention):
    """The delta rule: a token replaces the value that the state has for its key (arXiv:2406.06484; arXiv:2102.11174).

    S_t = S_{t-1} + b_t k_t^T (v_t - k_t S_{t-1}), o_t = q_t S_t, with b_t = sigmoid(x W) in each head. Queries, keys
    and values pass a causal convolution over the last `conv` tokens, channel by channel, and SiLU. Queries and keys
    then have length 1 (Yang et al. 2024, with the rule of Schlag et al. 2021). The paper uses no positions and no
    output gate.

    Args:
        d_model: Width of the residual stream.
        n_heads: Number of heads.
        args: LinearAttention's other options.
        conv: Number of tokens that the convolutions see; 1: the token alone.
        kwargs: LinearAttention's other options.
    """

    optimizer_groups: ClassVar = {"conv": "convolution"}

    def __init__(self, d_model: int, n_heads: int, *args: Any, conv: PositiveInt = 4, **kwargs: Any) -> None:
        super().__init__(d_model, n_heads, *args, gated=False, **kwargs)
        channels = 2 * self.d_key + self.d_value
        self.conv = nn.Conv1d(channels, channels, conv, groups=channels, bias=False)
        self.beta = nn.Linear(d_model, n_heads, bias=False)

    def project(self, x: Tensor, cache: StateCache | None) -> Tensor:
        new = super().project(x, cache)
        n_before = self.conv.kernel_size[0] - 1
        if cache is None or cache.inputs is None:
            inputs = F.pad(new, (0, 0, n_before, 0))
        else:
            inputs = torch.cat([cache.inputs, new], dim=1)
        if cache is not None:
            cache.inputs = inputs[:, inputs.shape[1] - n_before :]
        return F.silu(self.conv(inputs.mT).mT)

    def mix(self, q: Tensor, k: Tensor, v: Tensor, x: Tensor, cache: StateCache | None) -> Tensor:
        q, k = (F.normalize(at_least_float32(part), dim=-1) for part in (q, k))
        beta = torch.sigmoid(self.beta(x)).transpose(1, 2)
        if cache is None and kernels.support(q):
            return kernels.delta(q, k, v, beta)
        return _carried(cache, delta, q, k, v, beta, CHUNK)


def gated(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, state: Tensor | None, chunk: int
) -> tuple[Tensor, Tensor]:
    """S_t = diag(exp(log_decay_t)) S_{t-1} + k_t^T v_t, o_t = q_t S_t, in chunks (arXiv:2312.06635, 4).

    Args:
        q: (B, H, T, K).
        k: (B, H, T, K).
        v: (B, H, T, V).
        log_decay: Logarithms of the decays, at most 0: (B or 1, H, T, K), or 1 instead of K for one of all dimensions.
        state: S_0, (B, H, K, V); None: zeros.
        chunk: Number of tokens in a chunk.

    Returns:
        o (B, H, T, V) and S_T, in float32 or, for inputs in float64, in float64.
    """
    seq_len = q.shape[2]
    with torch.autocast(q.device.type, enabled=False):  # sums over thousands of tokens
        q, k, v, log_decay = _chunks(min(chunk, seq_len), q, k, v, log_decay)
        until = log_decay.cumsum(dim=-2)  # from the chunk's start to each token, (B, H, N, C, K)
        whole = until[..., -1:, :]
        # Decay from token j to token i. Differences, because exp(until_i) / exp(until_j) overflows for strong decays.
        between = until[..., :, None, :] - until[..., None, :, :]
        future = torch.ones(between.shape[-3:-1], dtype=torch.bool, device=q.device).triu(1)
        between = between.masked_fill(future[..., None], -torch.inf).exp()
        if between.shape[-1] == 1:
            scores = (q @ k.mT) * between[..., 0]
        else:
            scores = torch.einsum("...ik,...ijk,...jk->...ij", q, between, k)
        changes = (k * (whole - until).exp()).mT @ v  # of the state in each chunk, (B, H, N, K, V)
        decays = whole.exp().mT
        state = torch.zeros_like(changes[:, :, 0]) if state is None else state
        before = []
        for n in range(changes.shape[2]):
            before.append(state)
            state = decays[:, :, n] * state + changes[:, :, n]
        mixed = scores @ v + (q * until.exp()) @ torch.stack(before, dim=2)
    return mixed.flatten(2, 3)[:, :, :seq_len], state


def delta(q: Tensor, k: Tensor, v: Tensor, beta: Tensor, state: Tensor | None, chunk: int) -> tuple[Tensor, Tensor]:
    """S_t = S_{t-1} + beta_t k_t^T (v_t - k_t S_{t-1}), o_t = q_t S_t, in chunks (arXiv:2406.06484, 3.2).

    Within a chunk that begins with S, the changes are K^T U, where U solves the triangular system
    (I + tril(diag(beta) K K^T, -1)) U = diag(beta) (V - K S).

    Args:
        q: (B, H, T, K).
        k: (B, H, T, K), of length at most 1.
        v: (B, H, T, V).
        beta: (B, H, T).
        state: S_0, (B, H, K, V); None: zeros.
        chunk: Number of tokens in a chunk.

    Returns:
        o (B, H, T, V) and S_T, in float32 or, for inputs in float64, in float64.
    """
    seq_len = q.shape[2]
    with torch.autocast(q.device.type, enabled=False):
        q, k, v, beta = _chunks(min(chunk, seq_len), q, k, v, beta[..., None])
        system = (beta * (k @ k.mT)).tril(-1)
        right = torch.cat([beta * v, beta * k], dim=-1)
        solved = torch.linalg.solve_triangular(system, right, upper=False, unitriangular=True)
        of_values, of_keys = solved.split([v.shape[-1], k.shape[-1]], dim=-1)  # U = of_values - of_keys S
        scores = (q @ k.mT).tril()
        state = q.new_zeros(*q.shape[:2], k.shape[-1], v.shape[-1]) if state is None else state
        mixed = []
        for n in range(q.shape[2]):
            changes = of_values[:, :, n] - of_keys[:, :, n] @ state
            mixed.append(q[:, :, n] @ state + scores[:, :, n] @ changes)
            state = state + k[:, :, n].mT @ changes
    return torch.cat(mixed, dim=2)[:, :, :seq_len], state


def at_least_float32(x: Tensor) -> Tensor:
    """A tensor in float32, or in float64 if it has that type."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _carried(
    cache: StateCache | None, recurrence: Recurrence, q: Tensor, k: Tensor, v: Tensor, rate: Tensor, chunk: int
) -> Tensor:
    """Outputs of a recurrence that begins with the state of a cache; the new state replaces it there."""
    mixed, state = recurrence(q, k, v, rate, None if cache is None else cache.state, chunk)
    if cache is not None:
        cache.state = state
    return mixed


def _chunks(size: int, *tensors: Tensor) -> list[Tensor]:
    """Tensors (B, H, T, D) as (B, H, N, size, D), filled with zeros at the end: these tokens do not change a state."""
    short = -tensors[0].shape[2] % size
    padded = (F.pad(at_least_float32(tensor), (0, 0, 0, short)) for tensor in tensors)
    return [tensor.unflatten(2, (-1, size)) for tensor in padded]
