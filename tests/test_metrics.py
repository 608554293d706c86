"""BitsPerByte against its formula: over batches, vocabularies, many small terms and ranks."""

import math

import pytest
import torch

from bytelm.metrics import BitsPerByte, NatsPerToken, uniform_score, unigram_score

TOKEN_BYTES = torch.tensor([1, 4, 2, 7, 3])


def batches():
    generator = torch.Generator().manual_seed(0)
    for rows in (3, 1, 2):  # of unequal sizes, so that a mean of means would be wrong
        yield torch.rand(rows, 6, generator=generator) * 5, torch.randint(5, (rows, 6), generator=generator)


@pytest.mark.parametrize("token_bytes", [None, TOKEN_BYTES])
def test_bits_per_byte_is_the_formula_over_all_batches(token_bytes):
    metric = BitsPerByte(token_bytes)
    nats, n_bytes = 0.0, 0
    for batch in batches():
        metric.update(*batch)
        nats += sum(batch[0].flatten().tolist())
        n_bytes += sum(1 if token_bytes is None else int(TOKEN_BYTES[t]) for t in batch[1].flatten().tolist())
    assert metric.compute().item() == pytest.approx(nats / math.log(2) / n_bytes, rel=1e-12)


def test_targets_without_text_do_not_count():
    nats, targets = torch.tensor([[1.5, 7.0, 2.5, 9.0]]), torch.tensor([[1, 0, 3, 0]])
    metric = BitsPerByte(torch.tensor([0, 4, 2, 7]))  # token 0 ends a document
    metric.update(nats, targets)
    assert metric.compute().item() == pytest.approx((1.5 + 2.5) / math.log(2) / (4 + 7), rel=1e-12)
    by_tokens = NatsPerToken()
    by_tokens.update(nats, targets)
    assert by_tokens.compute().item() == pytest.approx(20 / 4)


def test_score_without_such_targets_is_bit_identical():
    generator = torch.Generator().manual_seed(1)
    nats, targets = torch.rand(32, 1024, generator=generator) * 9, torch.randint(5, (32, 1024), generator=generator)
    metric = BitsPerByte(TOKEN_BYTES)
    metric.update(nats, targets)
    assert metric.nats.item() == nats.sum(dtype=torch.float64).item()
    assert metric.count.item() == TOKEN_BYTES[targets].sum().item()


def test_uniform_predictions_cost_eight_bits_a_byte():
    metric = BitsPerByte()
    metric.update(torch.full((4, 8), math.log(256)), torch.zeros(4, 8, dtype=torch.long))
    assert metric.compute().item() == pytest.approx(8, rel=1e-6)


def test_reset_forgets_earlier_batches():
    metric = BitsPerByte()
    metric.update(torch.full((1, 4), 9.0), torch.zeros(1, 4, dtype=torch.long))
    metric.reset()
    metric.update(torch.full((1, 2), math.log(2)), torch.zeros(1, 2, dtype=torch.long))
    assert metric.compute().item() == pytest.approx(1)


def test_a_hundred_thousand_updates_lose_no_digits():
    metric = BitsPerByte()
    large, small = torch.tensor([12.345678]), torch.tensor([1.2345678e-5])
    target = torch.zeros(1, dtype=torch.long)
    for _ in range(10_000):
        metric.update(large, target)
        metric.update(small, target)
    one_by_one = (large.double() + small.double()).item() / 2 / math.log(2)
    assert metric.compute().item() == pytest.approx(one_by_one, rel=1e-12)
    values = torch.stack([large, small], dim=1).repeat(50_000, 1)
    metric.reset()
    metric.update(values, torch.zeros_like(values, dtype=torch.long))
    assert metric.compute().item() == pytest.approx(one_by_one, rel=1e-12)


@pytest.mark.parametrize("token_bytes", [None, TOKEN_BYTES])
def test_ranks_merge_into_the_score_of_one(token_bytes):
    alone, ranks = BitsPerByte(token_bytes), [BitsPerByte(token_bytes), BitsPerByte(token_bytes)]
    for i, batch in enumerate(batches()):
        alone.update(*batch)
        ranks[i % 2].update(*batch)
    # What torchmetrics does with a process group: gather each state from all ranks, then reduce it.
    gathered = iter([[getattr(rank, state) for rank in ranks] for state in ("nats", "count")])
    ranks[0].distributed_available_fn = lambda: True
    ranks[0].dist_sync_fn = lambda state, group: next(gathered)
    assert ranks[0].compute().item() == pytest.approx(alone.compute().item(), rel=1e-12)
    assert ranks[1].compute().item() != pytest.approx(alone.compute().item(), rel=1e-3)


@pytest.mark.parametrize("in_bytes", [True, False], ids=["bits per byte", "nats per token"])
@pytest.mark.parametrize("token_bytes", [None, torch.tensor([0, 4, 2, 7])])  # token 0 ends a document
def test_the_scores_to_compare_with_are_those_of_their_models(token_bytes, in_bytes):
    targets = torch.tensor([3, 1, 0, 3, 1, 3, 0])  # never token 2
    counts = torch.bincount(targets, minlength=4)
    for score, p in ((unigram_score, counts / counts.sum()), (uniform_score, torch.full((4,), 0.25))):
        metric = BitsPerByte(token_bytes) if in_bytes else NatsPerToken()
        metric.update(-p.log()[targets], targets)
        assert score(counts, token_bytes, in_bytes) == pytest.approx(metric.compute().item(), rel=1e-6)
