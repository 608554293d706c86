"""Normalisations over the last dimension, with or without learned weights."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bytelm.config.values import PositiveFloat
from bytelm.parts.contract import Norm


class LayerNorm(Norm):
    """To mean 0 and variance 1 (Ba et al. 2016, arXiv:1607.06450).

    Args:
        dim: Size of the dimension that is normalised.
        weight: Whether to scale by learned weights.
        bias: Whether to add a learned bias.
        eps: Added to the variance.
    """

    def __init__(self, dim: int, weight: bool = True, bias: bool = True, eps: PositiveFloat = 1e-5) -> None:
        super().__init__()
        self.shape = (dim,)
        self.weight = nn.Parameter(torch.ones(dim)) if weight else None
        self.bias = nn.Parameter(torch.zeros(dim)) if bias else None
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, self.shape, self.weight, self.bias, self.eps)


class RMSNorm(Norm):
    """To a root mean square of 1 (Zhang and Sennrich 2019, arXiv:1910.07467).

    Args:
        dim: Size of the dimension that is normalised.
        weight: Whether to scale by learned weights.
        eps: Added to the mean square.
    """

    def __init__(self, dim: int, weight: bool = True, eps: PositiveFloat = 1e-6) -> None:
        super().__init__()
        self.shape = (dim,)
        self.weight = nn.Parameter(torch.ones(dim)) if weight else None
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        # In x's dtype: with bf16 queries and float32 weights, torch would use a slow, mixed kernel.
        weight = None if self.weight is None else self.weight.to(x.dtype)
        return F.rms_norm(x, self.shape, weight, self.eps)
