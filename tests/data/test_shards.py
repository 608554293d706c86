"""The crops that each order, rank and split takes, how shards are found, and the values that are rejected.

In most tests token i of shard s is 1000 s + i: a crop shows where it was taken from.
"""

import os
import pickle
import struct
import time
from itertools import chain, islice, pairwise, repeat
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bytelm.data import shards as module
from bytelm.data.epochs import EpochLoader
from bytelm.data.shard_file import write_shard
from bytelm.data.shards import CropLoader, Crops, EvalCrops, TokenShards
from bytelm.data.train_tokenizer import train_tokenizer
from bytelm.errors import ConfigError, DataError
from bytelm.inference.load import tokenizer_name

T = 4
TRAIN, VAL = (41, 26, 3, 15), (30, 22)  # tokens of each shard; the third training shard is too short for a crop
STARTS = [1000 * shard + start for shard, size in enumerate(TRAIN) for start in range(size - T)]


def numbered(sizes, first=0):
    return {f"shard {first + s}": np.arange(size, dtype=np.uint16) + 1000 * (first + s) for s, size in enumerate(sizes)}


def crops(sizes, stride=1, vocab_size=10_000):
    return Crops(numbered(sizes), T, stride, vocab_size)


@pytest.fixture
def folder(tmp_path):
    """Four training shards, and two validation shards that begin at token 5000; half of them have a header."""
    path = tmp_path / "numbers"
    path.mkdir()
    for kind, shards in (("train", numbered(TRAIN)), ("val", numbered(VAL, first=5))):
        for number, tokens in enumerate(shards.values()):
            file = path / f"text_{kind}_{number}.bin"
            tokens.tofile(file) if number % 2 else write_shard(file, tokens)
    return path


@pytest.fixture
def data(folder):
    """Makes TokenShards of the folder, set up for training."""

    def make(stage="fit", **options):
        places = {} if {"train", "val"} <= options.keys() else {"path": str(folder)}
        defaults = {"batch_size": 3, "seq_len": T, "vocab_size": 10_000, "tokenizer": None, "seed": 1}
        made = TokenShards(**{**places, **defaults, **options})
        made.setup(stage)
        return made

    return make


def starts(batch):
    """Returns the first tokens of a batch's rows."""
    return batch[0][:, 0].tolist()


def taken(loader, batches):
    return [starts(batch) for batch in islice(endless(loader), batches)]


def endless(loader):
    """Yields the batches of one epoch after another."""
    return chain.from_iterable(repeat(loader)) if isinstance(loader, EpochLoader) else loader


def joined(batches):
    return [start for batch in batches for start in batch]


def at_rank(data, rank, world_size, device="cpu"):
    strategy = SimpleNamespace(root_device=torch.device(device))
    data.trainer = SimpleNamespace(
        global_rank=rank, world_size=world_size, strategy=strategy, accumulate_grad_batches=1, overfit_batches=0
    )


# Crops


@given(
    sizes=st.lists(st.integers(0, 25), min_size=1, max_size=6).filter(lambda sizes: max(sizes) > T),
    stride=st.integers(1, 9),
)
def test_crops_are_those_of_a_plain_loop(sizes, stride):
    expected = [
        list(range(1000 * shard + start, 1000 * shard + start + T + 1))
        for shard, size in enumerate(sizes)
        for start in range(0, size - T, stride)
    ]
    all_crops = crops(sizes, stride)
    assert len(all_crops) == len(expected)
    inputs, targets = all_crops.take(np.arange(len(expected)))
    assert inputs.tolist() == [crop[:-1] for crop in expected]
    assert targets.tolist() == [crop[1:] for crop in expected]
    assert inputs.dtype == targets.dtype == torch.int64
    assert inputs.is_contiguous()
    assert targets.is_contiguous()


# Random order


def test_random_crops_lie_within_a_shard_and_come_from_everywhere(data):
    loader = data().train_dataloader()
    found = set()
    for inputs, targets in islice(endless(loader), 500):
        assert inputs.shape == targets.shape == (3, T)
        assert torch.equal(targets, inputs + 1), "a crop that spans two shards"
        found |= {*inputs[:, 0].tolist()}
    assert found == {*STARTS}


