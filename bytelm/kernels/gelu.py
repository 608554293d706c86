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
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.library import custom_op

from bytelm.kernels import ahead

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
    product, _, _ = _forward(x, up, down)
    return product


# An operator, not an autograd.Function: torch's cache of compiled graphs excludes graphs that contain one.
@custom_op("bytelm::gelu_feedforward", mutates_args=(), device_types="cuda")
def _forward(x: Tensor, up: Tensor, down: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The result, (N, d_model), and what the backward pass needs: the hidden layer and GELU's slope, each (N, d_ff)."""
    products = _gelu_and_slope(x, up.T, config=UP_TILES, tuned=False)
    hidden = products["hidden"]
    return hidden @ down.T, hidden, products["D"]


@_forward.register_fake
def _(x: Tensor, up: Tensor, down: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    shape = (x.shape[0], up.shape[0])
    return x.new_empty(x.shape[0], down.shape[0]), x.new_empty(shape), x.new_empty(shape)


def _keep(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, ...]) -> None:
    ctx.set_materialize_grads(False)  # of the hidden layer and the slope, which only the backward pass reads
    ctx.save_for_backward(*inputs, *output[1:])


def _differentiate(ctx: Any, gradient: Tensor, *_: None) -> tuple[Tensor, Tensor, Tensor]:
    x, up, down, hidden, slope = ctx.saved_tensors
    gradient = gradient.contiguous()
    before = _down_gradient(gradient, down, slope)
    return before @ up, before.T @ x, gradient.T @ hidden


_forward.register_autograd(_differentiate, setup_context=_keep)


@custom_op("bytelm::down_gradient_gelu", mutates_args=(), device_types="cuda")
def _down_gradient(gradient: Tensor, down: Tensor, slope: Tensor) -> Tensor:
    """The gradient of GELU's input, (N, d_ff), from the gradient of the result, (N, d_model)."""
    return _times(gradient, down, slope, config=DOWN_TILES, tuned=False)["D"]


@_down_gradient.register_fake
def _(gradient: Tensor, down: Tensor, slope: Tensor) -> Tensor:
    ahead.start("gelu", slope.device, str(slope.dtype).removeprefix("torch."))
    return torch.empty_like(slope)


def compile_kernels(dtype: str) -> None:
    """Compiles both products, for any sizes.

    Args:
        dtype: Name of the type.
    """
    with FakeTensorMode():
        x, hidden, up, down = (
            torch.empty(shape, dtype=getattr(torch, dtype), device="cuda")
            for shape in ((128, 64), (128, 256), (256, 64), (64, 256))
        )
        _gelu_and_slope.plan(x, up.T, out={"D": hidden, "hidden": hidden}, config=UP_TILES)
        _times.plan(x, down, hidden, out={"D": hidden}, config=DOWN_TILES)


# quack traces these functions and uses the names of their arguments.
@gemm_epilogue(outputs=("hidden",))
def _gelu_and_slope(acc):  # type: ignore[no-untyped-def]
    slope, hidden = dgelu_erf(acc, 1.0)
    return {"D": slope, "hidden": hidden}


@gemm_epilogue()
def _times(acc, c):  # type: ignore[no-untyped-def]
    return {"D": acc * c}
