"""Initialisation: the spread of every kind of weight, and the modules that are not changed."""

import functools
import math

import pytest
import torch

from bytelm.gpt import GPT
from bytelm.parts.init import Normal
from bytelm.parts.position import Learned

N_LAYERS = 3


@pytest.fixture(scope="module", params=[{}, {"std": 0.1}, {"scale_residual": False}], ids=str)
def case(request):
    torch.manual_seed(0)
    network = GPT(
        d_model=64,
        n_heads=4,
        n_layers=N_LAYERS,
        position=functools.partial(Learned, std=0.7),
        init=functools.partial(Normal, **request.param),
        tie_embeddings=False,
        head_bias=True,
    )
    std = request.param.get("std", 0.02)
    return network, std, std / math.sqrt(2 * N_LAYERS) if request.param.get("scale_residual", True) else std


def test_weights_have_the_given_standard_deviation(case):
    network, std, residual_std = case
    parts = {"embedding.weight": network.embedding, "head.weight": network.head}
    for i, block in enumerate(network.blocks):
        parts |= {f"blocks.{i}.qkv": block.attention.qkv, f"blocks.{i}.up": block.feedforward.up}
        parts |= {f"blocks.{i}.out": block.attention.out, f"blocks.{i}.down": block.feedforward.down}
    measured = {name: part.weight.std().item() for name, part in parts.items()}
    expected = {name: residual_std if name.endswith(("out", "down")) else std for name in parts}
    assert measured == pytest.approx(expected, rel=0.05)


def test_biases_are_zero_and_norms_the_identity(case):
    network, _, _ = case
    vectors = {name: p for name, p in network.named_parameters() if p.ndim == 1}
    assert len(vectors) == N_LAYERS * 8 + 3
    for name, p in vectors.items():
        assert torch.equal(p, torch.ones_like(p) if name.endswith("norm.weight") else torch.zeros_like(p)), name


def test_positions_keep_their_own_initial_values(case):
    assert case[0].position.weight.std().item() == pytest.approx(0.7, rel=0.05)
