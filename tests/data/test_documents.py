"""Documents: their files and formats, a pickled tokenizer, and runs that are trained on them."""

import gzip
import json
import os
import pickle
from pathlib import Path

import pytest
import torch
import yaml
from packed_documents import SPECIAL, encoding, texts, write_cache, write_parquet
from resuming import assert_equal

from bytelm.data.documents import LINES, document_files, group, groups, text_bytes
from bytelm.data.encoding_pickle import read_encoding
from bytelm.data.packed import Documents
from bytelm.data.tokenizer import EncodingFile, load_tokenizer
from bytelm.data.train_tokenizer import train_tokenizer
from bytelm.errors import ConfigError, DataError
from scripts import train_tokenizer as script

CONFIG = """
model:
  gpt: {vocab_size: 280, d_model: 16, n_heads: 2, n_layers: 1, d_ff: 32, max_seq_len: 16}
  optimizer: {class_path: AdamW, init_args: {lr: 3e-3}}
data:
  class_path: Documents
  init_args: {path: cache, tokenizer: cache/tokenizer, batch_size: 4, seq_len: 16, eval_tokens: 256, ahead: false}
trainer: {accelerator: cpu, devices: 1, gradient_clip_val: 1.0, log_every_n_steps: 1}
time_budget: {limit: 6 steps}
samples: {max_new_tokens: 0}
"""


def write_lines(file, documents, key="text"):
    lines = "".join(json.dumps({"id": i, key: text}) + "\n" for i, text in enumerate(documents))
    file.write_bytes(gzip.compress(lines.encode()) if file.suffix == ".gz" else lines.encode())


# Files


@pytest.mark.parametrize("name", ["some.parquet", "some.jsonl", "some.ndjson.gz"])
def test_documents_of_a_file_and_their_groups(tmp_path, name):
    file, documents = tmp_path / name, [*texts(LINES + 300, 3, longest=8), "the last\r\none"]
    write = write_parquet if name.endswith(".parquet") else write_lines
    write(file, documents)
    found = list(groups(file, "text"))
    assert [text for _, some in found for text in some] == documents
    assert len(found) > 1
    for i, (number, some) in enumerate(found):
        assert group(file, "text", number) == some
        assert list(groups(file, "text", number)) == found[i:]
    n_bytes = sum(len(text.encode()) for text in documents)
    assert 0.4 < text_bytes(file, "text") / n_bytes < 4


def test_a_text_file_is_a_document(tmp_path):
    (tmp_path / "one.txt").write_bytes("naïve\r\nlines\n".encode())
    assert list(groups(tmp_path / "one.txt", "text")) == [(0, ["naïve\r\nlines\n"])]


def test_a_folder_has_the_files_of_one_kind(tmp_path):
    names = ("b/two.parquet", "one.parquet", "some.jsonl", "README.md", "b/notes.txt", "b/tokenizer.pkl", ".x.txt")
    for name in (*names, ".git/x.parquet"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()

    def found(place=""):
        return [str(file.relative_to(tmp_path)) for file in document_files(str(tmp_path / place), "data.path")]

    assert found() == ["b/two.parquet", "one.parquet"]
    assert found("*.parquet") == ["one.parquet"]
    assert found("README.md") == ["README.md"]
    for file in tmp_path.rglob("*.parquet"):
        file.unlink()
    assert found() == ["some.jsonl"]
    (tmp_path / "some.jsonl").unlink()
    assert found() == ["README.md", "b/notes.txt"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("missing.parquet", None, r"data\.path: .*missing\.parquet' .* not found; accepted: a file, a folder"),
        ("a.parquet", b"no", r"a\.parquet' .* cannot be read as Parquet"),
        ("a.jsonl", b'{"text": "to be"}\n\n{"text": ', r"'line 3 of .*a\.jsonl' .* it is not JSON: Expecting value"),
        ("a.jsonl", b'{"text": "\xff"}\n', r"'line 1 of .*a\.jsonl' .* it is not JSON: 'utf-8'"),
        ("a.jsonl", b'{"text": "\\ud800"}', r"'line 1 of .*a\.jsonl' .* its text is not Unicode: 'utf-8'"),
        ("a.jsonl", b'{"body": "to be"}', r"data\.column: 'text' .*; line 1 of .* has no text there; its keys: body"),
        (
            "a.jsonl",
            b'{"text": "to be"}\n' * 1030 + b'{"text": null}\n{}',
            r"data\.column: 'text' .*; line 1031 of .* has None there; accepted: texts",
        ),
        ("a.jsonl", b"[1]", r"data\.column: 'text' .* has no text there"),
        ("a.txt", b"\xff\xfe", r"a\.txt' .* cannot be read: 'utf-8'"),
        ("a.jsonl.gz", b"no", r"a\.jsonl\.gz' .* cannot be read: Not a gzipped file"),
        ("a.jsonl.gz", gzip.compress(b'{"text": "to be"}\n')[:20], r"a\.jsonl\.gz' .* cannot be read: "),
        ("a.jsonl.gz", gzip.compress(b'{"text": "be"}\n{'), r"'line 2 of .*a\.jsonl\.gz' .* it is not JSON"),
    ],
)
def test_files_that_cannot_be_read_are_rejected(tmp_path, name, content, message):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        list(groups(*document_files(str(tmp_path / name), "data.path"), "text"))


