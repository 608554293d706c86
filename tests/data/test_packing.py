"""Packed rows: their formula, their place, their shares of ranks, and the process that works ahead."""

import functools
import io
import itertools
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from unittest import mock

import autoresearch_original as original
import numpy as np
import pytest
import torch
from packed_documents import encoding, texts, write_cache, write_parquet

from bytelm.data import packing
from bytelm.data.pack_worker import Job, blocks
from bytelm.data.packed import Documents
from bytelm.data.packed_rows import Ahead, PackedEval, PackedLoader
from bytelm.data.shared_tokens import FILES, SharedTokens, Sharing
from bytelm.data.tokenizer import load_tokenizer
from bytelm.errors import DataError
from bytelm.metrics import BitsPerByte

T = 40


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """A folder like autoresearch's."""
    return write_cache(tmp_path_factory.mktemp("home") / ".cache" / "autoresearch")


def files(cache):
    return sorted((cache / "data").glob("shard_0000*"))


@pytest.fixture(scope="module")
def job(cache):
    tokenizer = str(cache / "tokenizer")
    return Job(tuple(map(str, files(cache))), "text", tokenizer, T + 1, 30, block_rows=5)


def loader(job, batch_size=4, rank=0, world_size=1, ahead=False):
    return PackedLoader(job, batch_size, load_tokenizer(job.tokenizer), rank, world_size, ahead)


def batches(loader, n):
    return list(itertools.islice(loader, n))


def rows_of(batches):
    """The whole rows, of inputs and targets."""
    return torch.cat([torch.cat([inputs, targets[:, -1:]], dim=1) for inputs, targets in batches])


def packed(documents, n_rows, row_tokens, buffer_size):
    """The rows by the rule, with a list that is searched from its beginning; documents come in lists."""
    waiting, rows = [], []
    for _ in range(n_rows):
        row = []
        while len(row) < row_tokens:
            while len(waiting) < buffer_size:
                waiting += next(documents)
            left = row_tokens - len(row)
            fitting = [document for document in waiting if len(document) <= left]
            chosen = max(fitting, key=len) if fitting else min(waiting, key=len)  # the first of several
            del waiting[next(i for i, document in enumerate(waiting) if document is chosen)]
            row += chosen[:left]
        rows.append(row)
    return torch.tensor(rows)


def encoded(n_train, n_rows_of_a_group=70, at_once=128):
    """The documents of write_cache, in the lists in which they enter the buffer, again and again."""
    its = encoding()
    begin = its.encode_single_token("<|reserved_0|>")
    while True:
        for number, n in enumerate(n_train):
            documents = [[begin, *its.encode_ordinary(text)] for text in texts(n, number)]
            for start in range(0, n, n_rows_of_a_group):
                group = documents[start : start + n_rows_of_a_group]
                for first in range(0, len(group), at_once):
                    yield group[first : first + at_once]


@pytest.mark.parametrize("buffer_size", [1, 30, 200])
def test_rows_follow_the_rule_over_several_passes(job, buffer_size):
    found = rows_of(batches(loader(job._replace(buffer_size=buffer_size)), 150))
    expected = packed(encoded((150, 90)), 600, T + 1, buffer_size)
    assert torch.equal(found, expected)
    begin = load_tokenizer(job.tokenizer).end_of_text
    assert (found[:, 0] == begin).all()
    assert (found == begin).sum() > 2 * 240  # more than two passes


def test_more_documents_at_once_than_a_group_has(tmp_path, job):
    write_parquet(tmp_path / "one.parquet", texts(300, 5), row_group=300)
    its = encoding()
    begin = its.encode_single_token("<|reserved_0|>")
    documents = [[begin, *its.encode_ordinary(text)] for text in texts(300, 5)]
    lists = itertools.cycle([documents[:128], documents[128:256], documents[256:]])
    found = rows_of(batches(loader(job._replace(files=(str(tmp_path / "one.parquet"),))), 50))
    assert torch.equal(found, packed(lists, 200, T + 1, 30))