def test_all_places_are_equally_likely(data):
    n = 40_000
    (batch,) = taken(data(batch_size=n).train_dataloader(), 1)
    counts = np.array([batch.count(start) for start in STARTS])
    p = 1 / len(STARTS)
    assert counts.sum() == n
    assert np.abs(counts - n * p).max() < 5 * (n * p * (1 - p)) ** 0.5
    successive = np.array(taken(data(batch_size=1).train_dataloader(), 8_000)).ravel()
    assert abs(np.corrcoef(successive[:-1], successive[1:])[0, 1]) < 0.05


def test_the_seed_alone_determines_random_crops(data, monkeypatch):
    np.random.seed(1)
    expected = taken(data().train_dataloader(), 20)
    np.random.seed(2)
    assert taken(data().train_dataloader(), 20) == expected
    assert taken(data(seed=2).train_dataloader(), 20) != expected
    monkeypatch.setenv("PL_GLOBAL_SEED", "1")
    assert taken(data(seed=None).train_dataloader(), 20) == expected


def test_ranks_take_crops_of_their_own_from_all_places(data):
    batches = []
    for rank in range(3):
        own = data()
        at_rank(own, rank, 3)
        loader = own.train_dataloader()
        batches.append(taken(loader, 200))
        assert loader.state_dict() == {"position": 200 * 3 * 3}
        assert {start for batch in batches[-1] for start in batch} == {*STARTS}
    for one, other in pairwise([*batches, batches[0]]):
        assert sum(a == b for a, b in zip(one, other, strict=True)) == 0


# Sequential order


def test_sequential_crops_follow_each_other_shard_after_shard_and_wrap_around(data):
    once = [*range(0, 40, 4), *range(1000, 1021, 4), *range(3000, 3009, 4)]
    assert len(once) == 19
    loader = data(order="sequential", batch_size=4).train_dataloader()
    assert joined(taken(loader, 19)) == 4 * once


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_all_ranks_together_take_consecutive_crops(world_size):
    ranks = [CropLoader(crops(TRAIN, T), 2, "sequential", 0, rank, world_size) for rank in range(world_size)]
    one = CropLoader(crops(TRAIN, T), 2 * world_size, "sequential")
    for whole, *parts in zip(taken(one, 30), *(taken(rank, 30) for rank in ranks), strict=True):
        assert joined(parts) == whole


# Position


@pytest.mark.parametrize("order", ["random", "sequential"])
@pytest.mark.parametrize("before", [0, 1, 7])
def test_a_loaded_position_continues_with_the_very_next_batch(order, before, data):
    expected = taken(data(order=order).train_dataloader(), before + 8)
    first = data(order=order)
    loader = first.train_dataloader()
    assert taken(loader, before) == expected[:before]
    state = first.state_dict()
    assert state["position"] == 3 * before
    taken(loader, 3)
    resumed = data(order=order)
    resumed.check_resume(state)
    resumed.load_state_dict(state)
    assert taken(resumed.train_dataloader(), 8) == expected[before:]
    loader.load_state_dict(state)
    assert taken(loader, 8) == expected[before:], "a loader must be able to go back"


def test_data_that_nothing_was_taken_of_have_no_state(data):
    assert data().state_dict() == {}
    data().check_resume({})


# Evaluation


