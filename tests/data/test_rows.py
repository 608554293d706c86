"""Rows are cut as in the challenge, and each order and each rank takes the correct rows."""

from itertools import combinations, islice

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from reference import REFERENCE, needs_reference
from torch import Tensor

from bytelm.data.corpora import Bytes
from bytelm.data.rows import EvalBatches, RowLoader, cut_rows

T = 3


def numbered(n_rows: int, rest: int = 0) -> Tensor:
    """A stream whose bytes are their own positions: a row's first target shows where the row begins."""
    return torch.arange(n_rows * T + rest, dtype=torch.uint8)


def starts(batch: tuple[Tensor, Tensor]) -> list[int]:
    return batch[1][:, 0].tolist()


def taken(loader: RowLoader, batches: int) -> list[list[int]]:
    return [starts(batch) for batch in islice(loader, batches)]


@given(st.data())
def test_rows_are_cut_as_a_plain_loop_would(data):
    corpus = data.draw(st.binary(min_size=1, max_size=20))
    seq_len = data.draw(st.integers(1, len(corpus)))
    begins = data.draw(st.lists(st.integers(0, len(corpus) - 1), min_size=1, max_size=5))
    inputs, targets = cut_rows(torch.tensor(list(corpus), dtype=torch.uint8), torch.tensor(begins), seq_len)
    rows = [[corpus[(begin + i) % len(corpus)] for i in range(seq_len)] for begin in begins]
    assert targets.tolist() == rows
    assert inputs.tolist() == [[0, *row[:-1]] for row in rows]
    assert inputs.dtype == targets.dtype == torch.int64


@needs_reference
@pytest.mark.parametrize("split", ["train", "val"])
def test_sequential_batches_are_those_of_the_challenge_also_after_the_stream_has_wrapped_around(
    split, tmp_path, monkeypatch
):
    corpus = tmp_path / "corpus"
    corpus.write_bytes(torch.randint(1, 256, (5_000,), generator=torch.Generator().manual_seed(0)).byte().numpy().data)
    monkeypatch.setenv("HARNESS_CORPUS", str(corpus))
    monkeypatch.syspath_prepend(str(REFERENCE / "harness"))
    import prepare

    data = Bytes(str(corpus))
    data.setup("fit")
    stream = data.train_split if split == "train" else data.val_split
    pairs = zip(RowLoader(stream, 3, 256), prepare.make_dataloader(3, 256, split), strict=False)
    for k, ((inputs, targets), (expected_inputs, expected_targets)) in enumerate(islice(pairs, 40)):
        assert torch.equal(inputs, expected_inputs), f"batch {k}"
        assert torch.equal(targets, expected_targets), f"batch {k}"


@pytest.mark.parametrize("batch_size", [1, 4, 11, 25])
def test_every_shuffled_epoch_takes_each_whole_row_once_in_an_order_of_its_own(batch_size):
    n_rows = 11
    batches = taken(RowLoader(numbered(n_rows, rest=2), batch_size, T, "shuffled"), 5 * n_rows)
    rows = [row for batch in batches for row in batch]
    epochs = [rows[i : i + n_rows] for i in range(0, 5 * n_rows, n_rows)]
    assert [sorted(epoch) for epoch in epochs] == [list(range(0, n_rows * T, T))] * 5
    assert all(one != other for one, other in combinations([*epochs, sorted(epochs[0])], 2))
    assert {len(batch) for batch in batches} == {batch_size}


def test_the_seed_alone_determines_the_shuffled_order():
    stream = numbered(40)
    torch.manual_seed(1)
    order = taken(RowLoader(stream, 4, T, "shuffled", seed=5), 30)
    torch.manual_seed(2)
    state = torch.get_rng_state()
    assert taken(RowLoader(stream, 4, T, "shuffled", seed=5), 30) == order
    assert torch.equal(torch.get_rng_state(), state), "drawing rows drew from the global generator"
    assert taken(RowLoader(stream, 4, T, "shuffled", seed=6), 30) != order


@pytest.mark.parametrize("order", ["sequential", "shuffled"])
@pytest.mark.parametrize("world_size", [1, 2, 3, 5])
def test_all_ranks_together_take_the_rows_of_one_rank_with_their_batches(order, world_size):
    stream = numbered(17, rest=2)
    ranks = [RowLoader(stream, 2, T, order, seed=1, rank=rank, world_size=world_size) for rank in range(world_size)]
    one = RowLoader(stream, 2 * world_size, T, order, seed=1)
    for batch, *parts in islice(zip(one, *ranks, strict=True), 20):
        assert torch.equal(torch.cat([inputs for inputs, _ in parts]), batch[0])
        assert torch.equal(torch.cat([targets for _, targets in parts]), batch[1])


