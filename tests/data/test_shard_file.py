"""Shard files: each format is read as it was written, other files are rejected, and a file may change while in use."""

import os
import pickle
import resource
import struct
import subprocess
import sys

import numpy as np
import pytest

from bytelm.data.shard_file import Shard, find_shards, write_shard
from bytelm.errors import DataError

TOKENS = np.arange(1_000, dtype=np.uint16) * 65


def header(magic=20240520, version=1, n_tokens=1_000, fourth=0) -> bytes:
    return struct.pack("<256i", magic, version, n_tokens, fourth, *[0] * 252)


def test_tokens_without_a_header_are_read_as_nanogpt_writes_them(tmp_path):
    TOKENS.tofile(tmp_path / "train.bin")
    assert Shard(tmp_path / "train.bin")[:].tolist() == TOKENS.tolist()


def test_tokens_after_a_header_are_read_as_llm_c_writes_them(tmp_path):
    (tmp_path / "shard.bin").write_bytes(header() + TOKENS.tobytes())
    tokens = Shard(tmp_path / "shard.bin")[:]
    assert tokens.tolist() == TOKENS.tolist()
    assert tokens.dtype == np.uint16


def test_a_shard_is_written_as_llm_c_expects_it(tmp_path):
    write_shard(tmp_path / "shard.bin", TOKENS.tolist())
    assert (tmp_path / "shard.bin").read_bytes() == header() + TOKENS.tobytes()
    write_shard(tmp_path / "shard.bin", [0, 65_535])
    assert Shard(tmp_path / "shard.bin")[:].tolist() == [0, 65_535]


def test_32_bit_tokens_after_a_header_are_read_as_llm_c_writes_them(tmp_path):
    tokens = np.array([128_000, 1, 2**32 - 1], dtype=np.uint32)
    (tmp_path / "shard.bin").write_bytes(header(20240801, 7, 3) + tokens.tobytes())
    shard = Shard(tmp_path / "shard.bin")
    assert shard[:].tolist() == tokens.tolist()
    assert (len(shard), shard.dtype) == (3, np.uint32)


@pytest.mark.parametrize("where", [slice(0, 5), slice(990, 2_000), slice(-7, None), slice(5, 5), slice(9, 3)])
@pytest.mark.parametrize("before", [b"", header()], ids=["nanoGPT", "llm.c"])
def test_a_slice_of_a_shard_is_that_of_its_tokens(where, before, tmp_path):
    (tmp_path / "shard.bin").write_bytes(before + TOKENS.tobytes())
    shard = Shard(tmp_path / "shard.bin")
    assert shard[where].tolist() == TOKENS[where].tolist()
    assert pickle.loads(pickle.dumps(shard))[where].tolist() == TOKENS[where].tolist()


def test_a_file_that_takes_a_shards_name_is_not_read(tmp_path):
    write_shard(tmp_path / "shard.bin", TOKENS)
    shard = Shard(tmp_path / "shard.bin")
    stamp = shard.stamp()
    write_shard(tmp_path / "shard.bin", [1])  # by a rename
    assert shard[:].tolist() == TOKENS.tolist()
    assert shard.stamp() == stamp


def test_a_shard_that_is_truncated_is_an_error_where_it_is_read(tmp_path):
    write_shard(tmp_path / "shard.bin", TOKENS)
    shard = Shard(tmp_path / "shard.bin")
    stamp = shard.stamp()
    os.truncate(tmp_path / "shard.bin", 1024 + 100)
    assert shard[:50].tolist() == TOKENS[:50].tolist()
    with pytest.raises(DataError, match=r"shard\.bin' cannot be used; it was cut short while it was in use"):
        shard[50:51]
    assert shard.stamp() != stamp


def test_more_shards_than_a_process_may_open_by_default(tmp_path):
    write_shard(tmp_path / "shard.bin", TOKENS)
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    program = f"""
import resource
from bytelm.data.shard_file import Shard
resource.setrlimit(resource.RLIMIT_NOFILE, (32, {most}))
shards = [Shard({str(tmp_path / "shard.bin")!r}) for _ in range(100)]
print(sum(len(shard[-3:]) for shard in shards))
"""
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True).stdout == "300\n"