@given(
    sizes=st.lists(st.integers(0, 60), min_size=1, max_size=4).filter(lambda sizes: max(sizes) > T),
    batch_size=st.integers(1, 9),
    world_size=st.integers(1, 4),
)
def test_evaluation_predicts_each_token_once_in_equally_many_batches_on_every_rank(sizes, batch_size, world_size):
    loaders = [EvalCrops(crops(sizes, T), batch_size, None, rank, world_size) for rank in range(world_size)]
    batches = [[*loader] for loader in loaders]
    predicted = [token for rank in batches for _, targets in rank for token in targets.flatten().tolist()]
    assert predicted == [1000 * s + 1 + i for s, size in enumerate(sizes) for i in range((size - 1) // T * T)]
    assert len({len(rank) for rank in batches} | {len(loader) for loader in loaders}) == 1
    rows = [len(inputs) for rank in batches for inputs, _ in rank]
    assert max(rows) <= batch_size
    assert max(rows) - min(rows) <= 1
    assert all(inputs.shape == targets.shape == (len(inputs), T) for rank in batches for inputs, targets in rank)


@pytest.mark.parametrize(("eval_tokens", "rows"), [(1, 1), (8, 2), (11, 2), (48, 12), (10**9, 12)])
def test_validate_scores_the_first_eval_tokens_and_test_all(eval_tokens, rows, data):
    made = data("validate", eval_tokens=eval_tokens)
    everything = [*range(5000, 5028, 4), *range(6000, 6020, 4)]
    assert joined(taken(made.val_dataloader(), 10)) == everything[:rows]
    assert joined(taken(made.test_dataloader(), 10)) == everything
    assert joined(taken(made.predict_dataloader(), 10)) == everything


def test_each_rank_of_a_trainer_validates_its_own_share(data):
    shares = []
    for rank in range(3):
        made = data("validate", batch_size=2)
        at_rank(made, rank, 3)
        shares += [start for batch in made.val_dataloader() for start in starts(batch)]
    assert shares == [*range(5000, 5028, 4), *range(6000, 6020, 4)]


# Where shards are found


def test_shards_are_found_in_a_folder_by_files_and_by_globs_in_order(folder, data):
    expected = [folder / f"text_train_{number}.bin" for number in range(4)]
    val = str(folder / "*val*.bin")
    assert [*data().shards("train")] == expected
    assert [*data(train=str(folder), val=val).shards("train")] == expected
    assert [*data(train=str(folder / "*train*"), val=val).shards("train")] == expected
    assert [*data(train=str(expected[1])).shards("train")] == expected[1:2]
    both = [str(expected[3]), str(folder / "*train_[01].bin")]
    assert [*data(train=both).shards("train")] == [expected[3], *expected[:2]]
    assert [*data(train=both).shards("val")] == [folder / f"text_val_{number}.bin" for number in range(2)]
    assert [*data(train=str(expected[1]), val=str(expected[0])).shards("val")] == expected[:1]
    with pytest.raises(DataError, match=r"data\.val: .*text_train_0\.bin' .* it is also a file for training"):
        data(val=str(expected[0]))


def test_a_folder_of_the_home_is_found(folder, monkeypatch):
    monkeypatch.setenv("HOME", str(folder.parent))
    assert len(TokenShards("~/numbers", vocab_size=10_000).shards("train")) == 4


def test_the_tokenizer_beside_shards_is_theirs(folder):
    path = folder / "tokenizer.json"
    train_tokenizer(iter(["to be or not to be " * 9]), 262, path)
    file = str(path)
    found = TokenShards(str(folder))
    assert (found.tokenizer, found.vocab_size, found.text_tokenizer().vocab_size) == (file, 262, 262)
    assert TokenShards(str(folder)).text_tokenizer() is found.text_tokenizer()  # a large one takes seconds to load
    options = {"path": str(folder), "tokenizer": "auto", "vocab_size": None}
    assert TokenShards.resolved(options) == {"tokenizer": file, "vocab_size": 262}
    assert TokenShards.resolved(options | {"vocab_size": 300}) == {"tokenizer": file, "vocab_size": 300}
    assert TokenShards.resolved(options | {"tokenizer": str(folder)}) == {"tokenizer": str(folder), "vocab_size": 262}
    for name in ("gpt2", None):
        assert TokenShards.resolved(options | {"tokenizer": name}) == {"tokenizer": name, "vocab_size": 50_257}
    assert tokenizer_name({"data": {"init_args": options}}) == file  # of a config that is not of a run
    path.write_text("{}")
    with pytest.raises(DataError, match=r"^data\.tokenizer: .*tokenizer\.json' cannot be used; it is not a tokenizer"):
        TokenShards(str(folder))
    path.unlink()
    assert TokenShards.resolved(options) == {"tokenizer": "gpt2", "vocab_size": 50_257}
    assert tokenizer_name({"data": {"init_args": options}}) == "gpt2"
    with pytest.raises(DataError, match=r"^data\.path: 'none' cannot be used; not found in /"):
        TokenShards("none")


def test_the_characters_beside_nanogpts_shards_are_their_tokens(folder):
    path = folder / "meta.pkl"
    characters = dict(enumerate("a\u00e9b"))
    numbers = {character: number for number, character in characters.items()}
    path.write_bytes(pickle.dumps({"vocab_size": 3, "itos": characters, "stoi": numbers}))
    options = {"path": str(folder), "tokenizer": "auto", "vocab_size": None}
    assert TokenShards.resolved(options) == {"tokenizer": str(path), "vocab_size": 3}
    assert tokenizer_name({"data": {"init_args": options}}) == str(path)
    assert TokenShards(str(folder)).text_tokenizer().token_bytes.tolist() == [1, 2, 1]
    assert TokenShards.resolved(options | {"tokenizer": "bytes"}) == {"tokenizer": "bytes", "vocab_size": 256}


def test_a_split_that_is_not_needed_is_not_read(folder, data):
    for file in folder.glob("*train*"):
        file.unlink()
    assert len(data("validate").val_dataloader()) == 4


@pytest.mark.parametrize("options", [{}, {"train": "a.bin"}, {"val": "a.bin"}, {"train": [], "val": "a.bin"}])
def test_shards_must_be_said_to_be_somewhere(options):
    with pytest.raises(ConfigError, match=r"^data\.path: None cannot be used; accepted: a folder"):
        TokenShards(**options)


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (
            {"path": "none"},
            r"data.path: 'none' cannot be used; not found in /.*; accepted: a folder with .bin files",
        ),
        ({"path": "numbers/text_val_0.bin"}, r"data.path: 'numbers/text_val_0.bin' cannot be used"),
        ({"train": "numbers/none.bin"}, r"data.train: 'numbers/none.bin' cannot be used; accepted: a file"),
        ({"train": ["numbers", "*.none"]}, r"data.train: '\*.none' cannot be used"),
        (
            {"val": "."},
            r"data.val: '.' cannot be used; accepted: .* files that have the word `val` in",
        ),
        ({"train": "empty.bin"}, r"data: 'empty.bin' cannot be used; it is empty"),
    ],
)
def test_missing_files_are_rejected_by_name(options, complaint, folder, data, monkeypatch):
    monkeypatch.chdir(folder.parent)
    (folder.parent / "empty.bin").touch()
    with pytest.raises(DataError, match=f"^{complaint}"):
        data(**options)


