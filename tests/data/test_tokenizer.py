"""Tokenizers: every text is restored, its bytes are those of its tokens, and unsuitable tokenizers are rejected."""

import json
import pickle
import sys

import pytest
import tiktoken
import tokenizers
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bytelm.data.meta_pkl import LARGEST, Meta, read_meta, write_meta
from bytelm.data.tokenizer import ByteTokenizer, TiktokenTokenizer, TokenizerFile, load_tokenizer
from bytelm.data.tokenizer_json import BYTE_OF
from bytelm.data.train_tokenizer import train_tokenizer
from bytelm.errors import ConfigError, DataError

TEXTS = [
    "",
    "To be, or not to be",
    "line\r\nline\n\n\n  end ",
    "na\u00efve \u4f60\u597d \U0001f600\U0001f44d\U0001f3fd",
    "\ufeff\u2028\x01",
]
MERGES = [b"to", b" to", b"be", b" be", b"\r\n", b"\xf0\x9f", b"\xf0\x9f\x98", b"  "]
SPECIAL = "<|endoftext|>"


@pytest.fixture(scope="module")
def tokenizer_json(tmp_path_factory):
    """A tokenizer learned from a short text."""
    file = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    train_tokenizer(iter(["to be or not to be, that is the question\n"] * 50), 300, file)
    return file


@pytest.fixture
def gpt2(monkeypatch):
    """Replaces tiktoken's gpt2, which needs the internet: bytes, a few merges, a gap, and the special token."""
    ranks = {piece: i for i, piece in enumerate([*(bytes([i]) for i in range(256)), *MERGES])}
    pattern = r" ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
    small = tiktoken.Encoding("gpt2", pat_str=pattern, mergeable_ranks=ranks, special_tokens={SPECIAL: 270})
    monkeypatch.setitem(tiktoken.registry.ENCODINGS, "gpt2", small)
    return load_tokenizer("gpt2")


@pytest.fixture(params=["bytes", "gpt2", "tokenizer.json"])
def tokenizer(request, gpt2, tokenizer_json):
    return {"bytes": ByteTokenizer(), "gpt2": gpt2, "tokenizer.json": load_tokenizer(str(tokenizer_json))}[
        request.param
    ]


def changed(tokenizer_json, folder, **changes):
    """Copies a tokenizer.json, with changes at its top level."""
    copy = folder / "changed.json"
    copy.write_text(json.dumps({**json.loads(tokenizer_json.read_text()), **changes}))
    return str(copy)


def rejection(name):
    with pytest.raises(DataError) as rejected:
        load_tokenizer(name)
    (line,) = str(rejected.value).splitlines()
    assert line.startswith(f"tokenizer: {name!r} cannot be used; ")
    return line


# Text


@pytest.mark.parametrize("text", TEXTS)
def test_text_comes_back(tokenizer, text):
    tokens = tokenizer.encode(text)
    assert tokenizer.decode(tokens) == text
    assert tokenizer.decode_bytes(tokens) == text.encode()


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0")))
def test_any_text_comes_back_and_is_counted_in_bytes(tokenizer, text):
    tokens = tokenizer.encode(text)
    assert tokenizer.decode(tokens) == text
    assert tokenizer.token_bytes[tokens].sum() == len(text.encode())


def test_batches_are_encoded_as_single_texts(tokenizer):
    assert tokenizer.encode_batch(TEXTS) == [tokenizer.encode(text) for text in TEXTS]


def test_tokens_that_are_part_of_a_character(tokenizer):
    tokens = tokenizer.encode("\U0001f600")
    assert len(tokens) > 1
    assert tokenizer.decode(tokens[:-1]) == "\ufffd"
    assert b"".join(tokenizer.decode_bytes([token]) for token in tokens) == "\U0001f600".encode()


def test_tensors_are_decoded(tokenizer):
    assert tokenizer.decode(torch.tensor(tokenizer.encode("to be"))) == "to be"


# Bytes of tokens


def test_bytes_of_each_token(tokenizer):
    assert tokenizer.token_bytes.dtype == torch.int64
    assert tokenizer.token_bytes.shape == (tokenizer.vocab_size,)
    for token in range(tokenizer.vocab_size):
        assert tokenizer.token_bytes[token] == len(tokenizer.decode_bytes([token]))


def test_special_tokens_stand_for_no_text(tokenizer):
    assert tokenizer.token_bytes[tokenizer.end_of_text] == 0
    assert tokenizer.decode([tokenizer.end_of_text, *tokenizer.encode("a")]) == "a"


