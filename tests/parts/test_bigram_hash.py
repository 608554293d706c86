"""Hashed bigrams: the rows, their sum with the residual stream before every layer, and the groups of the parameters."""

import functools
import itertools

import pytest
import torch
from torch import nn

from bytelm.gpt import GPT
from bytelm.optim import MuonAdamW, param_groups
from bytelm.parts.bigram_hash import BigramHash
from bytelm.parts.block import Parallel
from bytelm.parts.init import Normal

VOCAB = 64


def tiny(**options):
    torch.manual_seed(0)
    sizes = {"d_model": 16, "n_heads": 2, "n_layers": 3, "vocab_size": VOCAB, "max_seq_len": 24}
    return GPT(**{**sizes, "init": functools.partial(Normal, std=0.3), **options}).eval()


def filled():
    gpt = tiny(embedding=BigramHash)
    nn.init.normal_(gpt.embedding.table.weight)
    with torch.no_grad():
        gpt.embedding.scalars.copy_(torch.tensor([0.3, -0.7, 1.1]))
    return gpt


def tokens():
    return torch.randint(VOCAB, (2, 24), generator=torch.Generator().manual_seed(1))


def test_rows_are_the_hash_of_two_tokens():
    embedding = BigramHash(50_304, 2)
    row = [50_303, 0, 17, 17, 50_303]
    hashed = [(36313 * now ^ 27191 * before) % (5 * 50_304 - 1) for before, now in itertools.pairwise(row)]
    assert embedding.rows(torch.tensor([row], dtype=torch.int32)).tolist() == [[5 * 50_304 - 1, *hashed]]
    assert embedding.table.weight.shape == (5 * 50_304, 2)


def test_before_each_layer_the_stream_gets_the_vector_times_the_layer_s_scalar():
    gpt = filled()
    seen = []
    for block in gpt.blocks:
        block.register_forward_hook(lambda _, inputs, output: seen.append((inputs[0], output)))
    gpt(tokens())
    vectors = gpt.embedding.table.weight[gpt.embedding.rows(tokens())]
    before = gpt.embedding.weight[tokens()]
    for (inputs, output), scalar in zip(seen, (0.3, -0.7, 1.1), strict=True):
        torch.testing.assert_close(inputs, before + scalar * vectors)
        before = output


def test_training_begins_as_without_it():
    assert torch.equal(tiny(embedding=BigramHash)(tokens()), tiny()(tokens()))
    assert tiny(embedding=BigramHash).embedding.scalars.tolist() == pytest.approx([0.05] * 3)


def test_tables_and_scalars_have_groups_and_all_learn():
    gpt = filled()
    groups = {group["name"]: group["params"] for group in param_groups(gpt)}
    assert [p is gpt.embedding.table.weight for p in groups["bigram_embedding"]] == [True]
    assert [p is gpt.embedding.scalars for p in groups["scalar"]] == [True]
    before = [gpt.embedding.table.weight.clone(), gpt.embedding.scalars.clone()]
    optimizer = MuonAdamW(param_groups(gpt))
    gpt(tokens()).logsumexp(dim=-1).mean().backward()
    optimizer.step()
    after = [gpt.embedding.table.weight, gpt.embedding.scalars]
    assert all((new != old).any() for new, old in zip(after, before, strict=True))
    assert (gpt.embedding.scalars != before[1]).all()


@torch.no_grad()
def test_generation_from_the_cache_equals_the_whole_row():
    gpt = filled()
    cache = gpt.new_cache()
    pieces = [gpt(tokens()[:, :end], cache) for end in (2, 3, 4, 20, 24)]
    torch.testing.assert_close(torch.cat(pieces, dim=1), gpt(tokens()), rtol=0, atol=1e-5)


def test_any_block_gets_the_sum():
    gpt, plain = tiny(embedding=BigramHash, block=Parallel), tiny(block=Parallel)
    assert torch.equal(gpt(tokens()), plain(tokens()))
    nn.init.normal_(gpt.embedding.table.weight)
    assert (gpt(tokens()) - plain(tokens())).abs().max() > 1e-3


def test_a_stream_in_bf16_stays_in_bf16():
    gpt = tiny(embedding=BigramHash, residual_autocast=True)
    dtypes = []
    gpt.blocks[1].register_forward_hook(lambda _, inputs, output: dtypes.append(inputs[0].dtype))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        gpt(tokens())
    assert dtypes == [torch.bfloat16]