# Requirements for shards


@pytest.mark.parametrize(("seq_len", "split", "longest"), [(41, "train", 41), (30, "val", 30)])
def test_shards_without_a_crop_are_rejected(seq_len, split, longest, data):
    reason = f"the longest of the {split} shards has {longest} tokens; accepted: up to {longest - 1}"
    with pytest.raises(DataError, match=rf"^data.seq_len: {seq_len} cannot be used; {reason}"):
        data(seq_len=seq_len)


@pytest.mark.parametrize("at", [0, 299, -300, -1])
@pytest.mark.parametrize("split", ["train", "val"])
def test_a_token_beyond_the_vocabulary_at_a_shards_ends_is_rejected_in_setup(split, at, folder, data, monkeypatch):
    monkeypatch.setattr(module, "SCANNED", 300)
    tokens = np.zeros(2_000, dtype=np.uint16)
    tokens[at] = 10_000
    write_shard(folder / f"text_{split}_1.bin", tokens)
    complaint = rf"^data.vocab_size: 10000 cannot be used; .*text_{split}_1.bin has token 10000; accepted: from 10001"
    with pytest.raises(DataError, match=complaint):
        data()
    data(vocab_size=10_001)


@pytest.mark.parametrize("at", [300, 1_000, 1_699])
def test_a_token_beyond_the_vocabulary_elsewhere_is_rejected_when_it_is_drawn(at, folder, data, monkeypatch):
    monkeypatch.setattr(module, "SCANNED", 300)
    tokens = np.zeros(2_000, dtype=np.uint16)
    tokens[at] = 20_000
    write_shard(folder / "text_train_1.bin", tokens)
    loader = data(order="sequential").train_dataloader()
    with pytest.raises(DataError, match=r"^data.vocab_size: 10000 .*text_train_1.bin has token 20000"):
        taken(loader, 1_000)


