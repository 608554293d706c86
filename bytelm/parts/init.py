"""Initialisations of the weights.

Modules that declare `initializes_itself`, and all modules inside them, are not changed.
"""

import math
from collections.abc import Iterator

from torch import nn

from bytelm.config.values import PositiveFloat
from bytelm.parts.contract import Initialization


class ResidualProjection(nn.Linear):
    """A linear layer that writes to the residual stream; initialisations can treat it differently."""


def is_tied(network: nn.Module) -> bool:
    """Returns whether the head has the embedding's weights."""
    head = network.get_submodule("head")
    return any(head.weight is p for p in network.get_submodule("embedding").parameters())


def to_initialize(network: nn.Module) -> Iterator[nn.Module]:
    """The modules of a network that do not initialise themselves, in the order of `network.modules()`."""
    own = {
        id(inner)
        for module in network.modules()
        if getattr(module, "initializes_itself", False)
        for inner in module.modules()
    }
    return (module for module in network.modules() if id(module) not in own)


class Normal(Initialization):
    """Normal weights, zero biases, and residual projections scaled down with depth (GPT-2; nanoGPT).

    Args:
        std: Standard deviation of linear layers' and embeddings' weights.
        scale_residual: Whether residual projections use std / sqrt(2 n_layers), which keeps the stream's variance
            independent of the number of branches.
    """

    def __init__(self, std: PositiveFloat = 0.02, scale_residual: bool = True) -> None:
        self.std = std
        self.scale_residual = scale_residual

    def __call__(self, network: nn.Module, n_layers: int) -> None:
        for module in to_initialize(network):
            if isinstance(module, nn.Linear | nn.Embedding):
                scaled = self.scale_residual and isinstance(module, ResidualProjection)
                nn.init.normal_(module.weight, std=self.std / math.sqrt(2 * n_layers) if scaled else self.std)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)


class FanIn(Initialization):
    """Weights with std 1 / sqrt(inputs) of each linear layer; residual projections and the head start at zero.

    Every block begins as the identity, and the first prediction is uniform (zero-initialised outputs: Zhang et al.
    2019, Fixup, arXiv:1901.09321; Yang et al. 2022, arXiv:2203.03466, for the head).

    Args:
        embedding_std: Standard deviation of embeddings' weights.
        zero: Whether residual projections and an untied head start at zero instead of like other layers.
    """

    def __init__(self, embedding_std: PositiveFloat = 0.02, zero: bool = True) -> None:
        self.embedding_std = embedding_std
        self.zero = zero

    def __call__(self, network: nn.Module, n_layers: int) -> None:
        head = network.get_submodule("head")
        tied = is_tied(network)
        for module in to_initialize(network):
            if isinstance(module, nn.Embedding):
                nn.init.normal_(module.weight, std=self.embedding_std)
            elif isinstance(module, nn.Linear) and not (module is head and tied):
                nn.init.normal_(module.weight, std=1 / math.sqrt(module.in_features))
                if self.zero and (isinstance(module, ResidualProjection) or module is head):
                    nn.init.zeros_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
