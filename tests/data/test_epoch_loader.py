"""An epoch has as many tokens as the training text, in whole steps; the order of batches does not depend on it."""

from itertools import chain, islice
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bytelm.data.corpora import Bytes
from bytelm.data.epochs import EpochLoader, batches_in_epoch, limited
from bytelm.data.rows import RowLoader

T = 4


def rows(n_bytes=400, batch_size=2, order="shuffled"):
    return RowLoader(torch.arange(n_bytes).remainder(251).byte(), batch_size, T, order, seed=1)


def numbers(batches):
    return [targets.tolist() for _, targets in batches]


@given(tokens=st.integers(1, 10_000), step_tokens=st.integers(1, 500), per_step=st.integers(1, 8))
def test_an_epoch_is_the_fewest_whole_steps_that_have_all_tokens(tokens, step_tokens, per_step):
    n_batches = batches_in_epoch(tokens, step_tokens, per_step)
    steps = n_batches // per_step
    assert n_batches == steps * per_step > 0
    assert (steps - 1) * step_tokens < tokens <= steps * step_tokens


@pytest.mark.parametrize(
    ("limit", "n_batches"), [(1.0, 7), (0.5, 3), (0.1, 0), (1, 1), (5, 5), (100, 7), (0, 0)], ids=str
)
def test_limits_are_counted_as_in_lightning(limit, n_batches):
    assert limited(7, limit) == n_batches


@pytest.mark.parametrize("order", ["sequential", "shuffled", "folds"])
@pytest.mark.parametrize("n_batches", [1, 3, 50])
def test_the_batches_of_all_epochs_are_those_of_the_endless_loader(order, n_batches):
    expected = numbers(islice(rows(order=order), 120))
    loader = EpochLoader(rows(order=order), n_batches)
    epochs = [numbers(loader) for _ in range(-(-120 // n_batches))]
    assert {len(epoch) for epoch in epochs} == {n_batches} == {len(loader)}
    assert [*chain(*epochs)][:120] == expected


def test_an_epoch_that_is_left_early_is_followed_by_the_next_batch():
    expected = numbers(islice(rows(), 12))
    loader = EpochLoader(rows(), 10)
    assert numbers(islice(loader, 4)) + numbers(islice(loader, 8)) == expected


def test_sizes_that_are_set_are_those_of_the_next_batch():
    loader = EpochLoader(rows(order="sequential"), 10)
    batches = iter(loader)
    next(batches)
    loader.batch_size, loader.seq_len = 3, 5
    assert next(batches)[1].shape == (3, 5)
    assert (loader.batch_size, loader.seq_len) == (loader.loader.batch_size, loader.loader.seq_len) == (3, 5)


@pytest.mark.parametrize("before", range(7))
def test_repeated_batches_are_the_first_ones_also_from_a_saved_position(before):
    first = numbers(islice(rows(), 3))
    loader = EpochLoader(rows(), 10, n_repeated=3)
    epochs = chain.from_iterable(islice(loader, 3) for _ in range(10))  # as Lightning takes them
    assert numbers(islice(epochs, before)) == (3 * first)[:before]
    other = EpochLoader(rows(), 10, n_repeated=3)
    other.load_state_dict(loader.state_dict())
    assert numbers(islice(other, 6)) == (5 * first)[before : before + 6]


def test_repetition_begins_with_the_first_batch_after_a_run_without_it():
    loader = EpochLoader(rows(), 10)
    numbers(islice(loader, 5))
    repeating = EpochLoader(rows(), 10, n_repeated=2)
    repeating.load_state_dict(loader.state_dict())
    assert numbers(islice(repeating, 4)) == 2 * numbers(islice(rows(), 2))


def test_all_ranks_and_accumulated_batches_share_an_epoch(tmp_path):
    (tmp_path / "text").write_bytes(bytes(range(1, 201)) * 5)
    data = Bytes(str(tmp_path / "text"), batch_size=2, seq_len=10)
    data.setup("fit")
    assert data.train_tokens() == 900
    assert len(data.train_dataloader()) == 45
    data.trainer = SimpleNamespace(global_rank=0, world_size=3, accumulate_grad_batches=4, overfit_batches=0.25)
    loader = data.train_dataloader()
    assert len(loader) == 4 * 4  # 240 tokens a step
    assert len({str(targets) for _, targets in loader}) == 4  # a quarter
