"""A feed-forward whose matrix products also compute GELU and its gradient, on Hopper.

Separate kernels for GELU are bound by memory: the hidden layer of 61,440 tokens is 377 MB in bf16, and a layer would
read and write it five more times. QuACK (https://github.com/Dao-AILab/quack) multiplies matrices as fast as cuBLAS and
applies a function of the caller to the elements of a product. The two short functions are at the end: the product that
makes the hidden layer writes GELU and its slope, and the product of the backward pass multiplies by the slope.
"""

from typing import Any

import torch
from quack.activation import dgelu_erf
from quack.epilogue import gemm_epilogue
from quack.gemm_config import GemmConfig
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.library import custom_op

# Two groups of warps alternate: one multiplies while the other computes its epilogue.
UP_TILES = GemmConfig(tile_m=128, tile_n=128, pingpong=True, cluster_m=2, cluster_n=1, is_dynamic_persistent=False)
DOWN_TILES = GemmConfig(tile_m=128, tile_n=192, pingpong=True, cluster_m=2, cluster_n=1, is_dynamic_persistent=False)


def gelu_feedforward(x: Tensor, up: Tensor, down: Tensor) -> Tensor:
    """down(GELU(up(x))) with the exact GELU.

    Args:
        x: (N, d_model), in bf16 or fp16, on a Hopper GPU.
        up: (d_ff, d_model), of the same type.
        down: (d_model, d_ff), of the same type.

    Returns:
        (N, d_model).
    """
    return _FeedForward.apply(x, up, down)


class _FeedForward(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, up: Tensor, down: Tensor) -> Tensor:
        hidden, slope = _up(x, up)
        ctx.save_for_backward(x, up, down, hidden, slope)
        return hidden @ down.T

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x, up, down, hidden, slope = ctx.saved_tensors
        gradient = gradient.contiguous()
        before = _down_gradient(gradient, down, slope)
        return before @ up, before.T @ x, gradient.T @ hidden


@custom_op("bytelm::up_gelu", mutates_args=(), device_types="cuda")
def _up(x: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
    """The hidden layer and GELU's slope, each (N, d_ff)."""
    products = _gelu_and_slope(x, up.T, config=UP_TILES, tuned=False)
    return products["hidden"], products["D"]


@_up.register_fake
def _(x: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
    shape = (x.shape[0], up.shape[0])
    return x.new_empty(shape), x.new_empty(shape)


@custom_op("bytelm::down_gradient_gelu", mutates_args=(), device_types="cuda")
def _down_gradient(gradient: Tensor, down: Tensor, slope: Tensor) -> Tensor:
    """The gradient of GELU's input, (N, d_ff), from the gradient of the result, (N, d_model)."""
    return _times(gradient, down, slope, config=DOWN_TILES, tuned=False)["D"]


@_down_gradient.register_fake
def _(gradient: Tensor, down: Tensor, slope: Tensor) -> Tensor:
    return torch.empty_like(slope)


# quack traces these functions and uses the names of their arguments.
@gemm_epilogue(outputs=("hidden",))
def _gelu_and_slope(acc):  # type: ignore[no-untyped-def]
    slope, hidden = dgelu_erf(acc, 1.0)
    return {"D": slope, "hidden": hidden}


@gemm_epilogue()
def _times(acc, c):  # type: ignore[no-untyped-def]
    return {"D": acc * c}
