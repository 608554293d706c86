"""FanIn: weights scale with the size of the input; blocks start as the identity and predictions as uniform."""

import functools
import math

import pytest
import torch
from contexts import context

from bytelm.gpt import GPT
from bytelm.parts.feedforward import SwiGLU
from bytelm.parts.init import FanIn
from bytelm.parts.memory import NGramMemory
from bytelm.parts.position import Learned

D_MODEL, D_FF, N_LAYERS = 64, 160, 3


def network(init=None, **options):
    torch.manual_seed(0)
    sizes = {"d_model": D_MODEL, "n_heads": 4, "n_layers": N_LAYERS, "d_ff": D_FF, "tie_embeddings": False}
    return GPT(**{**sizes, "init": functools.partial(FanIn, **(init or {})), **options})


def tokens():
    return torch.randint(256, (2, 12), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("feedforward", [None, SwiGLU])
@pytest.mark.parametrize("init", [{}, {"zero": False}, {"embedding_std": 0.3}], ids=str)
def test_weights_have_the_standard_deviation_of_their_fan_in(init, feedforward):
    model = network(init, head_bias=True, **({} if feedforward is None else {"feedforward": feedforward}))
    zero = init.get("zero", True)
    assert model.embedding.weight.std().item() == pytest.approx(init.get("embedding_std", 0.02), rel=0.05)
    for block in model.blocks:
        assert block.attention.qkv.weight.std().item() == pytest.approx(1 / math.sqrt(D_MODEL), rel=0.05)
        assert block.feedforward.up.weight.std().item() == pytest.approx(1 / math.sqrt(D_MODEL), rel=0.05)
    written = {block.attention.out.weight: D_MODEL for block in model.blocks}
    written |= {block.feedforward.down.weight: D_FF for block in model.blocks}
    for weight, fan_in in {**written, model.head.weight: D_MODEL}.items():
        assert weight.std().item() == pytest.approx(0 if zero else 1 / math.sqrt(fan_in), rel=0.05)


def test_biases_norms_and_positions_at_initialisation():
    model = network(head_bias=True, position=functools.partial(Learned, std=0.7))
    for name, p in model.named_parameters():
        if p.ndim == 1:
            assert torch.equal(p, torch.ones_like(p) if name.endswith("norm.weight") else torch.zeros_like(p)), name
    assert model.position.weight.std().item() == pytest.approx(0.7, rel=0.05)


def test_blocks_start_as_the_identity_and_the_first_guess_is_uniform():
    model = network()
    x = torch.randn(2, 12, D_MODEL)
    for block in model.blocks:
        assert torch.equal(block(x, context(model.position)), x)
    assert not model(tokens()).any()


def test_without_zero_initialisation():
    model = network({"zero": False})
    x = torch.randn(2, 12, D_MODEL)
    assert not torch.allclose(model.blocks[0](x, context(model.position)), x)
    assert model(tokens()).std() > 0.5


@pytest.mark.parametrize("zero", [True, False])
def test_a_tied_head_keeps_the_embeddings_values(zero):
    model = network({"zero": zero}, tie_embeddings=True)
    assert model.head.weight is model.embedding.weight
    assert model.embedding.weight.std().item() == pytest.approx(0.02, rel=0.05)


def test_a_memory_has_its_reader_by_fan_in_and_sets_its_gates_itself():
    model = network(memory=functools.partial(NGramMemory, n_symbols=32))
    reader = model.memory.reader
    assert reader.weight.std().item() == pytest.approx(1 / math.sqrt(reader.in_features), rel=0.05)
    assert not model.memory.gate.weight.any()
    assert not model.memory.gate_counts.weight.any()
    bias = model.memory.gate_counts.bias.tolist()
    assert bias == [0.0] * (len(bias) - 1) + [1.0]


def test_gradients_reach_a_zero_head_first_and_all_weights_after_a_step():
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    reached = []
    for _ in range(3):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(tokens())[:, :-1].flatten(0, 1), tokens()[:, 1:].flatten()).backward()
        reached.append({name for name, p in model.named_parameters() if p.grad.any()})
        optimizer.step()
    assert reached[0] == {"head.weight"}
    assert reached[2] == set(dict(model.named_parameters()))
