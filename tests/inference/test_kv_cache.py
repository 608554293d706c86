"""The cache of keys and values: the network gives the same logits piece by piece as for the whole row."""

import functools

import pytest
import torch
from torch import nn

from bytelm.gpt import GPT
from bytelm.parts.attention import SDPA, Explicit, KVCache
from bytelm.parts.block import Parallel, PostNorm, PreNorm
from bytelm.parts.embedding import HashedNGrams, ScaledEmbedding, ValueEmbedding
from bytelm.parts.init import Normal
from bytelm.parts.memory import NGramMemory
from bytelm.parts.norm import LayerNorm, RMSNorm
from bytelm.parts.position import ALiBi, Learned, NoPosition, Rotary, Sinusoidal

MAX_SEQ_LEN = 24
PIECES = [5, 1, 1, 4, 1, 12]


def tiny(**options):
    """A small network with weights so large that every token has an effect."""
    torch.manual_seed(0)
    sizes = {"d_model": 16, "n_heads": 4, "n_layers": 2, "vocab_size": 64, "max_seq_len": MAX_SEQ_LEN}
    return GPT(**{**sizes, "init": functools.partial(Normal, std=0.3), **options}).eval()


def row(gpt, batch=2):
    return torch.randint(gpt.vocab_size, (batch, MAX_SEQ_LEN), generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def in_pieces(gpt, tokens):
    cache, ends = gpt.new_cache(), torch.tensor(PIECES).cumsum(0)
    pieces = [gpt(tokens[:, :end], cache) for end in ends]
    assert [piece.shape[1] for piece in pieces] == PIECES
    assert [entry.length for entry in cache.layers] == [MAX_SEQ_LEN] * len(gpt.blocks)
    return torch.cat(pieces, dim=1)


def assert_same(gpt):
    tokens = row(gpt)
    with torch.no_grad():
        expected = gpt(tokens)
    torch.testing.assert_close(in_pieces(gpt, tokens), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("position", [NoPosition, Learned, Sinusoidal, Rotary, ALiBi])
@pytest.mark.parametrize("block", [PreNorm, PostNorm, Parallel])
@pytest.mark.parametrize("attention", [SDPA, Explicit])
def test_logits_are_those_of_the_whole_row(position, block, attention):
    assert_same(tiny(position=functools.partial(Learned, std=0.5) if position is Learned else position, block=block))
    assert_same(tiny(position=position, block=block, attention=attention))


@pytest.mark.parametrize("position", [NoPosition, Rotary, ALiBi])
@pytest.mark.parametrize("attention", [SDPA, Explicit])
@pytest.mark.parametrize(("n_kv_heads", "qk_norm"), [(1, None), (2, RMSNorm), (4, LayerNorm)])
def test_with_shared_key_heads_and_normalised_queries(position, attention, n_kv_heads, qk_norm):
    gpt = tiny(position=position, attention=functools.partial(attention, n_kv_heads=n_kv_heads, qk_norm=qk_norm))
    assert_same(gpt)
    cache = gpt.new_cache()
    gpt(row(gpt), cache)
    keys, values = cache.layers[0].append(*torch.empty(2, 2, n_kv_heads, 0, 4))
    assert keys.shape == values.shape == (2, n_kv_heads, MAX_SEQ_LEN, 4)


@pytest.mark.parametrize("embedding", [ScaledEmbedding, ValueEmbedding, functools.partial(HashedNGrams, dim=4)])
@pytest.mark.parametrize("options", [{}, {"norm_embeddings": True, "logit_softcap": 5.0, "position": Learned}])
def test_with_embeddings_that_look_back_or_give_values(embedding, options):
    gpt = tiny(embedding=embedding, **options)
    if hasattr(gpt.embedding, "table"):
        nn.init.normal_(gpt.embedding.table.weight)
    assert_same(gpt)


@pytest.mark.parametrize("filled", [True, False])
def test_with_a_memory(filled):
    gpt = tiny(memory=functools.partial(NGramMemory, orders=[1, 2, 3], words=[1], cache=[1, 2], n_symbols=32))
    nn.init.normal_(gpt.memory.gate.weight, std=0.3)
    tokens = row(gpt) % 8  # few different ones, so that contexts repeat
    if filled:
        gpt.memory.fill(tokens.flatten().repeat(5).to(torch.uint8), torch.zeros(240, dtype=torch.uint8), MAX_SEQ_LEN)
        gpt.memory.hold_out(None)
    with torch.no_grad():
        expected = gpt(tokens)
    torch.testing.assert_close(in_pieces(gpt, tokens), expected, rtol=0, atol=1e-4)
    evidence, end = gpt.memory.recall(tokens), gpt.memory.recall(tokens, start=17)
    assert torch.equal(end.log_probs, evidence.log_probs[:, 17:])
    assert torch.equal(end.counts, evidence.counts[:, 17:])


def test_blocks_compute_the_new_tokens_alone():
    gpt, computed = tiny(), []
    gpt.blocks[1].feedforward.register_forward_hook(lambda module, inputs, output: computed.append(output.shape[1]))
    in_pieces(gpt, row(gpt))
    assert computed == PIECES


def test_a_cache_is_used_and_not_only_kept():
    gpt = tiny()
    tokens, other = row(gpt), row(gpt).roll(1, dims=1)
    cache = gpt.new_cache()
    with torch.no_grad():
        gpt(other[:, :10], cache)
        after_other = gpt(tokens, cache)
        assert (after_other - gpt(tokens)[:, 10:]).abs().max() > 1e-2


def test_a_cache_gives_back_all_that_it_was_given():
    cache, (k, v) = KVCache(8), torch.randn(2, 3, 2, 8, 4)
    for start, end in ((0, 3), (3, 4), (4, 8)):
        keys, values = cache.append(k[:, :, start:end], v[:, :, start:end])
        assert cache.length == end
        assert torch.equal(keys, k[:, :, :end])
        assert torch.equal(values, v[:, :, :end])


class Mean(nn.Module):
    """An attention without a cache: the mean of all tokens so far."""

    def __init__(self, d_model, n_heads):
        super().__init__()

    def forward(self, x):
        return x.cumsum(1) / torch.arange(1, x.shape[1] + 1)[:, None]


class Plain(nn.Module):
    """A block without a cache."""

    def __init__(self, attention, feedforward, norm, dropout):
        super().__init__()
        self.inner = attention

    def forward(self, x, context):
        return x + self.inner(x, context)


@pytest.mark.parametrize("options", [{"attention": Mean}, {"block": Plain}])
def test_networks_with_parts_that_declare_no_cache_have_none(options):
    gpt = tiny(**options)
    assert gpt.new_cache() is None
    assert tiny().new_cache() is not None
    tokens = row(gpt)
    torch.testing.assert_close(gpt(tokens[:, :7]), gpt(tokens)[:, :7], rtol=0, atol=1e-5)


def test_an_attention_of_the_users_own_that_adds_the_scores_can_continue_from_a_cache():
    class Own(Explicit):
        def attend(self, q, k, v, scores):
            causal = torch.full((q.shape[2], k.shape[2]), -torch.inf).triu(1) if scores is None else scores
            groups = q.shape[1] // k.shape[1]
            k, v = (kv.repeat_interleave(groups, dim=1) for kv in (k, v))
            return (q @ k.mT / self.head_dim**0.5 + causal).softmax(-1) @ v

    assert_same(tiny(attention=Own))


def test_the_whole_forward_pass_is_one_graph_still():
    gpt = tiny(embedding=ValueEmbedding, attention=functools.partial(SDPA, n_kv_heads=2, qk_norm=RMSNorm)).train()
    torch._dynamo.reset()
    compiled = torch.compile(gpt, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(row(gpt)), gpt(row(gpt)), rtol=0, atol=0)
