"""Hashed n-grams: the hash, dependencies of a vector, initial values, training with sparse and dense gradients."""

import copy
import functools
import math
import random

import pytest
import torch
from torch import nn

from bytelm.errors import ConfigError
from bytelm.gpt import GPT
from bytelm.optim import MuonAdamW, param_groups
from bytelm.parts.embedding import HashedNGrams, TokenEmbedding

ORDERS = (2, 3, 5)


def embedding(orders=ORDERS, buckets=1 << 20, vocab_size=256):
    """With small tables of random values, because zero tables have no effect."""
    torch.manual_seed(0)
    module = HashedNGrams(vocab_size, 8, orders=orders, buckets=buckets, dim=2, sparse=False)
    nn.init.normal_(module.table.weight)
    return module


def text(length, seed=0):
    return [random.Random(seed).randrange(256) for _ in range(length)] if length else []


def row_by_hand(context, n, buckets, vocab_size=256):
    """The hash of the last n tokens in Python's integers, modulo 2^64 where int64 wraps around."""
    golden, mixer, wrap = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 2**64
    state = 0
    for token in reversed(([vocab_size] * n + context)[-n:]):
        state = (state + token + 1) * golden % wrap
        state = (state ^ (state >> 32)) * mixer % wrap
    return (state * ((2 * n + 1) * golden) % wrap >> 32) % buckets


@pytest.mark.parametrize("buckets", [1, 97, 131_072, 1 << 20])
def test_rows_are_the_hash_computed_exactly(buckets):
    tokens = text(40)
    rows = embedding(buckets=buckets).rows(torch.tensor([tokens]))
    by_hand = [
        [i * buckets + row_by_hand(tokens[: t + 1], n, buckets) for i, n in enumerate(ORDERS)] for t in range(40)
    ]
    assert rows.tolist() == [by_hand]


def test_the_hash_is_that_of_checkpoints_written_before():
    rows = embedding(orders=(2, 8), buckets=131_072).rows(torch.tensor([list(b"To be, or")]))
    assert rows[0, -1].tolist() == [34907, 248426]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_the_hash_is_the_same_on_a_gpu():
    module = embedding()
    tokens = torch.tensor([text(4096)])
    assert torch.equal(module.rows(tokens), module.cuda().rows(tokens.cuda()).cpu())


def test_options_in_any_order_mean_the_same():
    tokens = torch.tensor([text(20)])
    assert torch.equal(embedding(orders=(5, 2, 3)).rows(tokens), embedding(orders=(2, 3, 5)).rows(tokens))


def test_vectors_depend_only_on_the_last_n_tokens():
    module = embedding()
    tokens = torch.tensor([text(20)])
    changed = tokens.clone()
    changed[0, 7] ^= 1
    differs = (module(tokens) != module(changed)).any(dim=-1)[0]
    assert differs.nonzero().flatten().tolist() == [7, 8, 9, 10, 11]
    rows = (module.rows(tokens) != module.rows(changed))[0]
    assert [column.nonzero().flatten().tolist() for column in rows.T] == [[7, 8], [7, 8, 9], [7, 8, 9, 10, 11]]


def test_rows_of_a_batch_do_not_mix():
    module = embedding()
    tokens = torch.tensor([text(9, seed) for seed in range(3)])
    torch.testing.assert_close(module(tokens), torch.cat([module(row[None]) for row in tokens]))
    assert torch.equal(module.rows(tokens), torch.cat([module.rows(row[None]) for row in tokens]))


def test_the_vector_is_the_sum_of_the_tokens_own_and_the_projected_tables():
    module = embedding()
    tokens = text(6)
    found = torch.cat([module.table.weight[row] for row in module.rows(torch.tensor([tokens]))[0, -1]])
    expected = module.weight[tokens[-1]] + module.project.weight @ found
    torch.testing.assert_close(module(torch.tensor([tokens]))[0, -1], expected)


def test_the_order_of_tokens_counts():
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(256, (500, 5), generator=generator)
    tokens = tokens[(tokens != tokens.flip(1)).any(dim=1) & (tokens[:, -1] != tokens[:, -2])]
    module = embedding()
    same = module.rows(tokens)[:, -1] == module.rows(tokens.flip(1))[:, -1]
    swapped = module.rows(tokens)[:, -1] == module.rows(tokens[:, [0, 1, 2, 4, 3]])[:, -1]
    assert same.sum() <= 2  # a chance of about 500 x 3 / 2^20
    assert swapped.sum() <= 2


def test_start_of_a_row_is_a_separate_context():
    module = embedding(orders=(2,))
    module.buckets = 1 << 30  # of which a row is no more than asked for: no two meet by chance
    starts = module.rows(torch.tensor([[5]]))[0, -1]
    contexts = module.rows(torch.stack([torch.arange(256), torch.full((256,), 5)], dim=1))[:, -1]
    assert not (contexts == starts).any()