@pytest.mark.parametrize(
    "tokens",
    [
        [7],
        [0] * 511,
        [*np.frombuffer(header(), np.uint16).tolist()[:-1], 9],
        [*np.frombuffer(header(magic=1), np.uint16).tolist()[:6], 5, *[0] * 600],
    ],
    ids=["one", "zeros, but fewer than a header's", "the magic number", "many zeros"],
)
def test_tokens_are_not_taken_for_a_header(tokens, tmp_path):
    np.array(tokens, dtype=np.uint16).tofile(tmp_path / "train.bin")
    assert Shard(tmp_path / "train.bin")[:].tolist() == tokens


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"", "it is empty"),
        (b"abc", "it has 3 bytes, an odd number"),
        (TOKENS.tobytes() + b"x", "it has 2001 bytes, an odd number"),
        (header(), "it is cut short: 1024 bytes; accepted: 3024"),
        (header() + TOKENS.tobytes()[:-2], "it is cut short: 3022 bytes; accepted: 3024, the header and 1000 tokens"),
        (header() + TOKENS.tobytes()[:-1], "it is cut short: 3023 bytes"),
        (header() + TOKENS.tobytes() + b"xx", "it is longer than its header announces: 3026 bytes; accepted: 3024"),
        (header(n_tokens=0), "its header announces 0 tokens"),
        (header(n_tokens=-1), "its header announces -1 tokens"),
        (header(magic=7) + TOKENS.tobytes(), "its magic number is 7; accepted: 20240520 for 16-bit tokens (GPT-2), "),
        (header(version=2) + TOKENS.tobytes(), "it is version 2 of 16-bit tokens (GPT-2); accepted: 1"),
        (header(20240801, 7) + TOKENS.tobytes(), "it is cut short: 3024 bytes; accepted: 5024"),
        (header(20240801, 1), "it is version 1 of 32-bit tokens (LLaMA-3); accepted: 7"),
        (
            header(20240522, 1, 9, fourth=900) + TOKENS.tobytes(),
            "its magic number is 20240522: in llm.c, questions of an evaluation (HellaSwag, MMLU); the command",
        ),
        (header(20240328, 2, 50_257), "its magic number is 20240328: in llm.c, a tokenizer; accepted: 20240520"),
        (np.lib.format.magic(1, 0) + TOKENS.tobytes(), "it is a .npy file; accepted: tokens alone"),
        (TOKENS.astype(np.uint32).tobytes(), "it looks like 32-bit tokens without a header"),
        (TOKENS.astype(np.int64).tobytes(), "it looks like 64-bit tokens without a header"),
        ((TOKENS.astype(np.uint32) + 60_000).tobytes(), "every second 16-bit number is at most 1; accepted: 16-bit"),
    ],
)
def test_files_that_are_no_shard_are_rejected_by_name(content, complaint, tmp_path):
    path = tmp_path / "train.bin"
    path.write_bytes(content)
    with pytest.raises(DataError) as rejection:
        Shard(path)
    assert str(rejection.value).startswith(f"data: {str(path)!r} cannot be used; ")
    assert complaint in str(rejection.value)


@pytest.mark.parametrize(("name", "complaint"), [("none.bin", "No such file"), (".", "directory")])
def test_unreadable_files_are_rejected_by_name(name, complaint, tmp_path):
    with pytest.raises(DataError, match=complaint) as rejection:
        Shard(tmp_path / name)
    assert repr(str(tmp_path / name)) in str(rejection.value)


@pytest.mark.parametrize(
    ("tokens", "complaint"), [([], "no tokens"), ([1, 65_536], "token 65536"), ([3, -1], "token -1")]
)
def test_tokens_that_do_not_fit_are_not_written_and_an_earlier_file_is_as_it_was(tokens, complaint, tmp_path):
    path = tmp_path / "shard.bin"
    write_shard(path, TOKENS)
    with pytest.raises(DataError, match=complaint) as rejection:
        write_shard(path, tokens)
    assert repr(str(path)) in str(rejection.value)
    assert Shard(path)[:].tolist() == TOKENS.tolist()
    assert [file.name for file in tmp_path.iterdir()] == ["shard.bin"]


@pytest.mark.parametrize(
    "tokens",
    [
        np.arange(1_000) % 3,
        np.repeat([0, 40_000], 500),
        np.tile([40_000, 40_000, 0, 0], 250),
        np.tile([50_000, 0], 16),
    ],
    ids=["a small vocabulary", "zeros at first", "zeros in pairs", "a short file"],
)
def test_16_bit_tokens_are_not_taken_for_wider_ones(tokens, tmp_path):
    tokens.astype(np.uint16).tofile(tmp_path / "train.bin")
    assert Shard(tmp_path / "train.bin")[:].tolist() == tokens.tolist()


# Names

TRAIN = ["train.bin", "fineweb_train_000001.bin", "medieval_train_000.bin", "interval-TRAIN.bin", "training2.bin"]
VAL = ["val.bin", "fineweb_val_000000.bin", "brain_validation.bin", "trainer.val.bin", "valid7.bin"]
NEITHER = ["test.bin", "medieval.bin", "strain.bin", "value_0.bin", "train.txt", "val.bin.part"]


def test_the_name_of_a_file_has_its_split_as_a_word(tmp_path):
    for name in (*TRAIN, *VAL, *NEITHER):
        (tmp_path / name).touch()
    assert find_shards(tmp_path, "train") == [tmp_path / name for name in sorted(TRAIN)]
    assert find_shards(tmp_path, "val") == [tmp_path / name for name in sorted(VAL)]


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_name_with_both_splits_is_rejected(split, tmp_path):
    (tmp_path / "train_val_000.bin").touch()
    with pytest.raises(DataError, match=r"^data\.path: '.*train_val_000\.bin' .* both `train` and `val`"):
        find_shards(tmp_path, split)
