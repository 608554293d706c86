"""Initialisations: what values the weights start from."""

import math
from abc import ABC, abstractmethod

from torch import nn

from bytelm.values import PositiveFloat


class ResidualProjection(nn.Linear):
    """A linear layer that writes into the residual stream; initialisations may treat it apart."""


class Initialization(ABC):
    """Base of the initialisations: called once with the finished network, changes its parameters in place."""

    @abstractmethod
    def __call__(self, network: nn.Module, n_layers: int) -> None:
        """Initialises a network of so many blocks."""


class Normal(Initialization):
    """Normal weights, zero biases, and residual projections scaled down with depth (GPT-2; nanoGPT).

    Args:
        std: Standard deviation of linear layers' and embeddings' weights.
        scale_residual: Whether residual projections get std / sqrt(2 n_layers), so that the stream's variance does
            not grow with the number of the branches added to it.
    """

    def __init__(self, std: PositiveFloat = 0.02, scale_residual: bool = True) -> None:
        self.std = std
        self.scale_residual = scale_residual

    def __call__(self, network: nn.Module, n_layers: int) -> None:
        for module in network.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                scaled = self.scale_residual and isinstance(module, ResidualProjection)
                nn.init.normal_(module.weight, std=self.std / math.sqrt(2 * n_layers) if scaled else self.std)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)