def test_text_that_looks_like_a_special_token_is_text(tokenizer):
    tokens = tokenizer.encode(f"a{SPECIAL}b")
    assert tokenizer.end_of_text not in tokens
    assert tokenizer.decode(tokens) == f"a{SPECIAL}b"


def test_all_single_bytes_have_a_token(tokenizer):
    expected = {bytes([byte]) for byte in range(1 if tokenizer.name == "bytes" else 0, 256)}
    assert expected <= set(tokenizer.bytes_of)


# Each kind


def test_bytes_are_their_own_tokens():
    assert ByteTokenizer().encode("a\u00e9") == [0x61, 0xC3, 0xA9]
    assert ByteTokenizer().vocab_size == 256
    assert ByteTokenizer().end_of_text == 0


def test_tiktoken(gpt2):
    assert gpt2.encode("to be") == [256, 259]
    assert (gpt2.name, gpt2.vocab_size, gpt2.end_of_text) == ("gpt2", 271, 270)
    assert gpt2.token_bytes[[256, 257, 265, 270]].tolist() == [2, 3, 0, 0]


def test_tiktoken_without_end_of_text(gpt2, monkeypatch):
    plain = tiktoken.Encoding("gpt2", pat_str=r"\S+|\s+", mergeable_ranks={b"a": 0, b"b": 1}, special_tokens={})
    monkeypatch.setitem(tiktoken.registry.ENCODINGS, "gpt2", plain)
    assert TiktokenTokenizer("gpt2").end_of_text is None


def test_trained_tokenizer(tokenizer_json):
    tokenizer = load_tokenizer(str(tokenizer_json))
    assert tokenizer.name == str(tokenizer_json)
    assert 257 < tokenizer.vocab_size <= 300
    assert tokenizer.bytes_of[tokenizer.end_of_text] == b""
    assert len(tokenizer.encode("to be or not to be")) < len("to be or not to be") / 2


def test_training_gives_the_same_tokenizer_again(tokenizer_json, tmp_path):
    train_tokenizer(iter(["to be or not to be, that is the question\n"] * 50), 300, tmp_path / "again.json")
    assert (tmp_path / "again.json").read_text() == tokenizer_json.read_text()


def test_folder_with_a_tokenizer_json(tokenizer_json):
    assert load_tokenizer(str(tokenizer_json.parent)).bytes_of == load_tokenizer(str(tokenizer_json)).bytes_of


def test_special_and_added_tokens_of_a_file(tokenizer_json, tmp_path):
    theirs = tokenizers.Tokenizer.from_file(str(tokenizer_json))
    theirs.add_special_tokens(["<\uff5cuser\uff5c>"])
    theirs.add_tokens(["\u4f60\u597d"])
    theirs.save(str(tmp_path / "tokenizer.json"))
    tokenizer = load_tokenizer(str(tmp_path))
    user, hello = theirs.token_to_id("<\uff5cuser\uff5c>"), theirs.token_to_id("\u4f60\u597d")
    assert tokenizer.token_bytes[[user, hello]].tolist() == [0, 6]
    assert tokenizer.encode("\u4f60\u597d") == [hello]
    assert user not in tokenizer.encode("<\uff5cuser\uff5c>")
    assert tokenizer.decode(tokenizer.encode("<\uff5cuser\uff5c>\u4f60\u597d")) == "<\uff5cuser\uff5c>\u4f60\u597d"


def test_texts_are_never_cut_or_padded(tokenizer_json, tmp_path):
    theirs = tokenizers.Tokenizer.from_file(str(tokenizer_json))
    theirs.enable_truncation(4)
    theirs.enable_padding(length=100)
    theirs.save(str(tmp_path / "tokenizer.json"))
    assert load_tokenizer(str(tmp_path)).decode(load_tokenizer(str(tmp_path)).encode("xyz" * 9)) == "xyz" * 9


def test_nothing_is_added_around_a_text(tokenizer_json, tmp_path):
    theirs = tokenizers.Tokenizer.from_file(str(tokenizer_json))
    around = tokenizers.processors.TemplateProcessing(single=f"{SPECIAL} $A", special_tokens=[(SPECIAL, 0)])
    theirs.post_processor = around
    theirs.save(str(tmp_path / "tokenizer.json"))
    tokenizer = load_tokenizer(str(tmp_path))
    assert tokenizer.encode_batch(["to be"]) == [tokenizer.encode("to be")]
    assert tokenizer.end_of_text not in tokenizer.encode("to be")


# As a tokenizer.json