def test_columns_of_parquet(tmp_path):
    write_parquet(tmp_path / "a.parquet", ["to be"], column="body")
    write_parquet(tmp_path / "b.parquet", ["to be", None])
    assert list(groups(tmp_path / "a.parquet", "body")) == [(0, ["to be"])]
    with pytest.raises(DataError, match=r"data\.column: 'text' .* the columns of .*a\.parquet: body"):
        list(groups(tmp_path / "a.parquet", "text"))
    with pytest.raises(DataError, match=r"data\.column: 'text' .*b\.parquet has None there; accepted: texts"):
        list(groups(tmp_path / "b.parquet", "text"))


# A pickled tokenizer


@pytest.fixture
def pickled(tmp_path):
    """A file tokenizer.pkl, and its encoding."""
    its = encoding()
    (tmp_path / "tokenizer.pkl").write_bytes(pickle.dumps(its))
    return tmp_path / "tokenizer.pkl", its


def test_a_pickled_encoding_makes_its_tokens(pickled):
    file, its = pickled
    for name in (file, file.parent):  # nanoGPT's meta.pkl has the same ending
        tokenizer = load_tokenizer(str(name))
        assert isinstance(tokenizer, EncodingFile)
        for text in ("To be, or <|reserved_0|> naïve 你好\n\n", *texts(5)):
            assert tokenizer.encode(text) == its.encode_ordinary(text)
            assert tokenizer.decode(tokenizer.encode(text)) == text
        assert tokenizer.encode_batch(texts(5)) == [its.encode_ordinary(text) for text in texts(5)]
        assert tokenizer.end_of_text == its.encode_single_token(SPECIAL[0])
        assert tokenizer.vocab_size == its.n_vocab
        assert tokenizer.token_bytes[[its.encode_single_token(name) for name in SPECIAL]].sum() == 0


def test_a_pickle_in_the_home_folder(pickled, monkeypatch):
    monkeypatch.setenv("HOME", str(pickled[0].parent))
    assert load_tokenizer("~/tokenizer.pkl").vocab_size == load_tokenizer("~").vocab_size


class Command:
    """Runs a command where it is unpickled."""

    def __reduce__(self):
        return os.system, ("touch ran",)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (pickle.dumps(Command()), "it holds more than an encoding"),
        (pickle.dumps([encoding(), Command()]), "it holds more than an encoding"),
        (b"ctiktoken.core\nEncoding\n(tR.", "it holds more than an encoding"),
        (b"cposix\nsystem\n.", r"it names posix\.system; accepted: tiktoken\.core\.Encoding"),
        (b"\x80\x04", "pickle exhausted"),
        (pickle.dumps({"vocab_size": 3}), "it holds no encoding"),
        (pickle.dumps(encoding())[:-200], ""),
    ],
)
def test_other_pickles_are_rejected_and_run_nothing(tmp_path, monkeypatch, content, message):
    monkeypatch.chdir(tmp_path)
    Path("tokenizer.pkl").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_encoding(Path("tokenizer.pkl"))
    with pytest.raises(DataError, match=r"tokenizer: '.*' cannot be used; tokenizer\.pkl cannot be read: "):
        EncodingFile("tokenizer.pkl")
    assert not Path("ran").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": 1}, "it lacks name or pat_str"),
        ({"mergeable_ranks": None}, "it lacks mergeable_ranks"),
        ({"mergeable_ranks": {b"a": "1"}}, "b'a': '1' is not a token with its number"),
        ({"mergeable_ranks": {b"a": 1}}, "it has no token for byte 0"),
        ({"special_tokens": {"<|bos|>": 7}}, "two of its tokens have one number"),
    ],
)
def test_encodings_that_are_incomplete_are_rejected(tmp_path, monkeypatch, changes, message):
    its = encoding()
    state = {**its.__getstate__(), **changes}
    monkeypatch.setattr(type(its), "__getstate__", lambda self: state)
    (tmp_path / "tokenizer.pkl").write_bytes(pickle.dumps(its))
    with pytest.raises(ValueError, match=message):
        read_encoding(tmp_path / "tokenizer.pkl")


