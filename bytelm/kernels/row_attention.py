"""Causal attention over whole rows on the CPU (row_attention.cpp)."""

import ctypes
import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from bytelm.kernels.cpu import DTYPES, call, library

_NAME = "row_attention"
MULTIPLE = 32  # of row lengths and head dimensions


class _Attention(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_int64) for name in ("n_rows", "seq_len", "n_heads", "head_dim", "n_threads")),
        *((name, ctypes.c_void_p) for name in ("cos", "sin")),
        ("scale", ctypes.c_float),
    )


def is_available(qkv: Tensor, n_heads: int) -> bool:
    """Whether there is a kernel for these queries, keys and values, and it can be built here.

    Args:
        qkv: As for `attend`.
        n_heads: Number of heads.
    """
    fits = qkv.shape[1] % MULTIPLE == 0 and qkv.shape[2] % (3 * n_heads * MULTIPLE) == 0
    return fits and qkv.device.type == "cpu" and qkv.dtype in DTYPES and library(_NAME) is not None


def attend(qkv: Tensor, cos: Tensor, sin: Tensor, n_heads: int) -> Tensor:
    """softmax(Q K^T / sqrt(head_dim)) V, causal, with queries and keys rotated as Rotary does.

    Sums and exponentials are in float32, whatever the type of the inputs. Where the processor multiplies pairs of bf16,
    the factors of products are rounded to bf16 if the inputs are.

    Args:
        qkv: Queries, keys and values of all heads, (B, T, 3 n_heads head_dim); T and head_dim are multiples of
            MULTIPLE.
        cos: Cosines of the angles, (T or more, head_dim / 2).
        sin: Sines.
        n_heads: Number of heads.

    Returns:
        (B, T, n_heads head_dim).
    """
    attended: Tensor = _Attend.apply(qkv, cos.float().contiguous(), sin.float().contiguous(), n_heads)
    return attended


class _Attend(Function):
    @staticmethod
    def forward(ctx: Any, qkv: Tensor, cos: Tensor, sin: Tensor, n_heads: int) -> Tensor:
        qkv = qkv.contiguous()
        n_rows, seq_len, width = qkv.shape
        out = qkv.new_empty(n_rows, seq_len, width // 3)
        log_sums = torch.empty(n_rows, n_heads, seq_len, dtype=torch.float32)
        call(_NAME, "attend", qkv.dtype, _options(qkv, cos, sin, n_heads), qkv, out, log_sums)
        ctx.save_for_backward(qkv, out, log_sums, cos, sin)
        ctx.n_heads = n_heads
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        qkv, out, log_sums, cos, sin = ctx.saved_tensors
        of_qkv, gradient = torch.empty_like(qkv), gradient.to(qkv.dtype).contiguous()
        options = _options(qkv, cos, sin, ctx.n_heads)
        call(_NAME, "attend_backward", qkv.dtype, options, qkv, out, log_sums, gradient, of_qkv)
        return of_qkv, None, None, None


def _options(qkv: Tensor, cos: Tensor, sin: Tensor, n_heads: int) -> _Attention:
    n_rows, seq_len, width = qkv.shape
    head_dim = width // (3 * n_heads)
    return _Attention(
        n_rows=n_rows,
        seq_len=seq_len,
        n_heads=n_heads,
        head_dim=head_dim,
        n_threads=torch.get_num_threads(),
        cos=cos.data_ptr(),
        sin=sin.data_ptr(),
        scale=1 / math.sqrt(head_dim),
    )
