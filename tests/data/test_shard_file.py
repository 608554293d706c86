"""Proves that both formats of token files are read for what they are, and that nothing else is."""

import struct

import numpy as np
import pytest

from bytelm.data.shard_file import read_shard, write_shard
from bytelm.errors import DataError

TOKENS = np.arange(1_000, dtype=np.uint16) * 65


def header(magic=20240520, version=1, n_tokens=1_000) -> bytes:
    return struct.pack("<256i", magic, version, n_tokens, *[0] * 253)


def test_tokens_without_a_header_are_read_as_nanogpt_writes_them(tmp_path):
    TOKENS.tofile(tmp_path / "train.bin")
    assert read_shard(tmp_path / "train.bin").tolist() == TOKENS.tolist()


def test_tokens_after_a_header_are_read_as_llm_c_writes_them(tmp_path):
    (tmp_path / "shard.bin").write_bytes(header() + TOKENS.tobytes())
    tokens = read_shard(tmp_path / "shard.bin")
    assert tokens.tolist() == TOKENS.tolist()
    assert tokens.dtype == np.uint16


def test_a_shard_is_written_as_llm_c_expects_it(tmp_path):
    write_shard(tmp_path / "shard.bin", TOKENS.tolist())
    assert (tmp_path / "shard.bin").read_bytes() == header() + TOKENS.tobytes()
    write_shard(tmp_path / "shard.bin", [0, 65_535])
    assert read_shard(tmp_path / "shard.bin").tolist() == [0, 65_535]


def test_a_shard_is_mapped_and_cannot_be_written_to(tmp_path):
    write_shard(tmp_path / "shard.bin", TOKENS)
    tokens = read_shard(tmp_path / "shard.bin")
    assert isinstance(tokens, np.memmap)
    with pytest.raises(ValueError, match="read-only"):
        tokens[0] = 1


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
    assert read_shard(tmp_path / "train.bin").tolist() == tokens


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"", "it is empty"),
        (b"abc", "it has 3 bytes, an odd number"),
        (TOKENS.tobytes() + b"x", "it has 2001 bytes, an odd number"),
        (header(), "it is cut short: 1024 bytes; accepted: 3024"),
        (
            header() + TOKENS.tobytes()[:-2],
            "it is cut short: 3022 bytes; accepted: 3024, of 1000 tokens and the header",
        ),
        (header() + TOKENS.tobytes()[:-1], "it is cut short: 3023 bytes"),
        (header() + TOKENS.tobytes() + b"xx", "there is more in it than its header tells: 3026 bytes; accepted: 3024"),
        (header(n_tokens=0), "its header tells of 0 tokens"),
        (header(n_tokens=-1), "its header tells of -1 tokens"),
        (header(magic=7) + TOKENS.tobytes(), "its magic number is 7; accepted: 20240520"),
        (header(magic=20240801, version=7), "20240801, is that of 32-bit LLaMA tokens; accepted: 20240520"),
        (header(version=2) + TOKENS.tobytes(), "it is of version 2; accepted: 1"),
    ],
)
def test_what_is_no_shard_is_refused_by_its_name(content, complaint, tmp_path):
    path = tmp_path / "train.bin"
    path.write_bytes(content)
    with pytest.raises(DataError) as refusal:
        read_shard(path)
    assert str(refusal.value).startswith(f"data: {str(path)!r} cannot be used; ")
    assert complaint in str(refusal.value)


@pytest.mark.parametrize(("name", "complaint"), [("none.bin", "No such file"), (".", "directory")])
def test_what_cannot_be_read_is_refused_by_its_name(name, complaint, tmp_path):
    with pytest.raises(DataError, match=complaint) as refusal:
        read_shard(tmp_path / name)
    assert repr(str(tmp_path / name)) in str(refusal.value)


@pytest.mark.parametrize(
    ("tokens", "complaint"), [([], "no tokens"), ([1, 65_536], "token 65536"), ([3, -1], "token -1")]
)
def test_tokens_that_do_not_fit_are_not_written_and_an_earlier_file_is_as_it_was(tokens, complaint, tmp_path):
    path = tmp_path / "shard.bin"
    write_shard(path, TOKENS)
    with pytest.raises(DataError, match=complaint) as refusal:
        write_shard(path, tokens)
    assert repr(str(path)) in str(refusal.value)
    assert read_shard(path).tolist() == TOKENS.tolist()
    assert [file.name for file in tmp_path.iterdir()] == ["shard.bin"]
