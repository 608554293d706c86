"""The initialisation of nanochat and autoresearch."""

import math

from torch import nn

from bytelm.config.values import PositiveFloat
from bytelm.parts.contract import Initialization
from bytelm.parts.init import ResidualProjection, is_tied, to_initialize


class UniformFanIn(Initialization):
    """Uniform weights with the standard deviation 1 / sqrt(inputs); residual projections and biases are zero.

    Embeddings and the head are normal. A tied head has the embedding's weights.

    Args:
        embedding_std: Standard deviation of embeddings' weights.
        head_std: Standard deviation of the head's weights.
    """

    def __init__(self, embedding_std: PositiveFloat = 1.0, head_std: PositiveFloat = 0.001) -> None:
        self.embedding_std = embedding_std
        self.head_std = head_std

    def __call__(self, network: nn.Module, n_layers: int) -> None:
        head = network.get_submodule("head")
        tied = is_tied(network)
        for module in to_initialize(network):
            if isinstance(module, nn.Embedding):
                nn.init.normal_(module.weight, std=self.embedding_std)
            elif isinstance(module, nn.Linear):
                if isinstance(module, ResidualProjection):
                    nn.init.zeros_(module.weight)
                elif module is not head:
                    bound = math.sqrt(3 / module.in_features)
                    nn.init.uniform_(module.weight, -bound, bound)
                elif not tied:
                    nn.init.normal_(module.weight, std=self.head_std)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
