"""max(x, 0)^2 on the CPU (relu_squared.cpp)."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from bytelm.kernels.cpu import DTYPES, call, library

_NAME = "relu_squared"


def is_available(x: Tensor) -> bool:
    """Whether there is a kernel for this tensor, and it can be built here."""
    return x.device.type == "cpu" and x.dtype in DTYPES and library(_NAME) is not None


def relu_squared(x: Tensor) -> Tensor:
    """max(x, 0)^2, for each element of a tensor on the CPU."""
    squared: Tensor = _ReLUSquared.apply(x)
    return squared


class _ReLUSquared(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        x = x.contiguous()
        ctx.save_for_backward(x)
        out = torch.empty_like(x)
        call(_NAME, "square", x.dtype, x, out, x.numel(), torch.get_num_threads())
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        gradient, of_x = gradient.to(x.dtype).contiguous(), torch.empty_like(x)
        call(_NAME, "square_backward", x.dtype, x, gradient, of_x, x.numel(), torch.get_num_threads())
        return of_x