def theirs(tokenizer):
    """Returns the tokenizer of Hugging Face's library for a tokenizer's JSON."""
    return tokenizers.Tokenizer.from_str(tokenizer.to_json())


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.text(st.characters(exclude_categories=["Cs"])) | st.text("to be'sl\n\r\t1\0 \u00e9\u0100\u3000", max_size=40))
def test_the_tokenizer_json_makes_the_same_tokens_and_text(tokenizer, text):
    made = theirs(tokenizer)
    tokens = tokenizer.encode(text)
    assert made.encode(text).ids == tokens
    assert made.decode(tokens) == tokenizer.decode(tokens)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_the_tokenizer_json_decodes_tokens_that_are_no_text_in_the_same_way(tokenizer, data):
    some = [token for token, piece in enumerate(tokenizer.bytes_of) if piece or token == tokenizer.end_of_text]
    tokens = data.draw(st.lists(st.sampled_from(some)))
    made = theirs(tokenizer)
    assert made.decode(tokens) == tokenizer.decode(tokens)
    if tokens:
        expected = [token for token in tokens if token != tokenizer.end_of_text]
        assert made.decode(tokens, skip_special_tokens=True) == made.decode(expected, skip_special_tokens=False)


def test_the_tokenizer_json_has_the_special_token(tokenizer):
    (special,) = [token for token, added in theirs(tokenizer).get_added_tokens_decoder().items() if added.special]
    assert special == tokenizer.end_of_text


def test_the_tokenizer_json_of_bytes_knows_the_marker_and_no_other_special_text():
    made = theirs(ByteTokenizer())
    assert made.encode("a\0b").ids == [97, 0, 98]
    assert made.encode("\u0100<|endoftext|>").ids == [*"\u0100<|endoftext|>".encode()]
    assert made.get_vocab_size() == 256
    assert made.decode([97, 0, 0xC3, 98]) == "a\ufffdb"


# The regular expressions of tiktoken's own encodings, whose tokens cannot be downloaded here.
GPT2_PATTERN = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"
CL100K_PATTERN = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+|\s++$|\s*[\r\n]|"
    r"\s+(?!\S)|\s"
)


@pytest.fixture(params=[GPT2_PATTERN, CL100K_PATTERN], ids=["gpt2", "cl100k"], scope="module")
def learned(request, tokenizer_json):
    """A tiktoken encoding with a pattern, the merges of the tokenizer.json, and a token that no merge makes."""
    model = json.loads(tokenizer_json.read_text())["model"]
    letters = {letter: bytes([byte]) for letter, byte in BYTE_OF.items()}
    pieces = [b"".join(letters[letter] for letter in left + right) for left, right in model["merges"]]
    words = [*(bytes([i]) for i in range(256)), *pieces, b" xyzzy"]
    ranks = {word: rank for rank, word in enumerate(words)}
    return tiktoken.Encoding("p50k_base", pat_str=request.param, mergeable_ranks=ranks, special_tokens={SPECIAL: 999})


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.sampled_from([*"  \n\r\t1a\u00e9.", "'s", "'LL", " to", " be", "question", " xyzzy"])).map("".join))
def test_the_tokenizer_json_of_tiktokens_patterns(learned, text):
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(tiktoken.registry.ENCODINGS, "p50k_base", learned)
        tokenizer = load_tokenizer("p50k_base")
    assert theirs(tokenizer).encode(text).ids == tokenizer.encode(text)


def test_a_pattern_that_a_tokenizer_json_cannot_follow_is_rejected(gpt2, monkeypatch):
    monkeypatch.setattr(gpt2._encoding, "_pat_str", r"\S+|\s+", raising=True)
    with pytest.raises(ConfigError, match=r"'gpt2' .* no tokenizer\.json makes the same tokens .*--tokenizer"):
        gpt2.to_json()


def test_the_tokenizer_json_of_a_file_adds_cuts_and_pads_nothing(tokenizer_json, tmp_path):
    other = tokenizers.Tokenizer.from_file(str(tokenizer_json))
    around = tokenizers.processors.TemplateProcessing(single=f"{SPECIAL} $A", special_tokens=[(SPECIAL, 0)])
    other.post_processor = around
    other.enable_truncation(4)
    other.enable_padding(length=100)
    other.save(str(tmp_path / "tokenizer.json"))
    tokenizer = load_tokenizer(str(tmp_path))
    assert theirs(tokenizer).encode("to be or not" * 9).ids == tokenizer.encode("to be or not" * 9)


# Characters


