"""Feed-forward networks: the part of a block that processes each token alone."""

import math
from abc import abstractmethod
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from bytelm.config.values import UnitInterval
from bytelm.errors import ConfigError
from bytelm.kernels import load_for_hopper, on_hopper, relu_squared
from bytelm.parts import contract
from bytelm.parts.contract import Context, Run
from bytelm.parts.init import ResidualProjection


class MLP(contract.FeedForward):
    """Base of down(activation(up(x))); a subclass defines the activation.

    Args:
        d_model: Width of the residual stream.
        d_ff: Width of the hidden layer.
        dropout: Probability of dropping a hidden unit.
        bias: Whether the projections have biases.
    """

    def __init__(self, d_model: int, d_ff: int, dropout: UnitInterval = 0.0, bias: bool = True) -> None:
        super().__init__()
        self.up = nn.Linear(d_model, d_ff, bias=bias)
        self.down = ResidualProjection(d_ff, d_model, bias=bias)
        self.dropout = nn.Dropout(dropout)

    @abstractmethod
    def activation(self, x: Tensor) -> Tensor:
        """The nonlinearity, (B, T, d_ff) to the same shape."""

    def forward(self, x: Tensor, context: Context | None = None) -> Tensor:
        return self.down(self.dropout(self.activation(self.up(x))))


class ReLU(MLP):
    """max(x, 0)."""

    gpt2_activation = "relu"

    def activation(self, x: Tensor) -> Tensor:
        return F.relu(x)


class GELU(MLP):
    """x Phi(x) (Hendrycks and Gimpel 2016, arXiv:1606.08415).

    Args:
        d_model: Width of the residual stream.
        d_ff: Width of the hidden layer.
        dropout: Probability of dropping a hidden unit.
        bias: Whether the projections have biases.
        approximate: `tanh`: the approximation that OpenAI's GPT-2 was trained with. `polynomial`: an approximation
            within 1e-6, below the resolution of bf16, which is faster than the exact GELU on GPUs with torch.compile
            (Abramowitz and Stegun 1964, 26.2.17).
    """

    def __init__(
        self,
        d_model: int,
        d_ff: int,
        dropout: UnitInterval = 0.0,
        bias: bool = True,
        approximate: Literal["none", "tanh", "polynomial"] = "none",
    ) -> None:
        super().__init__(d_model, d_ff, dropout, bias)
        self.approximate = approximate

    @property
    def gpt2_activation(self) -> str:
        return "gelu_new" if self.approximate == "tanh" else "gelu"

    def activation(self, x: Tensor) -> Tensor:
        if self.approximate == "polynomial":
            return _PolynomialGELU.apply(x)
        return F.gelu(x, approximate=self.approximate)


