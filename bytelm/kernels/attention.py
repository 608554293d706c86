"""Causal attention on Hopper: cuDNN's forward pass and FlashAttention-4's backward pass; for windows, both are its.

These are the fastest available kernels for it, and the backward pass can read the log-sum-exp of the forward pass. The
backward pass writes the gradients of queries, keys and values into one tensor, in the layout of the product that made
queries, keys and values. torch.compile can therefore remove the concatenation that autograd makes of the split.
"""

from typing import Any

import torch
from flash_attn.cute.interface import _flash_attn_bwd, _flash_attn_fwd
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.library import custom_op

from bytelm.kernels import ahead

SEVERAL_BLOCKS = 512  # tokens; the kernels differ only for sequences of one block


def flash_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(Q K^T / sqrt(head_dim)) V, causal: a query attends to the keys up to its position.

    The kernels for Hopper of https://github.com/Dao-AILab/flash-attention implement Shah et al. 2024,
    arXiv:2407.08608.

    Args:
        q: Queries, (B, n_heads, T, head_dim), in bf16 or fp16, on a Hopper GPU.
        k: Keys, of the same shape.
        v: Values, of the same shape.

    Returns:
        (B, n_heads, T, head_dim), in memory (B, T, n_heads, head_dim).
    """
    mixed, _ = _forward(q, k, v)
    return mixed


def windowed_flash_attention(q: Tensor, k: Tensor, v: Tensor, window: int) -> Tensor:
    """flash_attention to the last `window` tokens, which skips all blocks of keys before them.

    Args:
        q: Queries, (B, n_heads, T, head_dim), in bf16 or fp16, on a Hopper GPU.
        k: Keys, of the same shape.
        v: Values, of the same shape.
        window: Number of tokens that a query sees, its own included.

    Returns:
        (B, n_heads, T, head_dim), in memory (B, T, n_heads, head_dim).
    """
    mixed, _ = _windowed(q, k, v, window)
    return mixed


@custom_op("bytelm::flash_attention", mutates_args=(), device_types="cuda")
def _forward(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    attend = torch.ops.aten._scaled_dot_product_cudnn_attention  # the public function does not return the log-sums
    mixed, log_sums, *_ = attend(q, k, v, attn_bias=None, compute_log_sumexp=True, is_causal=True)
    return _by_token(mixed), log_sums.view(q.shape[:-1])


@_forward.register_fake
def _(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    return _by_token(q.new_empty(q.shape)), q.new_empty(q.shape[:-1], dtype=torch.float32)


def _window(q: Tensor, k: Tensor, v: Tensor, window: int) -> tuple[Tensor, Tensor]:
    ahead.wait()
    theirs = [tensor.transpose(1, 2) for tensor in (q, k, v)]  # (B, T, n_heads, head_dim)
    mixed, log_sums, *_ = _flash_attn_fwd(*theirs, window_size_left=window - 1, window_size_right=0, return_lse=True)
    return mixed.transpose(1, 2), log_sums


_windowed = custom_op("bytelm::windowed_flash_attention", mutates_args=(), device_types="cuda")(_window)


@_windowed.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, window: int) -> tuple[Tensor, Tensor]:
    return _by_token(q.new_empty(q.shape)), q.new_empty(q.shape[:-1], dtype=torch.float32)


def _gradients(
    gradient: Tensor, q: Tensor, k: Tensor, v: Tensor, mixed: Tensor, log_sums: Tensor, window: int | None = None
) -> Tensor:
    """Gradients of queries, keys and values, (B, T, 3 n_heads, head_dim)."""
    ahead.wait()
    batch, n_heads, seq_len, head_dim = q.shape
    gradients = q.new_empty(batch, seq_len, 3 * n_heads, head_dim)
    dq, dk, dv = gradients.chunk(3, dim=2)
    theirs = [tensor.transpose(1, 2) for tensor in (q, k, v, mixed, gradient)]  # (B, T, n_heads, head_dim)
    span: dict[str, Any] = {"causal": True}
    if window is not None:
        span = {"window_size_left": window - 1, "window_size_right": 0}
    _flash_attn_bwd(*theirs, log_sums, **span, dq=dq, dk=dk, dv=dv)
    return gradients


_backward = custom_op("bytelm::flash_attention_backward", mutates_args=(), device_types="cuda")(_gradients)


@_backward.register_fake
def _(
    gradient: Tensor, q: Tensor, k: Tensor, v: Tensor, mixed: Tensor, log_sums: Tensor, window: int | None = None
) -> Tensor:
    batch, n_heads, seq_len, head_dim = q.shape
    if isinstance(seq_len, int):  # not a size that varies
        name = str(q.dtype).removeprefix("torch.")
        ahead.start("attention", q.device, min(seq_len, SEVERAL_BLOCKS), head_dim, name, window)
    return q.new_empty(batch, seq_len, 3 * n_heads, head_dim)


def compile_kernels(seq_len: int, head_dim: int, dtype: str, window: int | None) -> None:
    """Compiles what a network calls, without data.

    Args:
        seq_len: Tokens of a row.
        head_dim: Size of a head.
        dtype: Name of the type.
        window: Of windowed_flash_attention; None: flash_attention.
    """
    with FakeTensorMode():
        heads = torch.empty(2, seq_len, 6, head_dim, dtype=getattr(torch, dtype), device="cuda")
        q, k, v = (part.transpose(1, 2) for part in heads.split(2, dim=2))
        log_sums = torch.empty(2, 2, seq_len, device="cuda")
        if window is not None:
            _window(q, k, v, window)
        _gradients(q, q, k, v, q, log_sums, window)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    q, k, v, *window = inputs
    ctx.window = window
    ctx.save_for_backward(q, k, v, *output)


def _differentiate(ctx: Any, gradient: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    gradients = _backward(gradient, *ctx.saved_tensors, *ctx.window)
    parts = gradients.split([gradient.shape[1]] * 3, dim=2)
    return (*(part.transpose(1, 2) for part in parts), *(None for _ in ctx.window))


_forward.register_autograd(_differentiate, setup_context=_keep)
_windowed.register_autograd(_differentiate, setup_context=_keep)


def _by_token(heads: Tensor) -> Tensor:
    """(B, n_heads, T, head_dim), with the heads of a token adjacent in memory, as projections need them."""
    return heads.transpose(1, 2).contiguous().transpose(1, 2)