@pytest.fixture
def characters(tmp_path):
    """A meta.pkl as written by nanoGPT's data/shakespeare_char/prepare.py."""
    text = sorted(set("to be, or not\n\u00e9\U0001f600"))
    meta = {"vocab_size": len(text), "itos": dict(enumerate(text)), "stoi": {c: i for i, c in enumerate(text)}}
    (tmp_path / "meta.pkl").write_bytes(pickle.dumps(meta))
    return tmp_path / "meta.pkl"


def test_characters_of_nanogpt(characters):
    tokenizer = load_tokenizer(str(characters))
    meta = pickle.loads(characters.read_bytes())
    text = "or \U0001f600 to\u00e9"
    assert tokenizer.encode(text) == [meta["stoi"][character] for character in text]
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert (tokenizer.vocab_size, tokenizer.end_of_text) == (meta["vocab_size"], None)
    assert tokenizer.token_bytes[tokenizer.encode("o\u00e9\U0001f600")].tolist() == [1, 2, 4]
    with pytest.raises(ConfigError, match=r"text: 'x' cannot be used; accepted with .*meta\.pkl: texts of its 11 char"):
        tokenizer.encode("box")


@pytest.mark.parametrize("protocol", range(6))
def test_a_meta_pkl_of_any_protocol(protocol, characters):
    expected = load_tokenizer(str(characters)).numbers
    characters.write_bytes(pickle.dumps(pickle.loads(characters.read_bytes()), protocol))
    assert load_tokenizer(str(characters)).numbers == expected


def test_the_tokenizer_json_of_characters(characters):
    tokenizer = load_tokenizer(str(characters))
    made = theirs(tokenizer)
    text = "to  be,\n\nor \U0001f600\u00e9 not\n"
    assert made.encode(text).ids == tokenizer.encode(text)
    assert made.decode(tokenizer.encode(text)) == text
    with pytest.raises(Exception, match="UNK"):
        made.encode("box")


def test_a_meta_pkl_comes_back(tmp_path):
    meta = Meta({"a": 0, "b": 2}, {0: "a", 2: "b", 3: "\ufffd"}, is_bytes=True)
    write_meta(tmp_path / "meta.pkl", meta)
    tokenizer = load_tokenizer(str(tmp_path / "meta.pkl"))
    assert read_meta(tmp_path / "meta.pkl") == meta
    assert (tokenizer.numbers, tokenizer.texts) == (meta.numbers, meta.texts)
    assert [*tokenizer.bytes_of] == [b"a", b"", b"b", "\ufffd".encode()]


class Evil:
    def __reduce__(self):
        return open, ("ran", "w")


GOOD = {"itos": {0: "a"}, "stoi": {"a": 0}}


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (pickle.dumps({**GOOD, "more": Evil()}), "more than characters and numbers (instruction "),
        (pickle.dumps(Evil(), 0), "more than characters and numbers (instruction GLOBAL)"),
        (pickle.dumps({**GOOD, "x": [1]}), "instruction EMPTY_LIST"),
        (pickle.dumps({**GOOD, "x": 0.5}), "instruction BINFLOAT"),
        (pickle.dumps([]), "instruction EMPTY_LIST"),
        (b"\x80\x02}r\xff\xff\xff\x7f.", "it asks for memory number 2147483647"),
        (b"}p2147483647\n.", "it asks for memory number 2147483647"),
        (pickle.dumps(GOOD)[:-3], "it cannot be read: "),
        (b"", "it cannot be read: "),
        (b"PK\x03\x04", "it cannot be read: "),
        (pickle.dumps({"stoi": {}}), "it lacks stoi or itos"),
        (pickle.dumps("text"), "it lacks stoi or itos"),
        (pickle.dumps({"itos": {}, "stoi": {}}), "it has no characters"),
        (pickle.dumps({"itos": {0: "b"}, "stoi": {"a": 0}}), "stoi: 'a': 0 is not a character with its number in itos"),
        (pickle.dumps({"itos": {0: "ab"}, "stoi": {"ab": 0}}), "stoi: 'ab': 0 is not a character"),
        (pickle.dumps({"itos": {-1: "a"}, "stoi": {"a": -1}}), "itos: -1: 'a' is not a number with its text"),
        (
            pickle.dumps({"itos": {10**9: "a"}, "stoi": {"a": 10**9}}),
            "itos: 1000000000: 'a' is not a number with its text",
        ),
    ],
)
def test_a_meta_pkl_that_is_something_else_is_rejected_and_runs_nothing(content, reason, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "meta.pkl").write_bytes(content)
    assert reason in rejection("meta.pkl")
    assert not (tmp_path / "ran").exists()


