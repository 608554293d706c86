"""Rows by folds: training takes rows of one fold at a time; and the development split."""

from itertools import islice

import pytest
import torch

from bytelm.data.bytes import read_bytes
from bytelm.data.corpora import Bytes
from bytelm.data.orders import CHUNK_ROWS, N_FOLDS, deal_rows
from bytelm.data.rows import RowLoader
from bytelm.errors import ConfigError, RunError

T = 4


def stream(n_rows, rest=0):
    """A stream whose rows contain their own numbers."""
    rows = torch.arange(n_rows)[:, None] // torch.tensor([1, 256, 65536, 1 << 24]) % 256
    return torch.cat([rows.flatten(), torch.zeros(rest, dtype=torch.long)]).to(torch.uint8)


def row_numbers(batch):
    return (batch[1] * torch.tensor([1, 256, 65536, 1 << 24])).sum(1).tolist()


def loader(n_rows, batch_size=5, **options):
    return RowLoader(stream(n_rows, rest=3), batch_size, T, "folds", **options)


def taken(rows, batches):
    return [row_numbers(batch) for batch in islice(rows, batches)]


def batches_per_epoch(n_rows, rows_per_step):
    return sum(n // rows_per_step for n in deal_rows(n_rows).bincount(minlength=N_FOLDS).tolist())


@pytest.mark.parametrize("n_rows", [1, 63, 64, 65, 64 * N_FOLDS, 64 * N_FOLDS + 7, 5_000])
def test_neighbours_are_dealt_together_and_folds_are_about_equal(n_rows):
    folds = deal_rows(n_rows)
    assert folds.shape == (n_rows,)
    assert all(len(set(chunk.tolist())) == 1 for chunk in folds.split(CHUNK_ROWS))
    chunks = folds[::CHUNK_ROWS].bincount(minlength=N_FOLDS)
    assert chunks.max() - chunks.min() <= 1
    assert folds.max() < N_FOLDS
    assert (folds == 0).any(), "fold 0 is what interpolation is learnt on"


def test_folds_are_dealt_at_random_but_always_alike():
    torch.manual_seed(1)
    state = torch.get_rng_state()
    folds = deal_rows(5_000)
    assert torch.equal(torch.get_rng_state(), state), "dealing drew from the global generator"
    torch.manual_seed(2)
    assert torch.equal(deal_rows(5_000), folds)
    chunks = folds[::CHUNK_ROWS].tolist()
    assert chunks != sorted(chunks)
    assert chunks != [i % N_FOLDS for i in range(len(chunks))]


@pytest.mark.parametrize("n_rows", [1_030, 1_600])
@pytest.mark.parametrize(("batch_size", "world_size"), [(5, 1), (7, 3), (64, 1), (1, 2)])
def test_each_epoch_takes_one_fold_after_the_other_and_all_rows_but_the_remainders(n_rows, batch_size, world_size):
    fold_of_row = deal_rows(n_rows)
    rows = loader(n_rows, batch_size * world_size)
    orders = []
    for _ in range(4):
        batches = taken(rows, batches_per_epoch(n_rows, batch_size * world_size))
        of_batches = [fold_of_row[batch].unique().tolist() for batch in batches]
        assert {len(folds) for folds in of_batches} == {1}, "a batch has rows of two folds"
        flat = [fold for (fold,) in of_batches]
        order = list(dict.fromkeys(flat))
        assert flat == sorted(flat, key=order.index), "a fold came back"
        assert sorted(order) == list(range(N_FOLDS))
        numbers = [number for batch in batches for number in batch]
        assert len(set(numbers)) == len(numbers), "a row was taken twice"
        left_out = fold_of_row[[i for i in range(n_rows) if i not in set(numbers)]].bincount(minlength=N_FOLDS)
        size = batch_size * world_size
        assert left_out.tolist() == [n % size for n in fold_of_row.bincount(minlength=N_FOLDS).tolist()]
        orders.append((order, numbers))
    assert len({tuple(order) for order, _ in orders}) > 1, "folds come in the same order every epoch"
    assert len({tuple(numbers) for _, numbers in orders}) == 4
    first = [number for number in orders[0][1] if fold_of_row[number] == orders[0][0][0]]
    assert first != sorted(first), "the rows of a fold are shuffled"


def test_the_reported_fold_is_that_of_the_taken_batch():
    n_rows, rows = 1_030, loader(1_030, 6)
    assert rows.fold is None, "nothing was taken yet"
    fold_of_row, seen = deal_rows(n_rows), []
    for batch in islice(rows, 3 * batches_per_epoch(n_rows, 6)):
        assert {rows.fold} == set(fold_of_row[row_numbers(batch)].tolist())
        seen.append(rows.fold)
    assert set(seen) == set(range(N_FOLDS))


@pytest.mark.parametrize("order", ["sequential", "shuffled"])
def test_other_orders_have_no_folds(order):
    rows = RowLoader(stream(100), 5, T, order)
    next(iter(rows))
    assert rows.fold is None


@pytest.mark.parametrize("world_size", [2, 3])
def test_ranks_take_different_rows_of_the_same_fold(world_size):
    n_rows, fold_of_row = 1_030, deal_rows(1_030)
    ranks = [loader(n_rows, 4, rank=rank, world_size=world_size) for rank in range(world_size)]
    one = loader(n_rows, 4 * world_size)
    for whole, *parts in islice(zip(one, *ranks, strict=True), 2 * batches_per_epoch(n_rows, 4 * world_size) + 3):
        numbers = [number for part in parts for number in row_numbers(part)]
        assert numbers == row_numbers(whole)
        assert len(set(numbers)) == 4 * world_size
        assert {rank.fold for rank in ranks} == set(fold_of_row[numbers].tolist()) == {one.fold}


@pytest.mark.parametrize("before", [0, 1, 26, 200, 201, 450])
def test_a_loaded_position_continues_with_the_very_next_batch_and_its_fold(before):
    options = {"n_rows": 1_030, "batch_size": 5, "seed": 3}
    whole = loader(**options)
    expected = [(row_numbers(batch), whole.fold) for batch in islice(whole, before + 30)][before:]
    first = loader(**options)
    taken(first, before)
    state = first.state_dict()
    last_fold = first.fold
    taken(first, 7)
    resumed = loader(**options)
    resumed.load_state_dict(state)
    assert resumed.fold == last_fold
    assert [(row_numbers(batch), resumed.fold) for batch in islice(resumed, 30)] == expected


def test_the_seed_decides_the_order_and_not_the_folds():
    one, other = taken(loader(1_030, seed=1), 20), taken(loader(1_030, seed=2), 20)
    assert one != other
    assert taken(loader(1_030, seed=1), 20) == one


def test_a_corpus_with_too_few_rows_for_a_batch_of_one_fold_is_rejected(tmp_path):
    (tmp_path / "corpus").write_bytes(bytes(range(1, 251)) * 4)
    data = Bytes(str(tmp_path / "corpus"), batch_size=128, seq_len=10, order="folds")

    def first_batch():
        data.setup("fit")
        return next(iter(data.train_dataloader()))

    with pytest.raises(RunError, match="batch_size"):
        first_batch()


# Folds in ByteData


@pytest.fixture
def data(tmp_path):
    def make(n=20_000, corrupt_from=None, **options):
        text = torch.randint(1, 255, (n,), generator=torch.Generator().manual_seed(n)).byte()
        if corrupt_from is not None:
            text[corrupt_from:] = 255
        (tmp_path / "corpus").write_bytes(text.numpy().data)
        options = {"seq_len": 10, "batch_size": 4, "order": "folds", **options}
        data = Bytes(str(tmp_path / "corpus"), **options)
        data.setup("fit")
        return data, text

    return make


@pytest.mark.parametrize("development", [None, (0.9, 1.0), (0.25, 0.5)])
def test_each_training_byte_is_of_its_rows_fold(development, data):
    made, _ = data(20_003, development=development)
    folds = made.folds()
    rows, rest = divmod(len(made.train_split), 10)
    assert rest
    assert folds.dtype == torch.uint8
    assert len(folds) == len(made.train_split)
    assert folds[: rows * 10].reshape(rows, 10).tolist() == deal_rows(rows)[:, None].expand(-1, 10).tolist()
    assert set(folds[rows * 10 :].tolist()) <= set(range(N_FOLDS))


def test_the_fold_of_a_batch_is_that_of_its_bytes_in_the_training_split(data):
    made, _ = data()
    assert made.fold is None
    where = {bytes(row.tolist()): i for i, row in enumerate(made.train_split.split(10))}
    folds = made.folds()[::10]
    for _, targets in islice(made.train_dataloader().loader, 500):
        assert {int(folds[where[bytes(row.tolist())]]) for row in targets} == {made.fold}


@pytest.mark.parametrize(
    ("development", "start", "end"), [((0.9, 1.0), 16_200, 18_000), ((0.0, 0.1), 0, 1_800), ((0.25, 0.5), 4_500, 9_000)]
)
def test_a_development_split_is_cut_out_of_the_training_split(development, start, end, data):
    made, text = data(development=development)
    assert torch.equal(made.val_split, text[start:end])
    assert torch.equal(made.train_split, torch.cat([text[:start], text[end:18_000]]))
    assert torch.equal(made.val_dataloader().stream, text[start:end][:131_072])
    assert torch.equal(made.test_dataloader().stream, text[start:end])


def test_validation_bytes_do_not_matter_with_a_development_split(data):
    whole, _ = data(development=(0.9, 1.0))
    corrupt, _ = data(development=(0.9, 1.0), corrupt_from=18_000)
    assert whole.corpus.sha256 != corrupt.corpus.sha256
    assert torch.equal(whole.train_split, corrupt.train_split)
    assert torch.equal(whole.val_split, corrupt.val_split)
    assert not (corrupt.train_split == 255).any()
    assert not (corrupt.val_split == 255).any()


@pytest.mark.parametrize("development", [(1.0, 0.9), (0.5, 0.5)])
def test_fractions_that_are_reversed_are_rejected_with_key_and_value(development):
    with pytest.raises(ConfigError, match=r"^development: \[.*\] .*accepted: .*first below the second") as rejection:
        Bytes("corpus", development=development)
    assert str(list(development)) in str(rejection.value)


def test_a_development_split_shorter_than_a_row_is_rejected(data):
    with pytest.raises(RunError, match=r"^data: .*validation split .*, or another development split"):
        data(development=(0.9, 0.9001))


def test_a_development_split_may_not_take_all_that_trains(data):
    with pytest.raises(RunError, match=r"^data: .*train split .*, or another development split"):
        data(development=(0.0, 1.0))


def test_read_bytes_are_shared_by_the_splits(tmp_path):
    assert read_bytes(b"\0\xff").tolist() == [0, 255]


# Batch sizes that change


@pytest.mark.parametrize("world_size", [1, 2])
def test_a_new_batch_size_continues_in_the_fold_and_takes_no_row_twice(world_size):
    n_rows, fold_of_row = 1_030, deal_rows(1_030)
    ranks = [loader(n_rows, 1, rank=rank, world_size=world_size) for rank in range(world_size)]
    batches = [iter(rank) for rank in ranks]
    seen, order = set(), []
    for size in [5] * 10 + [3] * 7 + [11] * 30:
        for rank in ranks:
            rank.batch_size = size
        numbers = [number for rank in batches for number in row_numbers(next(rank))]
        (fold,) = fold_of_row[numbers].unique().tolist()
        assert {rank.fold for rank in ranks} == {fold}
        if len(set(order)) == N_FOLDS and fold != order[-1]:
            break  # of an epoch
        assert len(set(numbers)) == size * world_size
        assert not seen & set(numbers)
        seen |= set(numbers)
        order.append(fold)
    assert order == sorted(order, key=order.index), "a fold came back"


@pytest.mark.parametrize("before", [0, 1, 26, 200, 201, 450])
def test_positions_of_earlier_versions_are_numbers_of_rows(before):
    expected = loader(1_030, 5, seed=3)
    taken(expected, before)
    old = loader(1_030, 5, seed=3)
    old.load_state_dict({"position": 5 * before})
    assert old.fold == expected.fold
    assert old.state_dict()["position"] == expected.state_dict()["position"]
    assert taken(old, 40) == taken(expected, 40)


@pytest.mark.parametrize("before", [1, 26, 27, 60])
def test_a_place_within_a_fold_is_kept_under_another_batch_size(before):
    first = loader(1_030, 5, seed=3)
    taken(first, before)
    state = first.state_dict()
    first.batch_size = 7
    expected = taken(first, 40)
    resumed = loader(1_030, 7, seed=3)
    resumed.load_state_dict(state)
    assert taken(resumed, 40) == expected