# Identity


def test_the_record_names_the_folder_and_counts_the_tokens(data):
    record = data().corpus_record()
    assert record == {"name": "numbers", "tokens": {"train": 85, "val": 52}, "sha256": record["sha256"]}
    assert len(record["sha256"]) == 64
    assert data(batch_size=1, order="sequential").corpus_record() == record


def overwrite(at, by=b"\x02"):
    def change(folder):
        with open(folder / "text_train_1.bin", "r+b") as file:
            file.seek(at, 2 if at < 0 else 0)
            file.write(by)

    return change


MIB = 2**20
CHANGES = {
    "first megabyte": (overwrite(MIB - 1), True),
    "last megabyte": (overwrite(-MIB), True),
    "end": (overwrite(-1), True),
    "longer": (lambda folder: np.ones(2 * MIB + 1, np.uint16).tofile(folder / "text_train_1.bin"), True),
    "renamed": (lambda folder: (folder / "text_val_1.bin").rename(folder / "text_val_x.bin"), True),
    "other split": (lambda folder: (folder / "text_val_1.bin").rename(folder / "text_train_x.bin"), True),
    "between": (overwrite(MIB), False),
    "nothing": (lambda folder: None, False),
}


@pytest.mark.parametrize(("change", "is_noticed"), CHANGES.values(), ids=CHANGES)
def test_a_run_does_not_continue_with_other_shards(change, is_noticed, folder, data):
    np.ones(2 * MIB, np.uint16).tofile(folder / "text_train_1.bin")
    first = data()
    next(iter(first.train_dataloader()))
    state = first.state_dict()
    change(folder)
    if is_noticed:
        with pytest.raises(DataError, match=r"^data: 'numbers' cannot be used; it has changed since the checkpoint"):
            data().check_resume(state)
    else:
        data().check_resume(state)


# Bytes


def test_the_tokenizer_tells_how_many_bytes_a_token_stands_for(folder, data):
    for file in folder.glob("*_val_*"):
        write_shard(file, np.arange(200))
    made = data("validate", tokenizer="bytes")
    assert made.counts_bytes
    assert made.token_bytes.shape == (10_000,)
    assert made.token_bytes.dtype == torch.int64
    assert made.token_bytes[1:256].tolist() == [1] * 255
    assert made.token_bytes[256:].sum() == 0


def test_without_a_tokenizer_bytes_are_not_counted(data):
    made = data()
    assert made.token_bytes is None
    assert not made.counts_bytes


def test_the_tokenizer_must_not_have_more_tokens_than_the_data(folder):
    for number, split in enumerate(("train", "val")):
        np.full(100, number, np.uint16).tofile(folder / f"{split}.bin")
    files = {split: str(folder / f"{split}.bin") for split in ("train", "val")}
    with pytest.raises(ConfigError, match=r"^data.vocab_size: 255 cannot be used; accepted: from 256, .* bytes$"):
        TokenShards(**files, seq_len=T, vocab_size=255, tokenizer="bytes").setup("fit")


def test_tokens_that_the_tokenizer_does_not_know_are_rejected(data):
    complaint = r"data\.tokenizer: 'bytes' cannot be used; .*text_val_0\.bin has token 5029, and it knows 256 tokens"
    with pytest.raises(DataError, match=complaint):
        data("validate", tokenizer="bytes")


# Widths