def test_a_meta_pkl_that_is_too_large_is_rejected(tmp_path):
    with (tmp_path / "meta.pkl").open("wb") as file:
        file.truncate(LARGEST + 1)
    assert "it is larger than" in rejection(str(tmp_path / "meta.pkl"))


# Rejected tokenizers


def test_unknown_name_is_rejected():
    line = rejection("gpt-2")
    assert "accepted: bytes, " in line
    assert "gpt2" in line
    assert "tokenizer.json" in line


def test_missing_file_is_rejected(tmp_path):
    assert "No such file" in rejection(str(tmp_path / "tokenizer.json"))


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"model": {"type": "BPE"}}', "\udcff"])
def test_file_of_another_kind_is_rejected(tmp_path, content):
    file = tmp_path / "tokenizer.json"
    file.write_bytes(content.encode(errors="surrogateescape"))
    rejection(str(file))


def test_damaged_file_is_rejected(tokenizer_json, tmp_path):
    assert "tokenizers cannot read" in rejection(changed(tokenizer_json, tmp_path, version=3))


def test_other_models_are_rejected(tmp_path):
    pieces = tokenizers.Tokenizer(tokenizers.models.WordPiece({"[UNK]": 0}, unk_token="[UNK]"))
    pieces.save(str(tmp_path / "tokenizer.json"))
    assert "it is a WordPiece; accepted: byte-level BPE" in rejection(str(tmp_path))


def test_bpe_of_characters_is_rejected(tokenizer_json, tmp_path):
    assert "its BPE is not of bytes" in rejection(changed(tokenizer_json, tmp_path, pre_tokenizer=None))
    words = {"type": "Whitespace"}
    assert "its BPE is not of bytes" in rejection(changed(tokenizer_json, tmp_path, pre_tokenizer=words))


def test_tokens_outside_the_alphabet_are_rejected(tokenizer_json, tmp_path):
    model = json.loads(tokenizer_json.read_text())["model"]
    model["vocab"]["\u2581the"] = len(model["vocab"])
    assert "'\u2581the' is not written in the alphabet" in rejection(changed(tokenizer_json, tmp_path, model=model))


def test_options_that_change_the_text_are_rejected(tokenizer_json, tmp_path):
    assert "Lowercase" in rejection(changed(tokenizer_json, tmp_path, normalizer={"type": "Lowercase"}))
    level = json.loads(tokenizer_json.read_text())["pre_tokenizer"]
    level["add_prefix_space"] = True
    steps = {"type": "Sequence", "pretokenizers": [{"type": "Digits", "individual_digits": True}, level]}
    assert "add_prefix_space" in rejection(changed(tokenizer_json, tmp_path, pre_tokenizer=steps))


def test_several_steps_before_the_bpe(tokenizer_json, tmp_path):
    level = json.loads(tokenizer_json.read_text())["pre_tokenizer"]
    steps = {"type": "Sequence", "pretokenizers": [{"type": "Digits", "individual_digits": True}, level]}
    name = changed(tokenizer_json, tmp_path, pre_tokenizer=steps, normalizer={"type": "NFC"})
    assert load_tokenizer(name).decode(load_tokenizer(name).encode("1234 to be")) == "1234 to be"


@pytest.mark.parametrize(("package", "name"), [("tiktoken", "gpt2"), ("tokenizers", "my/tokenizer.json")])
def test_missing_package_is_named(monkeypatch, package, name):
    monkeypatch.setitem(sys.modules, package, None)
    assert f'it needs {package}, which is not installed; pip install "bytelm[tokens]"' in rejection(name)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        ("no route to host", "no route to host"),
        ("HTTPSConnectionPool(host='x'): Max retries exceeded (Caused by …)", "no connection to its server"),
    ],
)
def test_a_missing_connection_is_reported_with_a_remedy(monkeypatch, error, said):
    def unreachable(name):
        raise ConnectionError(error)

    monkeypatch.setattr(tiktoken, "get_encoding", unreachable)
    line = rejection("gpt2")
    assert f"cannot download it ({said})" in line
    assert "TIKTOKEN_CACHE_DIR" in line
    assert "tokenizer.json" in line


def test_too_small_a_vocabulary_is_rejected(tmp_path):
    with pytest.raises(DataError, match="train_tokenizer: 256 cannot be used; accepted: from 257"):
        train_tokenizer(iter(["text"]), 256, tmp_path / "tokenizer.json")


def test_files_are_tokenizers_of_their_own_kind(tokenizer_json):
    assert isinstance(load_tokenizer(str(tokenizer_json)), TokenizerFile)