def test_documents_are_encoded_once_unless_they_are_too_many(job, monkeypatch):
    found, encoded_texts = [], []
    for most in (packing.KEPT, 500):  # tokens; the second is less than one pass has, and more than its first batch
        monkeypatch.setattr(packing, "KEPT", most)
        counted = loader(job)
        encode = mock.Mock(wraps=counted.tokenizer.encode_batch)
        monkeypatch.setattr(counted.tokenizer, "encode_batch", encode)
        found.append(rows_of(batches(counted, 150)))  # more than two passes
        encoded_texts.append(sum(len(call.args[0]) for call in encode.call_args_list))
    assert torch.equal(*found)
    assert encoded_texts[0] == 150 + 90
    assert encoded_texts[1] > 2 * (150 + 90)


def test_it_continues_from_every_position(job):
    whole, first = batches(loader(job), 43), loader(job)
    steps = iter(first)
    for done in range(40):
        file = io.BytesIO()
        torch.save(first.state_dict(), file)
        file.seek(0)
        if done % 7 in (0, 3):
            other = loader(job)
            other.load_state_dict(torch.load(file, weights_only=True))
            assert other.state_dict()["position"] == 4 * done
            again = loader(job)  # a place that is saved again before a batch is taken
            again.load_state_dict(other.state_dict())
            for resumed in (other, again):
                assert torch.equal(rows_of(batches(resumed, 3)), rows_of(whole[done : done + 3]))
        next(steps)


def test_positions_go_back_without_packing_again(job):
    one = loader(job)
    whole = batches(loader(job), 12)
    batches(one, 10)
    place, source = one.state_dict(), one._source
    batches(one, 2)
    one.load_state_dict(place)
    assert torch.equal(rows_of(batches(one, 2)), rows_of(whole[10:]))
    assert one._source is source
    one.load_state_dict({"position": 0})  # which is further back than what is kept
    assert torch.equal(rows_of(batches(one, 12)), rows_of(whole))