@pytest.mark.parametrize("n", [2, 8])
def test_contexts_spread_as_if_drawn_at_random(n):
    buckets, contexts = 131_072, 65_536
    if n == 2:  # all there are
        tokens = torch.cartesian_prod(torch.arange(256), torch.arange(256))
    else:  # alike in all but 16 bits of the oldest and the newest tokens
        tokens = torch.full((contexts, n), ord("e"))
        tokens[:, 0], tokens[:, -1] = torch.arange(contexts) // 256, torch.arange(contexts) % 256
    rows = embedding(orders=(n,), buckets=buckets).rows(tokens)[:, -1, 0]
    filled = len(rows.unique())
    share = math.exp(-contexts / buckets)  # of buckets that stay empty
    deviation = math.sqrt(buckets * (share - (1 + contexts / buckets) * share**2))
    assert abs(filled - buckets * (1 - share)) < 5 * deviation
    assert rows.max() < buckets
    counts = torch.bincount(rows, minlength=buckets)
    assert counts.max() <= 8  # a chance of 1e-6 a bucket for 8 or more


def test_orders_do_not_share_their_collisions():
    """Otherwise one more order would not help to distinguish two contexts."""
    module = embedding(orders=(2, 3), buckets=256)
    tokens = torch.cat([torch.zeros(256, 1, dtype=torch.long), torch.randint(256, (256, 2))], dim=1)
    first, second = (module.rows(tokens)[:, -1] % 256).T
    pairs = torch.triu(first[:, None] == first, 1), torch.triu(second[:, None] == second, 1)
    assert pairs[0].sum() > 50
    assert (pairs[0] & pairs[1]).sum() < 10


def test_training_begins_as_without_the_tables():
    torch.manual_seed(0)
    gpt = GPT(d_model=16, n_heads=2, n_layers=1, embedding=small)
    assert not gpt.embedding.table.weight.any()
    assert gpt.embedding.project.weight.std().item() == pytest.approx(0.02, rel=0.2)
    tokens = torch.tensor([text(9)])
    assert torch.equal(gpt.embedding(tokens), nn.functional.embedding(tokens, gpt.embedding.weight))


@pytest.mark.parametrize("orders", [(), (1, 2), (2, 3, 2), (0,)])
def test_invalid_orders_are_rejected(orders):
    with pytest.raises(ConfigError, match=r"orders: \[.*\] cannot be used; accepted: one or more distinct integers"):
        HashedNGrams(256, 8, orders=orders)


def test_flops_leave_tables_out():
    with_table, wider = gpt(functools.partial(small, buckets=512)), gpt(functools.partial(small, buckets=1024))
    assert with_table.flops_per_token(8) == wider.flops_per_token(8)
    assert with_table.num_params() < wider.num_params()


small = functools.partial(HashedNGrams, buckets=512, dim=4)


def gpt(embedding, **options):
    torch.manual_seed(0)
    return GPT(d_model=16, n_heads=2, n_layers=1, d_ff=32, max_seq_len=64, embedding=embedding, **options)


def losses(network, optimizer, batches):
    values = []
    for tokens in batches:
        optimizer.zero_grad()
        logits = network(tokens[:, :-1])
        loss = nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
        loss.backward()
        optimizer.step()
        values.append(loss.item())
    return values


def batches(count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    stream = torch.tensor(list(b"the quick brown fox jumps over the lazy dog; " * 20))
    for _ in range(count):
        starts = torch.randint(len(stream) - 33, (4,), generator=generator)
        yield stream[starts[:, None] + torch.arange(33)]


@pytest.mark.parametrize("tied", [True, False])
def test_sparse_and_dense_gradients_train_to_the_same_bits(tied):
    networks = []
    for sparse in (True, False):
        network = gpt(functools.partial(small, sparse=sparse), tie_embeddings=tied)
        losses(network, MuonAdamW(param_groups(network)), batches(6))
        assert network.embedding.table.weight.grad.is_sparse == network.embedding.sparse_tables == sparse
        networks.append(network)
    start = gpt(small, tie_embeddings=tied)
    for (name, p), q, before in zip(
        networks[0].named_parameters(), networks[1].parameters(), start.parameters(), strict=True
    ):
        assert torch.equal(p, q), name
        assert not torch.equal(p, before), name


def test_tables_learn_repeated_text_faster_than_tokens_alone():
    ends = []
    for embedding in (functools.partial(HashedNGrams, buckets=2048, dim=8), TokenEmbedding):
        network = gpt(embedding)
        values = losses(network, MuonAdamW(param_groups(network), adamw_lr=1e-2), batches(40))
        assert values[0] == pytest.approx(math.log(256), rel=0.05)
        ends.append(values[-1])
    assert ends[0] < 0.5 * ends[1]


def test_a_saved_network_predicts_the_same():
    network = gpt(small)
    losses(network, MuonAdamW(param_groups(network)), batches(3))
    state = copy.deepcopy(network.state_dict())
    assert not any("multipliers" in name or "first_rows" in name for name in state)  # options, not weights
    other = gpt(small)
    other.load_state_dict(state)
    tokens = next(batches(1, seed=5))
    assert torch.equal(network(tokens), other(tokens))


def test_ddp_with_sparse_gradients():
    """DistributedDataParallel learns that from torch's own classes; else it fails at the first gradient."""
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        network = gpt(small)
        twin = copy.deepcopy(network)
        parallel = nn.parallel.DistributedDataParallel(network)
        (tokens,) = batches(1)
        for module in (parallel, twin):
            module(tokens).square().mean().backward()
        for (name, p), q in zip(network.named_parameters(), twin.parameters(), strict=True):
            assert p.grad.is_sparse == name.endswith("table.weight"), name
            torch.testing.assert_close(p.grad.to_dense(), q.grad.to_dense(), msg=name)
    finally:
        torch.distributed.destroy_process_group()