def test_a_vocabulary_wider_than_the_tokens_is_rejected(folder, data):
    reason = r"text_train_0\.bin has 16-bit tokens; accepted: up to 65536"
    with pytest.raises(DataError, match=rf"^data\.vocab_size: 100277 cannot be used; .*{reason}"):
        data(vocab_size=100_277)
    data(vocab_size=65_536)


def test_32_bit_shards_are_trained_on(folder, data):
    for file in folder.iterdir():
        head = struct.pack("<256i", 20240801, 7, 40, *[0] * 253)
        file.write_bytes(head + (np.arange(40) + 128_000).astype("<u4").tobytes())
    made = data(vocab_size=128_256, order="sequential")
    assert starts(next(iter(made.train_dataloader()))) == [128_000, 128_004, 128_008]
    with pytest.raises(DataError, match=r"has token 128039; accepted: from 128040"):
        data(vocab_size=128_000)


# Files that change while they are in use


def test_nothing_changes_without_a_write(folder, data):
    made = data()
    (folder / "text_train_9.bin").write_bytes(b"xx")
    write_shard(folder / "text_train_0.bin", [1, 2, 3])  # another file of the same name
    assert made.changed() is None


def test_a_truncated_shard_has_changed(folder, data):
    made = data()
    os.truncate(folder / "text_train_1.bin", 50)
    assert made.changed() == f"{folder}/text_train_1.bin has 50 bytes, and had 52"


def test_a_shard_that_was_overwritten_has_changed(folder, data):
    made = data()
    before = made.corpus_record()["sha256"]
    overwrite(-1)(folder)
    reason = made.changed()
    assert reason.startswith(f"{folder}/text_train_1.bin was written to: the sha256 is ")
    assert reason.endswith(f"…, and was {before[:12]}…")
    assert made.changed() == reason


def test_a_shard_that_was_written_to_and_has_the_same_hash_is_noted_once(folder, data, capsys):
    made = data()
    overwrite(-1, (folder / "text_train_1.bin").read_bytes()[-1:])(folder)
    os.utime(folder / "text_train_1.bin", (1, 1))
    assert made.changed() is None
    (line,) = capsys.readouterr().err.splitlines()
    assert "text_train_1.bin was written to during the run; its size and the data's sha256 are the same" in line
    assert made.changed() is None
    assert capsys.readouterr().err == ""


def test_a_batch_that_cannot_be_read_is_not_counted(folder, data):
    loader = data(order="sequential", batch_size=4).train_dataloader()
    assert len(taken(loader, 2)) == 2
    position = loader.state_dict()
    for file in folder.glob("*train*"):
        os.truncate(file, 4)
    with pytest.raises(DataError, match="was cut short while it was in use"):
        next(iter(loader))
    assert loader.state_dict() == position


# Speed


def test_batches_are_pinned_for_a_gpu(data):
    made = data()
    assert not made.train_dataloader().loader.crops.pin_memory
    at_rank(made, 0, 1, device="cuda")
    assert made.train_dataloader().loader.crops.pin_memory
    assert made.val_dataloader().crops.pin_memory
    at_rank(made, 0, 1)
    assert not made.train_dataloader().loader.crops.pin_memory


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_pinned_batches_hold_the_same_tokens():
    numbers = np.arange(10)
    pinned = Crops(numbered(TRAIN), T, 1, 10_000, pin_memory=True).take(numbers)
    for one, other in zip(pinned, crops(TRAIN).take(numbers), strict=True):
        assert one.is_pinned()
        assert torch.equal(one, other)


def test_a_batch_of_gpt2_takes_little_more_than_the_copy_of_its_tokens(tmp_path):
    tokens = np.random.default_rng(0).integers(50_257, size=3_000_000)
    for split in ("train_0", "train_1", "val"):
        write_shard(tmp_path / f"{split}.bin", tokens)
    made = TokenShards(str(tmp_path), tokenizer=None)
    made.setup("fit")
    batches = iter(made.train_dataloader())
    n_tokens = 2 * next(batches)[0].numel()  # inputs and targets
    part = tokens[:n_tokens].astype(np.uint16)

    def best(function):  # of many, because other processes may be using the machine
        seconds = []
        for _ in range(100):
            start = time.perf_counter()
            function()
            seconds.append(time.perf_counter() - start)
        return min(seconds)

    batch, copy = best(lambda: next(batches)), best(lambda: torch.from_numpy(part.astype(np.int64)))
    print(f"{1e6 * batch:.0f} µs, of which the copy takes {1e6 * copy:.0f} µs")  # shown by pytest -rP
    assert batch < 100 * copy