def test_ranks_share_the_rows_of_one_order(job):
    whole = rows_of(batches(loader(job, batch_size=6), 10)).view(10, 6, -1)
    for world_size in (2, 3):
        ranks = [loader(job, 6 // world_size, rank, world_size) for rank in range(world_size)]
        shares = [rows_of(batches(one, 10)).view(10, 6 // world_size, -1) for one in ranks]
        assert torch.equal(torch.cat(shares, dim=1), whole)
    # The same position on another number of ranks.
    resumed = loader(job, batch_size=3)
    resumed.load_state_dict(ranks[0].state_dict())
    assert torch.equal(rows_of(batches(resumed, 1)), rows_of(batches(loader(job, batch_size=3), 21))[60:])


def test_ranks_of_a_machine_encode_each_document_once(tmp_path, job):
    write_parquet(tmp_path / "many.parquet", texts(600, 5), row_group=300)  # groups of three batches
    job, alone = job._replace(files=(str(tmp_path / "many.parquet"),)), []
    folder = tmp_path / "shared"
    ranks = [loader(job._replace(sharing=Sharing(str(folder), rank, 3)), 2, rank, 3) for rank in range(3)]
    encoders = [mock.Mock(wraps=one.tokenizer.encode_batch) for one in ranks]
    for one, encoder in zip(ranks, encoders, strict=True):
        one.tokenizer.encode_batch = encoder
    with ThreadPoolExecutor() as threads:
        shares = list(threads.map(lambda one: rows_of(batches(one, 60)).view(60, 2, -1), ranks))
    alone = rows_of(batches(loader(job, 6), 60)).view(60, 6, -1)
    assert torch.equal(torch.cat(shares, dim=1), alone)
    n_encoded = [sum(len(call.args[0]) for call in encoder.call_args_list) for encoder in encoders]
    assert sum(n_encoded) == 600
    assert min(n_encoded) > 128
    assert folder.exists()
    del one, ranks
    assert not folder.exists()


def test_a_process_encodes_what_others_do_not_give(tmp_path):
    def encode(begin):
        asked.append(begin)
        return [np.array([begin, 7], np.uint16), np.array([begin], np.uint16)]

    asked, begins = [], list(range(0, 128 * 40, 128))
    one, two = (SharedTokens(Sharing(str(tmp_path / "shared"), rank, 2), patience=0.0) for rank in (0, 1))
    found = list(one.batches((3, 4), begins, encode))
    assert asked[20:] == begins[::2]  # its own batches are encoded, and given, before it looks for others
    assert [(begin, [list(tokens) for tokens in some]) for begin, some in found] == [
        (begin, [[begin, 7], [begin]]) for begin in begins
    ]
    asked.clear()
    Path(tmp_path, "shared", "3-4-128").unlink()
    for begin, some in two.batches((3, 4), begins, encode):
        assert [list(tokens) for tokens in some] == [[begin, 7], [begin]]
        assert some[0].dtype == np.uint16
    assert set(asked) == {*begins[::2], 128}
    for number in range(4):
        list(two.batches((5, number), begins, encode))
    assert len(list((tmp_path / "shared").iterdir())) == 19 + FILES  # of one, and the last ones of two


def test_a_process_that_cannot_write_goes_on(tmp_path):
    (tmp_path / "shared").write_text("not a folder")
    shared = SharedTokens(Sharing(str(tmp_path / "shared"), 0, 2), patience=0.0)
    assert [begin for begin, _ in shared.batches((0, 0), [0, 128], lambda begin: [np.zeros(1)])] == [0, 128]


def test_batch_sizes_can_change(job):
    one = loader(job, batch_size=2)
    found = batches(one, 3)
    one.batch_size = 7
    found += batches(one, 2)
    assert torch.equal(rows_of(found), rows_of(batches(loader(job), 5)))


def test_another_process_gives_the_same_rows(job):
    one = loader(job, ahead=True)
    found = batches(one, 2)
    process = one._source._process
    for number in (signal.SIGINT, signal.SIGTERM):  # which all processes of a run may receive
        process.send_signal(number)
    found += batches(one, 28)
    place = one.state_dict()
    one.close()
    assert process.poll() is not None
    assert torch.equal(rows_of(found), rows_of(batches(loader(job), 30)))
    one.load_state_dict(place)
    assert torch.equal(rows_of(batches(one, 2)), rows_of(batches(loader(job), 32)[30:]))
    one.close()


def test_errors_in_the_other_process_are_errors_here(job, tmp_path):
    (tmp_path / "bad.parquet").write_bytes(b"no Parquet")
    with pytest.raises(DataError, match=r"bad\.parquet.* cannot be read as Parquet"):
        next(Ahead(job._replace(files=(str(tmp_path / "bad.parquet"),)), None, 1))


def test_evaluation_packs_one_pass(job):
    whole = [rows for _, rows in blocks(job._replace(passes=1), None)]
    whole = torch.from_numpy(np.concatenate(whole).astype(np.int64))
    tokenizer = load_tokenizer(job.tokenizer)
    total = sum(
        len(encoding().encode_ordinary(text)) + 1 for number, n in enumerate((150, 90)) for text in texts(n, number)
    )
    assert len(whole) <= total // (T + 1)
    assert torch.equal(whole[:20], rows_of(batches(loader(job), 5)))  # while there are documents to come
    for most, n_rows in ((None, len(whole)), (22, 22), (10_000, len(whole))):
        one = PackedEval(job._replace(passes=1, most=most), 5, tokenizer, ahead=False)
        assert len(one) == -(-(most or n_rows) // 5) >= len(list(one))
        assert torch.equal(rows_of(one), whole[:n_rows])
        ranks = [PackedEval(job._replace(passes=1, most=most), 5, tokenizer, r, 2, ahead=False) for r in (0, 1)]
        assert len(ranks[0]) == len(ranks[1])
        assert torch.equal(torch.cat([rows_of(rank) for rank in ranks]), whole[:n_rows])


def test_no_batch_of_an_evaluation_is_empty_if_there_are_few_rows(job):
    few = job._replace(passes=1, most=40, files=job.files[:1], row_tokens=2000)  # rows that the documents do not fill
    tokenizer = load_tokenizer(job.tokenizer)
    rows = PackedEval(few, 1, tokenizer, ahead=False).rows
    assert 2 <= len(rows) < 40 / 2
    shares = [list(PackedEval(few, 1, tokenizer, rank, 2, ahead=False)) for rank in range(2)]
    assert all(len(inputs) for share in shares for inputs, _ in share)
    assert torch.equal(rows_of([*shares[0], *shares[1]]), torch.from_numpy(rows.astype(np.int64)))


def test_documents_that_are_too_short_to_validate(tmp_path, job):
    write_parquet(tmp_path / "short.parquet", ["to be"])
    short = job._replace(files=(str(tmp_path / "short.parquet"),), passes=1, most=3)
    with pytest.raises(DataError, match=r"data\.val: .* fewer tokens than a row"):
        list(PackedEval(short, 4, load_tokenizer(job.tokenizer), ahead=False))


def test_files_without_documents(tmp_path, job):
    write_parquet(tmp_path / "none.parquet", [])
    with pytest.raises(DataError, match="there are no documents"):
        next(iter(loader(job._replace(files=(str(tmp_path / "none.parquet"),)))))


# Beside the original


@pytest.fixture
def theirs(cache, monkeypatch):
    """The original's prepare.py, in the folder, on the CPU."""
    monkeypatch.setenv("HOME", str(cache.parents[1]))
    module = original.definitions("prepare.py")
    empty = torch.empty

    def on_cpu(*sizes, pin_memory=False, device=None, **options):
        return empty(*sizes, **options)

    monkeypatch.setattr(torch, "empty", on_cpu)
    load = module.get_token_bytes
    monkeypatch.setattr(module, "get_token_bytes", lambda device: load("cpu"))
    return module


@original.needs_clone
@pytest.mark.parametrize("split", ["train", "val"])
def test_rows_are_the_originals(theirs, cache, split):
    its = theirs.make_dataloader(theirs.Tokenizer.from_directory(theirs.TOKENIZER_DIR), 4, T, split, buffer_size=50)
    data = Documents(
        str(cache),
        tokenizer=str(cache / "tokenizer"),
        batch_size=4,
        seq_len=T,
        buffer_size=50,
        ahead=False,
        eval_tokens=16 * T,
    )
    data.setup("fit")
    ours = data.train_loader(0, 0, 1) if split == "train" else data.val_dataloader()
    for (inputs, targets), (x, y, _) in zip(itertools.islice(ours, 100 if split == "train" else 4), its, strict=False):
        assert torch.equal(inputs, x)
        assert torch.equal(targets, y)


@original.needs_clone
def test_bits_per_byte_are_the_originals(theirs, cache, monkeypatch):
    monkeypatch.setattr(theirs, "MAX_SEQ_LEN", T)
    monkeypatch.setattr(theirs, "EVAL_TOKENS", 16 * T)
    # With fewer documents than its buffer of 1,000 has, the original validates on some of them again.
    monkeypatch.setattr(theirs, "make_dataloader", functools.partial(theirs.make_dataloader, buffer_size=50))
    data = Documents(
        str(cache),
        tokenizer=str(cache / "tokenizer"),
        batch_size=4,
        seq_len=T,
        ahead=False,
        eval_tokens=16 * T,
        partial_characters="replaced",
        buffer_size=50,
    )
    data.setup("fit")
    costs = torch.rand(data.vocab_size, generator=torch.Generator().manual_seed(0)) * 10

    def network(x, y, reduction):
        return costs[y]

    metric, exact = BitsPerByte(data.token_bytes), BitsPerByte(data.loaded_tokenizer.token_bytes)
    for _, targets in data.val_dataloader():
        metric.update(costs[targets], targets)
        exact.update(costs[targets], targets)
    expected = theirs.evaluate_bpb(network, theirs.Tokenizer.from_directory(theirs.TOKENIZER_DIR), 4)
    assert metric.compute().item() == pytest.approx(expected, abs=1e-6)
    assert exact.compute().item() > 1.05 * expected  # the texts have characters of several bytes