@pytest.mark.parametrize("pattern", ["gpt2", "gpt4"])
def test_a_tokenizer_is_trained_with_either_pattern(tmp_path, pattern):
    train_tokenizer(iter(["in 1234567 years"] * 20), 275, tmp_path / "tokenizer.json", pattern)
    tokenizer = load_tokenizer(str(tmp_path))
    assert tokenizer.vocab_size <= 275
    text = "to be in 1234567 years, naïve 你好\n\n  whether\tI'll"
    assert tokenizer.decode(tokenizer.encode(text)) == text
    digits = [piece for piece in tokenizer.bytes_of if piece.strip().isdigit()]
    assert (max(map(len, digits)) > 2) == (pattern == "gpt2")


# Data


def test_splits(tmp_path):
    write_cache(tmp_path / "cache")
    data = Documents(str(tmp_path / "cache"), tokenizer=str(tmp_path / "cache/tokenizer"))
    names = {split: [file.name for file in files] for split, files in data.files.items()}
    assert names == {"train": ["shard_00000.parquet", "shard_00001.parquet"], "val": ["shard_06542.parquet"]}
    (tmp_path / "cache/data/shard_00000.parquet").rename(tmp_path / "cache/data/my_val.parquet")
    data = Documents(str(tmp_path / "cache"))
    assert [file.name for file in data.files["val"]] == ["my_val.parquet"]
    assert [file.name for file in data.files["train"]] == ["shard_00001.parquet", "shard_06542.parquet"]
    one = str(tmp_path / "cache/data/shard_00001.parquet")
    data = Documents(train=[one], val=str(tmp_path / "cache/data/shard_06*"))
    assert [len(files) for files in data.files.values()] == [1, 1]
    with pytest.raises(DataError, match=r"data\.path: .* it has no file to train on; accepted: at least two files"):
        Documents(one).files  # noqa: B018
    with pytest.raises(DataError, match=r"data\.val: .*shard_00001.parquet' .* it is also a file for training"):
        Documents(train=one, val=str(tmp_path / "cache/data/*.parquet")).files  # noqa: B018
    with pytest.raises(ConfigError, match=r"data\.path: None .* or train and val"):
        Documents(train=one)


@pytest.mark.parametrize(
    ("names", "given", "train", "val"),
    [
        ("train-0 train-1 test-0 validation-0", {}, "train-0 train-1", "validation-0"),  # Hugging Face's names
        ("part-00-1c9f part-01-d0e7", {}, "part-00-1c9f", "part-01-d0e7"),
        ("a b c", {"val": "a"}, "b c", "a"),  # the last one is for training, too
        ("a b my_val", {"val": "a"}, "b", "a"),
        ("part-0 part-1 part-2", {"train": "part-2"}, "part-2", "part-1"),
    ],
)
def test_files_of_a_folder_are_for_training_or_for_validation(tmp_path, names, given, train, val):
    for name in names.split():
        (tmp_path / f"{name}.parquet").touch()
    data = Documents(str(tmp_path), **{split: str(tmp_path / f"{name}.parquet") for split, name in given.items()})
    assert [" ".join(file.stem for file in data.files[split]) for split in ("train", "val")] == [train, val]
    assert data.val_files() == data.files["val"]


@pytest.mark.parametrize("names", ["shard_0 shard_1 stray", "a b", "train-0 train-1 test-0"])
def test_files_are_rejected_if_it_is_not_clear_which_validate(tmp_path, names):
    for name in names.split():
        (tmp_path / f"{name}.parquet").touch()
    with pytest.raises(DataError, match=r"which of its files \(.*\) validate\? accepted: .* or data\.val"):
        Documents(str(tmp_path)).files  # noqa: B018


