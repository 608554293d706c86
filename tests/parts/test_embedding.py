"""Token embeddings look up rows of their weight, scaled or not."""

import math

import pytest
import torch

from bytelm.parts.embedding import ScaledEmbedding, TokenEmbedding


@pytest.mark.parametrize(("embedding", "factor"), [(TokenEmbedding, 1.0), (ScaledEmbedding, math.sqrt(12))])
def test_embedding_is_a_row_of_the_weight_times_a_factor(embedding, factor):
    module = embedding(10, 12)
    assert module.weight.shape == (10, 12)
    tokens = torch.tensor([[3, 0, 9], [3, 3, 1]])
    rows = torch.stack([torch.stack([module.weight[t] for t in row]) for row in tokens.tolist()])
    torch.testing.assert_close(module(tokens), rows * factor)
