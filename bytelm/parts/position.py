"""Position encodings.

Each acts in one of three places: `embed` (added to the embeddings), `rotate` (applied to queries and keys), `scores`
(added to the attention scores).
"""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from bytelm.config.values import PositiveFloat
from bytelm.errors import ConfigError
from bytelm.parts.contract import PositionEncoding


class NoPosition(PositionEncoding):
    """No encoding: the network infers positions from the causal mask (Haviv et al. 2022, arXiv:2203.16634)."""


class Learned(PositionEncoding):
    """One learned vector a position, added to the token embedding (GPT-2).

    Args:
        d_model: Width of the residual stream.
        n_heads: Number of query heads.
        max_seq_len: Longest sequence, in tokens.
        std: Standard deviation of the initial values.
    """

    def __init__(self, d_model: int, n_heads: int, max_seq_len: int, std: PositiveFloat = 0.02) -> None:
        super().__init__(d_model, n_heads, max_seq_len)
        self.weight = nn.Parameter(torch.empty(max_seq_len, d_model).normal_(std=std))

    def embed(self, x: Tensor, start: int = 0) -> Tensor:
        return x + self.weight[start : start + x.shape[1]]


class Sinusoidal(PositionEncoding):
    """Fixed sines and cosines added to the token embedding (Vaswani et al. 2017, arXiv:1706.03762, 3.5).

    Args:
        d_model: Width of the residual stream; even.
        n_heads: Number of query heads.
        max_seq_len: Longest sequence, in tokens.
        base: Ratio of the longest to the shortest wavelength.

    Raises:
        ConfigError: d_model is odd.
    """

    table: Tensor

    def __init__(self, d_model: int, n_heads: int, max_seq_len: int, base: PositiveFloat = 10_000.0) -> None:
        super().__init__(d_model, n_heads, max_seq_len)
        if d_model % 2:
            raise ConfigError("d_model", d_model, "Sinusoidal needs an even width")
        angles = _angles(d_model, max_seq_len, base)
        table = torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(1)  # sin at even dimensions, cos at odd
        self.register_buffer("table", table, persistent=False)

    def embed(self, x: Tensor, start: int = 0) -> Tensor:
        return x + self.table[start : start + x.shape[1]].to(x.dtype)


class Rotary(PositionEncoding):
    """RoPE: queries and keys are rotated by angles that grow with position (Su et al. 2021, arXiv:2104.09864).

    Dimension i is paired with i + head_dim / 2. Scores then depend only on the distance of two tokens.

    Args:
        d_model: Width of the residual stream.
        n_heads: Number of query heads; d_model / n_heads must be even.
        max_seq_len: Longest sequence, in tokens.
        base: Base of the geometric series of wavelengths.

    Raises:
        ConfigError: The head dimension is odd.
    """

    cos: Tensor
    sin: Tensor

    def __init__(self, d_model: int, n_heads: int, max_seq_len: int, base: PositiveFloat = 10_000.0) -> None:
        super().__init__(d_model, n_heads, max_seq_len)
        head_dim = d_model // n_heads
        if head_dim % 2:
            raise ConfigError(
                "d_model", d_model, f"Rotary needs an even head dimension, and d_model / n_heads is {head_dim}"
            )
        angles = _angles(head_dim, max_seq_len, base)  # (T, head_dim / 2)
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)

    def rotate(self, q: Tensor, k: Tensor, start: int = 0) -> tuple[Tensor, Tensor]:
        # In the dtype of q and k: under bf16 a float32 table would convert attention to float32.
        end = start + q.shape[-2]
        cos, sin = self.cos[start:end].to(q.dtype), self.sin[start:end].to(q.dtype)
        return _rotate(q, cos, sin), _rotate(k, cos, sin)


class ALiBi(PositionEncoding):
    """Each head subtracts a slope times the distance from its scores (Press et al. 2021, arXiv:2108.12409).

    With n heads, head h = 1..n has slope 2^(-8 h / n).

    Args:
        d_model: Width of the residual stream.
        n_heads: Number of query heads.
        max_seq_len: Longest sequence, in tokens.
    """

    bias: Tensor

    def __init__(self, d_model: int, n_heads: int, max_seq_len: int) -> None:
        super().__init__(d_model, n_heads, max_seq_len)
        slopes = 2.0 ** (-8.0 * torch.arange(1, n_heads + 1) / n_heads)
        position = torch.arange(max_seq_len)
        distance = position[:, None] - position[None, :]
        bias = (-slopes[:, None, None] * distance).masked_fill(distance < 0, -math.inf)
        self.register_buffer("bias", bias, persistent=False)

    def scores(self, seq_len: int) -> Tensor:
        return self.bias[:, :seq_len, :seq_len]


def _angles(dim: int, max_seq_len: int, base: float) -> Tensor:
    """position / base^(2 i / dim), shape (max_seq_len, dim / 2)."""
    frequencies = 1.0 / (base ** (torch.arange(0, dim, 2).float() / dim))
    return torch.outer(torch.arange(max_seq_len).float(), frequencies)


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    if x.device.type == "cpu" and x.dtype == torch.bfloat16 and not torch.compiler.is_compiling():
        rotated: Tensor = _Rotation.apply(x, torch.cat([cos, cos], dim=-1), torch.cat([-sin, sin], dim=-1))
        return rotated
    a, b = x.chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1)


class _Rotation(Function):
    """A rotation in three operators, backward too: in bf16 on the CPU, those on halves of vectors are slow."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return torch.addcmul(x * cos, x.roll(x.shape[-1] // 2, -1), sin)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        cos, sin = ctx.saved_tensors
        return torch.addcmul(gradient * cos, gradient.roll(gradient.shape[-1] // 2, -1), sin, value=-1), None, None