# Sizes that change between batches

SIZES = st.lists(st.tuples(st.integers(1, 5), st.integers(1, 12)), min_size=1, max_size=12)  # of batches and of rows


def resized(loader, sizes):
    """Returns a batch of each size, and the loader's state before it."""
    batches = []
    rows = iter(loader)
    for loader.batch_size, loader.seq_len in sizes:
        state = loader.state_dict()
        batches.append((state, next(rows)))
    return batches


def follow(sizes, lengths):
    """Returns the first tokens of consecutive rows of these lengths in shards of these sizes, from a plain loop."""
    shard, token, firsts = 0, 0, []
    for length in lengths:
        while token + length >= sizes[shard]:
            shard, token = (shard + 1) % len(sizes), 0
        firsts.append(1000 * shard + token)
        token += length
    return firsts


@given(sizes=SIZES, world_size=st.sampled_from([1, 2, 3]))
def test_in_sequential_order_no_token_is_skipped_or_predicted_twice_when_sizes_change(sizes, world_size):
    ranks = [CropLoader(crops(TRAIN, T), 1, "sequential", 0, rank, world_size) for rank in range(world_size)]
    batches = [resized(loader, sizes) for loader in ranks]
    lengths = [length for size, length in sizes for _ in range(size * world_size)]
    found = [batch for parts in zip(*batches, strict=True) for _, batch in parts]
    assert joined(map(starts, found)) == follow(TRAIN, lengths)
    for (inputs, targets), (size, length) in zip(found[::world_size], sizes, strict=True):
        assert inputs.shape == targets.shape == (size, length)
        assert torch.equal(targets, inputs + 1), "a row that spans two shards"


@given(sizes=SIZES)
def test_random_crops_of_another_length_lie_within_a_shard(sizes):
    loader = CropLoader(crops(TRAIN), 1, "random", seed=1)
    for (_, (inputs, targets)), shape in zip(resized(loader, sizes), sizes, strict=True):
        assert tuple(inputs.shape) == shape
        assert torch.equal(targets, inputs + 1)
    assert loader.state_dict() == {"position": sum(size for size, _ in sizes)}


@pytest.mark.parametrize("order", ["sequential", "random"])
@given(sizes=SIZES)
def test_a_position_between_other_sizes_continues_with_the_very_next_batch(order, sizes):
    stride = T if order == "sequential" else 1
    taken = resized(CropLoader(crops(TRAIN, stride), 1, order, seed=1), sizes)
    for i, (state, _) in enumerate(taken):
        other = CropLoader(crops(TRAIN, stride), 1, order, seed=1)
        other.load_state_dict(state)
        for (_, batch), (_, expected) in zip(resized(other, sizes[i:]), taken[i:], strict=True):
            assert torch.equal(batch[0], expected[0])


@pytest.mark.parametrize("before", [0, 1, 3, 9, 10, 30])
def test_positions_of_earlier_versions_are_numbers_of_crops(before):
    expected = joined(taken(CropLoader(crops(TRAIN, T), 2, "sequential"), 60))[2 * before :]
    loader = CropLoader(crops(TRAIN, T), 2, "sequential")
    loader.load_state_dict({"position": 2 * before})
    assert joined(taken(loader, 10)) == expected[:20]


def test_a_row_longer_than_all_shards_is_rejected(data):
    data().check_sizes("schedules.data.seq_len", "seq_len", [T, 40])
    with pytest.raises(DataError, match=r"^schedules.data.seq_len: 41 .*has 41 tokens; accepted: up to 40"):
        data().check_sizes("schedules.data.seq_len", "seq_len", [T, 41])