class _PolynomialGELU(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        below, _ = _normal(x.float())
        return (x * below).to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        below, density = _normal(x.float())
        return (gradient * (below + x * density)).to(x.dtype)


def _normal(x: Tensor) -> tuple[Tensor, Tensor]:
    """The normal distribution at x: Phi, to 7.5e-8, and its density. Both use the same exponential."""
    density = torch.exp(-0.5 * x * x) / math.sqrt(2 * math.pi)
    t = 1 / (1 + 0.2316419 * x.abs())
    polynomial = t * (0.319381530 + t * (-0.356563782 + t * (1.781477937 + t * (-1.821255978 + t * 1.330274429))))
    beyond = density * polynomial
    return torch.where(x < 0, beyond, 1 - beyond), density


class FusedGELU(GELU):
    """GELU that on Hopper GPUs is computed inside the products around it (bytelm/kernels/gelu.py), without biases.

    On other devices, in float32, and without gradients it computes the plain GELU; checkpoints run on any device.

    Args:
        d_model: Width of the residual stream; a multiple of 8.
        d_ff: Width of the hidden layer; a multiple of 8.

    Raises:
        ConfigError: There is a Hopper GPU and the kernels are not installed, or a size is not a multiple of 8.
    """

    gpt2_activation = "gelu"

    def __init__(self, d_model: int, d_ff: int) -> None:
        super().__init__(d_model, d_ff, bias=False)
        load_for_hopper("gelu", "feedforward", type(self).__name__)
        for name, size in (("d_model", d_model), ("d_ff", d_ff)):
            if size % 8:
                raise ConfigError(name, size, f"{type(self).__name__} accepts multiples of 8")

    def check(self, run: Run) -> None:
        if run.precision.startswith("fp8"):
            raise ConfigError(
                "model.gpt.feedforward",
                type(self).__name__,
                "accepted with FP8: feed-forwards that call their linear layers, such as GELU",
            )
        if type(self.up).forward is not nn.Linear.forward:  # a block has replaced them, and the kernels skip its own
            layers = type(self.up).__name__
            raise ConfigError(
                "model.gpt.feedforward",
                type(self).__name__,
                f"accepted with {layers}: feed-forwards that call their linear layers, such as GELU",
            )

    def forward(self, x: Tensor, context: Context | None = None) -> Tensor:
        device = x.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
        if not (torch.is_grad_enabled() and on_hopper(x.device, dtype)):
            return super().forward(x, context)
        from bytelm.kernels.gelu import gelu_feedforward

        up, down = self.up.weight.to(dtype), self.down.weight.to(dtype)
        return gelu_feedforward(x.to(dtype).flatten(0, -2), up, down).view(x.shape)


class SiLU(MLP):
    """x sigmoid(x) (Elfwing et al. 2017, arXiv:1702.03118)."""

    gpt2_activation = "silu"

    def activation(self, x: Tensor) -> Tensor:
        return F.silu(x)


class ReLUSquared(MLP):
    """max(x, 0)^2 (So et al. 2021, arXiv:2109.08668)."""

    gpt2_activation = "relu2"

    def activation(self, x: Tensor) -> Tensor:
        compiling = torch.compiler.is_compiling()
        if x.dtype == torch.bfloat16 and not compiling and relu_squared.is_available(x):
            return relu_squared.relu_squared(x)
        if x.device.type == "cpu" and x.dtype == torch.bfloat16 and not compiling:
            squared: Tensor = _ReLUSquared.apply(x)
            return squared
        return F.relu(x).square()


class _ReLUSquared(Function):
    """The same in bf16 throughout: autocast computes squares in float32, which takes twice the time on the CPU."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        positive = x.relu()
        ctx.save_for_backward(positive)
        return positive * positive

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (positive,) = ctx.saved_tensors
        return (gradient * positive).mul_(2)


class GatedMLP(MLP):
    """Base of gated feed-forwards: down(activation(gate(x)) * up(x)) (Shazeer 2020, arXiv:2002.05202).

    It has three matrices instead of two. With d_ff * 2 / 3 it has as many parameters as an ungated one.

    Args:
        d_model: Width of the residual stream.
        d_ff: Width of the hidden layer.
        dropout: Probability of dropping a hidden unit.
        bias: Whether the projections have biases.
    """

    def __init__(self, d_model: int, d_ff: int, dropout: UnitInterval = 0.0, bias: bool = True) -> None:
        super().__init__(d_model, d_ff, dropout, bias)
        self.gate = nn.Linear(d_model, d_ff, bias=bias)

    def forward(self, x: Tensor, context: Context | None = None) -> Tensor:
        hidden: Tensor = torch.mul(self.activation(self.gate(x)), self.up(x))
        return self.down(self.dropout(hidden))


class SwiGLU(GatedMLP):
    """down(SiLU(gate(x)) * up(x)), with three matrices (Shazeer 2020, arXiv:2002.05202)."""

    def activation(self, x: Tensor) -> Tensor:
        return F.silu(x)


class GeGLU(GatedMLP):
    """down(GELU(gate(x)) * up(x)), with three matrices (Shazeer 2020, arXiv:2002.05202)."""

    def activation(self, x: Tensor) -> Tensor:
        return F.gelu(x)