def test_sizes_and_record(tmp_path):
    cache = write_cache(tmp_path / "cache")
    data = Documents(str(cache), tokenizer=str(cache / "tokenizer"), seq_len=16, ahead=False)
    data.setup("fit")
    n_tokens = sum(1 + len(encoding().encode_ordinary(text)) for i, n in enumerate((150, 90)) for text in texts(n, i))
    assert data.train_tokens() == pytest.approx(n_tokens, rel=0.15)
    record = data.corpus_record()
    assert (record["name"], record["files"]) == ("data", {"train": 2, "val": 1})
    assert data.changed() is None
    shard = cache / "data/shard_00001.parquet"
    shard.write_bytes(shard.read_bytes() + b"x")
    assert "shard_00001.parquet has" in data.changed()
    replaced = Documents(str(cache), tokenizer=str(cache / "tokenizer"), partial_characters="replaced")
    assert replaced._count_bytes()[0x80] == 3  # U+FFFD in place of a byte that is no character
    assert data.token_bytes[0x80] == 1
    assert torch.equal(replaced._count_bytes()[:0x80], data.token_bytes[:0x80])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"data: .*val\.jsonl' .* there are no documents"),
        (b'{"text": "to be"}', r"data\.val: .*val\.jsonl' .* fewer tokens than a row; accepted: .* below 16"),
        (b'{"body": "to be"}', r"data\.column: 'text' .* line 1 of .*val\.jsonl has no text"),
    ],
)
def test_documents_that_cannot_validate_are_rejected_before_training(tmp_path, content, message):
    write_lines(tmp_path / "train.jsonl", ["to be or not to be"])
    (tmp_path / "val.jsonl").write_bytes(content)
    with pytest.raises(DataError, match=message):
        Documents(str(tmp_path), tokenizer="bytes", seq_len=16).setup("fit")


def test_a_tokenizer_without_a_beginning_is_rejected(tmp_path):
    its = encoding()
    its._special_tokens.clear()
    (tmp_path / "tokenizer.pkl").write_bytes(pickle.dumps(its))
    with pytest.raises(DataError, match=r"data\.tokenizer: .* no token that marks the beginning of a document"):
        Documents("nowhere", tokenizer=str(tmp_path)).vocab_size  # noqa: B018


def test_a_run_continues_to_the_bit(run):
    write_cache("cache")
    Path("tiny.yaml").write_text(CONFIG)
    whole = run("--experiment", "whole")
    assert whole.trainer.callback_metrics["val/bpb"] > 0
    run("--experiment", "cut", "--time_budget.limit", "3 steps")
    run("--experiment", "cut", "--ckpt_path", "last")
    one, two = (
        torch.load(f"runs/{name}/version_0/checkpoints/last.ckpt", weights_only=True) for name in ("whole", "cut")
    )
    assert one["Documents"]["position"] == 6 * 4
    for key in ("state_dict", "optimizer_states"):
        assert_equal(one[key], two[key], key)
    # The rows are the same; the cut run has packed fewer before them.
    assert one["Documents"]["corpus"] == two["Documents"]["corpus"]


def test_vocabularies_that_are_too_small_are_rejected(rejected):
    write_cache("cache")
    Path("tiny.yaml").write_text(CONFIG)
    line = rejected("--model.gpt.vocab_size=256")
    assert "model.gpt.vocab_size: 256 cannot be used; accepted: from 272, the tokens of the data" in line


def test_the_script_trains_a_tokenizer_on_the_files_that_train(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("many").mkdir()
    write_parquet(Path("many/1.parquet"), ["abcabc"] * 40)
    write_parquet(Path("many/2.parquet"), ["xyzxyz"] * 400)
    script.main(["many", "--vocab_size", "260", "--out", "tokenizer.json"])
    learned = load_tokenizer("tokenizer.json").bytes_of[257:]
    assert learned
    assert not any(b"x" in piece for piece in learned)  # the last file validates
    lines = yaml.safe_load(capsys.readouterr().out)
    assert lines["data"]["init_args"] == {"path": "many", "tokenizer": "tokenizer.json"}
    assert lines["model"]["gpt"]["vocab_size"] == 257 + len(learned)
    script.main(["many/2.parquet", "--vocab_size", "260", "--out", "other.json", "--document_characters", "2"])
    assert [piece for piece in load_tokenizer("other.json").bytes_of if len(piece) > 1] == [b"xy"]
    capsys.readouterr()
    script.main(["many/1.parquet", "many/2.parquet", "--vocab_size", "260", "--out", "both.json"])
    said = capsys.readouterr()
    options = {"train": ["many/1.parquet", "many/2.parquet"], "val": "FILES", "tokenizer": "both.json"}
    assert yaml.safe_load(said.out)["data"]["init_args"] == options
    assert "bytelm: note: val: write the files for validation in place of FILES" in said.err
    with pytest.raises(SystemExit) as ended:
        script.main(["many", "--vocab_size", "260", "--out", "nowhere/tokenizer.json"])
    assert ended.value.code == ConfigError.exit_status
    for number in (1, 2):
        Path(f"{number}.txt").write_text("to be")
    with pytest.raises(SystemExit):
        script.main(["1.txt", "--vocab_size", "260", "--out", "tokenizer.json", "--column", "body"])
    assert "column: 'body' cannot be used; all files are text, which has no columns" in capsys.readouterr().err
    with pytest.raises(ConfigError, match=r"^data\.column: 'body' cannot be used; all files are text"):
        Documents(train="1.txt", val="2.txt", column="body").files  # noqa: B018