@pytest.mark.parametrize("order", ["sequential", "shuffled"])
@pytest.mark.parametrize("before", [0, 1, 6, 9])
def test_a_loaded_position_continues_with_the_very_next_batch(order, before):
    options = {"batch_size": 2, "seq_len": T, "order": order, "rank": 1, "world_size": 2}
    expected = taken(RowLoader(numbered(17), **options), before + 8)
    first = RowLoader(numbered(17), **options)
    assert taken(first, before) == expected[:before]
    state = first.state_dict()
    taken(first, 3)
    resumed = RowLoader(numbered(17), **options)
    resumed.load_state_dict(state)
    assert taken(resumed, 8) == expected[before:]
    first.load_state_dict(state)
    assert taken(first, 8) == expected[before:], "a loader must be able to go back"


def test_a_new_iterator_continues_where_the_last_one_stopped():
    loader = RowLoader(numbered(17), 2, T)
    assert taken(loader, 2) + taken(loader, 2) == taken(RowLoader(numbered(17), 2, T), 4)


@given(
    n_rows=st.integers(1, 60),
    rest=st.integers(0, T - 1),
    batch_size=st.integers(1, 20),
    world_size=st.sampled_from([1, 2, 3, 5]),
)
def test_evaluation_takes_every_row_once_in_equally_many_batches_on_every_rank(n_rows, rest, batch_size, world_size):
    loaders = [EvalBatches(numbered(n_rows, rest), batch_size, T, rank, world_size) for rank in range(world_size)]
    batches = [[starts(batch) for batch in loader] for loader in loaders]
    sizes = [len(batch) for rank in batches for batch in rank]
    rows = [row for rank in batches for batch in rank for row in batch]
    assert rows == list(range(0, n_rows * T, T))
    assert {len(rank) for rank in batches} == {len(loader) for loader in loaders}
    assert len({len(rank) for rank in batches}) == 1
    assert max(sizes) <= batch_size
    assert max(sizes) - min(sizes) <= 1
    assert len(batches[0]) == -(-n_rows // (batch_size * world_size)), "more batches than are needed"


# Sizes that change between batches

SIZES = st.lists(st.tuples(st.integers(1, 5), st.integers(1, 9)), min_size=1, max_size=12)  # of batches and of rows


def resized(loader, sizes):
    """Returns a batch of each size, and the loader's state before it."""
    batches = []
    rows = iter(loader)
    for loader.batch_size, loader.seq_len in sizes:
        state = loader.state_dict()
        batches.append((state, next(rows)))
    return batches


@given(n_bytes=st.integers(9, 60), sizes=SIZES, world_size=st.sampled_from([1, 2, 3]))
def test_in_sequential_order_no_byte_is_skipped_or_taken_twice_when_sizes_change(n_bytes, sizes, world_size):
    stream = torch.arange(n_bytes, dtype=torch.uint8)
    ranks = [RowLoader(stream, 1, T, rank=rank, world_size=world_size) for rank in range(world_size)]
    taken = [resized(loader, sizes) for loader in ranks]
    targets = [batch[1] for batches in zip(*taken, strict=True) for _, batch in batches]
    assert [tuple(part.shape) for part in targets[::world_size]] == sizes
    followed = torch.cat([part.flatten() for part in targets]).tolist()
    assert followed == [i % n_bytes for i in range(len(followed))]


@given(n_rows=st.integers(1, 20), sizes=st.lists(st.integers(1, 9), min_size=1, max_size=20))
def test_every_shuffled_epoch_takes_each_row_once_when_the_batch_size_changes(n_rows, sizes):
    loader = RowLoader(numbered(n_rows), 1, T, "shuffled")
    batches = [starts(batch) for _, batch in resized(loader, [(size, T) for size in sizes])]
    assert list(map(len, batches)) == sizes
    rows = [row for batch in batches for row in batch]
    for epoch in range(0, len(rows) // n_rows * n_rows, n_rows):
        assert sorted(rows[epoch : epoch + n_rows]) == list(range(0, n_rows * T, T))


@pytest.mark.parametrize("order", ["sequential", "shuffled"])
@given(sizes=SIZES)
def test_a_position_between_other_sizes_continues_with_the_very_next_batch(order, sizes):
    sizes = [(size, seq_len if order == "sequential" else T) for size, seq_len in sizes]
    taken = resized(RowLoader(numbered(17), 2, T, order, seed=1), sizes)
    for i, (state, _) in enumerate(taken):
        other = RowLoader(numbered(17), 2, T, order, seed=1)
        other.load_state_dict(state)
        for (_, batch), (_, expected) in zip(resized(other, sizes[i:]), taken[i:], strict=True):
            assert torch.equal(batch[1], expected[1])


@pytest.mark.parametrize("order", ["sequential", "shuffled"])
def test_positions_of_earlier_versions_are_numbers_of_rows(order):
    options = {"batch_size": 2, "seq_len": T, "order": order, "rank": 1, "world_size": 2}
    expected = taken(RowLoader(numbered(17), **options), 20)
    loader = RowLoader(numbered(17), **options)
    loader.load_state_dict({"position": 4 * 11})
    assert taken(loader, 9) == expected[11:]
