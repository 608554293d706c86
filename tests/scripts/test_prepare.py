"""The scripts that make shards: contents, resuming after an interruption, and rejected settings."""

import json
import signal
from pathlib import Path

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from bytelm.data import tokenize
from bytelm.data.shard_file import Shard, write_shard
from bytelm.data.tokenize import Piece, encoded, text_pieces
from bytelm.data.tokenizer import ByteTokenizer, load_tokenizer
from bytelm.data.train_tokenizer import train_tokenizer
from bytelm.errors import ConfigError, DataError, Interrupted
from scripts import prepare_fineweb, tokenize_text

TEXT = "To be, or not to be, that is the question:\r\nWhether 'tis nobler \U0001f600 in the mind"
WORDS = TEXT.split(" ")
DOCUMENTS = [" ".join(WORDS[(i * j) % len(WORDS)] for j in range(i % 40)) for i in range(120)]  # three are empty


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """A working folder with documents.jsonl, a tokenizer.json, and small reads and batches."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "documents.jsonl").write_text("".join(json.dumps({"id": 1, "text": text}) + "\n" for text in DOCUMENTS))
    monkeypatch.setattr(tokenize, "BATCH_CHARACTERS", 500)
    monkeypatch.setattr(prepare_fineweb, "ROWS", 7)
    return tmp_path


@pytest.fixture
def tokenizer_json(folder):
    train_tokenizer(iter(DOCUMENTS), 300, folder / "tokenizer.json")
    return "tokenizer.json"


def prepare(*options, out="out", dataset="documents.jsonl", tokenizer="bytes", shard_tokens=1000, processes=1):
    arguments = {"out": out, "dataset": dataset, "tokenizer": tokenizer, "shard_tokens": shard_tokens}
    arguments["processes"] = processes
    prepare_fineweb.main([f"--{key}={value}" for key, value in arguments.items()] + list(options))


def shards(folder="out"):
    """The contents of the files, one by one."""
    folder = Path(folder)
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.bin"))}


def tokens(folder="out", pattern="*.bin"):
    return np.concatenate([Shard(path)[:] for path in sorted(Path(folder).glob(pattern))])


def stream(tokenizer, documents=DOCUMENTS):
    """The tokens that all shards together must have."""
    return [token for text in documents for token in [tokenizer.end_of_text, *tokenizer.encode(text)]]


@pytest.fixture
def rejected(capsys):
    def rejected(script, *arguments, status=ConfigError.exit_status):
        with pytest.raises(SystemExit) as ended:
            script(*arguments)
        assert ended.value.code == status
        return capsys.readouterr().err.splitlines()[-1]

    return rejected


# prepare_fineweb.py


def fineweb_stream_is(tokenizer, shard_tokens=1000):
    expected = stream(tokenizer)
    order = [len(Shard(path)) for path in sorted(Path("out").glob("*.bin"), key=lambda p: p.name[-10:])]
    assert order[:-1] == [shard_tokens] * (len(order) - 1)
    assert order[-1] == (len(expected) - 1) % shard_tokens + 1
    together = [*Shard("out/fineweb_val_000000.bin")[:], *tokens("out", "*train*")]
    assert together == expected


def test_shards_hold_all_documents_in_order(tokenizer_json):
    prepare(tokenizer=tokenizer_json)
    fineweb_stream_is(load_tokenizer(tokenizer_json))
    names = [*shards()]
    assert (names[0], names[-1]) == ("fineweb_train_000001.bin", "fineweb_val_000000.bin")


def test_empty_documents_and_nulls_are_documents(folder):
    (folder / "some.jsonl").write_text('{"text": "ab"}\n{"text": null}\n{"text": ""}\n{"text": "c"}\n')
    prepare(dataset="some.jsonl", shard_tokens=4)
    assert [*Shard("out/fineweb_val_000000.bin")[:], *tokens("out", "*train*")] == [0, *b"ab", 0, 0, 0, *b"c"]


def test_limit_of_tokens():
    prepare("--tokens=2500")
    assert [len(Shard(f"out/{name}")) for name in shards()] == [1000, 500, 1000]  # train 1, train 2, val
    expected = stream(ByteTokenizer())[:2500]
    assert [*Shard("out/fineweb_val_000000.bin")[:], *tokens("out", "*train*")] == expected


def test_shards_do_not_depend_on_the_number_of_processes(tokenizer_json):
    prepare(tokenizer=tokenizer_json, out="one")
    prepare(tokenizer=tokenizer_json, out="two", processes=2)
    assert shards("one") == shards("two")
    assert len(shards("one")) > 2


@pytest.mark.parametrize("after", [0, 1, 2, 3])
def test_interruption_and_restart_give_the_same_shards(monkeypatch, after, capsys):
    prepare(out="whole")
    left = [after]

    def failing(path, content):
        if not left[0]:
            raise RuntimeError("cut")
        left[0] -= 1
        write_shard(path, content)

    with monkeypatch.context() as patched:
        patched.setattr(prepare_fineweb, "write_shard", failing)
        with pytest.raises(RuntimeError, match="cut"):
            prepare()
    kept = {name: (Path("out") / name).stat().st_mtime_ns for name in shards()}
    assert len(kept) == after

    read = []
    with monkeypatch.context() as patched:
        patched.setattr(ByteTokenizer, "encode", lambda self, text: read.append(text) or list(text.encode()))
        prepare()
    assert shards() == shards("whole")
    for name, written in kept.items():
        assert (Path("out") / name).stat().st_mtime_ns == written
    state = json.loads((Path("out") / "shards.json").read_text())
    n_whole = state["shards"][after - 1]["documents"] if after else 0
    assert read == DOCUMENTS[n_whole:]  # those before are not encoded again


def test_completed_shards_are_not_repeated(monkeypatch):
    prepare()
    before = shards()
    monkeypatch.setattr(prepare_fineweb, "texts", None)
    prepare()
    assert shards() == before


def test_completed_limit_is_not_repeated(monkeypatch):
    prepare("--tokens=2500")
    monkeypatch.setattr(prepare_fineweb, "texts", None)
    prepare("--tokens=2500")


@pytest.mark.parametrize("damage", ["missing", "short", "foreign"])
def test_damaged_shards_are_made_again(folder, damage):
    prepare()
    before = shards()
    file = folder / "out/fineweb_train_000001.bin"
    if damage == "missing":
        file.unlink()
    elif damage == "short":
        file.write_bytes(file.read_bytes()[:-10])
    else:
        write_shard(file, np.zeros(3, np.uint16))
    prepare()
    assert shards() == before


@given(st.lists(st.integers(0, 9), max_size=20), st.integers(1, 7), st.integers(0, 5))
def test_documents_are_cut_to_shards_anywhere(lengths, size, restart):
    documents = [np.full(1 + length, i, np.uint16) for i, length in enumerate(lengths)]
    made = [*prepare_fineweb.shards_of(documents, iter(lambda: size, None), 0, 0)]
    together = [*np.concatenate([tokens for tokens, _, _ in made])] if made else []
    assert together == [token for document in documents for token in document]
    assert all(len(tokens) == size for tokens, _, _ in made[:-1])
    for i, (_, done, cut) in enumerate(made[:-1]):
        assert sum(map(len, documents[:done])) + cut == (i + 1) * size
    if restart < len(made) - 1:  # from where a shard ends, the others are the same
        _, done, cut = made[restart]
        again = [*prepare_fineweb.shards_of(documents[done:], iter(lambda: size, None), done, cut)]
        assert [(t.tolist(), *at) for t, *at in again] == [(t.tolist(), *at) for t, *at in made[restart + 1 :]]


@pytest.mark.parametrize("kind", ["parquet", "folder", "saved", "saved splits", "glob", "globs"])
def test_local_data_sets(folder, kind):
    datasets = pytest.importorskip("datasets")
    stored = datasets.Dataset.from_dict({"text": DOCUMENTS, "id": [*range(len(DOCUMENTS))]})
    (folder / "data").mkdir()
    if kind.startswith("saved"):
        stored = datasets.DatasetDict({"train": stored}) if kind == "saved splits" else stored
        stored.save_to_disk("data")
    else:
        stored.to_parquet("data/part.parquet")
    places = {"parquet": "data/part.parquet", "glob": "data/*.parquet", "globs": "d*/*.parquet"}
    prepare(dataset=places.get(kind, "data"))
    fineweb_stream_is(ByteTokenizer())


def test_config_lines_are_printed(capsys, tokenizer_json):
    prepare(tokenizer=tokenizer_json)
    size = load_tokenizer(tokenizer_json).vocab_size
    assert yaml.safe_load(capsys.readouterr().out) == {
        "data": {
            "class_path": "TokenShards",
            "init_args": {"path": "out", "tokenizer": tokenizer_json, "vocab_size": size},
        },
        "model": {"gpt": {"vocab_size": size}},
    }


@pytest.mark.parametrize(
    "change", ["--split=test", "--tokens=5000", "--shard_tokens=900", "--tokenizer=tokenizer.json"]
)
def test_restart_with_other_options_is_rejected(rejected, tokenizer_json, change):
    prepare()
    before = shards()
    key = change.partition("=")[0].removeprefix("--")
    line = rejected(prepare, change)
    assert f"out: 'out' cannot be used; its shards were made with {key} " in line
    assert "accepted: the same options, or another folder" in line
    assert shards() == before


def test_restart_with_another_tokenizer_of_the_same_name_is_rejected(rejected, tokenizer_json, folder):
    prepare(tokenizer=tokenizer_json)
    train_tokenizer(iter(["quite another text "] * 9), 280, folder / tokenizer_json)
    assert "made with tokenizer_sha256" in rejected(lambda: prepare(tokenizer=tokenizer_json))


def test_foreign_shards_are_not_changed(rejected, folder):
    (folder / "out").mkdir()
    write_shard(folder / "out/fineweb_val_000000.bin", np.zeros(3, np.uint16))
    before = shards()
    assert "fineweb_val_000000.bin is there, and no shards.json" in rejected(prepare)
    assert shards() == before


def test_data_set_without_training_tokens_is_rejected(rejected):
    line = rejected(lambda: prepare(shard_tokens=100_000))
    assert f"accepted: below {len(stream(ByteTokenizer()))}" in line
    assert not shards()


def test_uncreatable_folder_is_rejected(rejected, folder):
    (folder / "out").touch()
    assert "out: 'out' cannot be used; it is not a folder; accepted: " in rejected(prepare, status=5)


def test_limit_without_training_tokens_is_rejected(rejected, folder):
    assert "tokens: 1000 cannot be used; accepted: above 1000" in rejected(prepare, "--tokens=1000")
    assert not (folder / "out").exists()


def unreachable(*arguments, **options):
    raise OSError("no route to host\nand so on")


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"dataset": "owner/name"}, "dataset: 'owner/name' cannot be used; it cannot be read: OSError: no route"),
        ({"split": "test"}, "it cannot be read: "),
        ({"text_field": "content"}, "content"),
        ({"tokenizer": "gpt-2"}, "error: tokenizer: 'gpt-2' cannot be used"),
    ],
)
def test_invalid_data_sets_and_tokenizers_are_rejected(rejected, monkeypatch, options, reason):
    if options.get("dataset"):
        monkeypatch.setattr(pytest.importorskip("datasets"), "load_dataset", unreachable)
    arguments = [f"--{key}={value}" for key, value in options.items()]
    assert reason in rejected(prepare, *arguments, status=DataError.exit_status)


def test_signal_while_reading_is_not_reported_as_a_data_error(rejected, monkeypatch):
    def interrupted(*arguments, **options):
        raise Interrupted(signal.SIGTERM)

    monkeypatch.setattr(pytest.importorskip("datasets"), "load_dataset", interrupted)
    assert "interrupted by SIGTERM" in rejected(prepare, status=128 + signal.SIGTERM)


def test_too_large_a_vocabulary_is_rejected(rejected, monkeypatch):
    monkeypatch.setattr(tokenize, "N_TOKENS", 255)
    line = rejected(prepare, status=DataError.exit_status)
    assert line.endswith("tokenizer: 'bytes' cannot be used; it has 256 tokens; accepted: up to 255")


def test_tokenizer_without_end_of_text_is_rejected(rejected, folder, tokenizer_json):
    content = json.loads((folder / tokenizer_json).read_text())
    content["added_tokens"] = []
    (folder / tokenizer_json).write_text(json.dumps(content))
    line = rejected(lambda: prepare(tokenizer=tokenizer_json), status=DataError.exit_status)
    assert "it has no end-of-text token" in line


# tokenize_text.py


def tokenize_files(*options, paths=("text",), out="out", processes=1):
    tokenize_text.main([*paths, f"--out={out}", f"--processes={processes}", *options])


@pytest.fixture
def text_files(folder):
    (folder / "text").mkdir()
    contents = {f"{i}.txt": "".join(DOCUMENTS[10 * i : 10 * i + 10]) for i in range(1, 5)}
    for name, content in contents.items():
        (folder / "text" / name).write_bytes(content.encode())
    return list(contents.values())


def test_last_tokens_are_for_validation(text_files):
    tokenize_files("--tokenizer=bytes")
    expected = stream(ByteTokenizer(), text_files)
    n_val = round(0.1 * len(expected))
    assert [*tokens("out", "train*")] == expected[:-n_val]
    assert [*tokens("out", "val*")] == expected[-n_val:]
    assert [*shards()] == ["train_000000.bin", "val_000000.bin"]


def test_number_of_validation_tokens_and_size_of_shards(text_files):
    tokenize_files("--tokenizer=bytes", "--val_tokens=300", "--shard_tokens=200")
    sizes = {name: len(Shard(f"out/{name}")) for name in shards()}
    assert {name: size for name, size in sizes.items() if "val" in name} == {
        "val_000000.bin": 200,
        "val_000001.bin": 100,
    }
    assert set([*sizes.values()][:-3]) == {200}
    assert [*tokens()] == stream(ByteTokenizer(), text_files)


def test_trained_tokenizer_is_written_beside_the_shards(text_files, capsys):
    tokenize_files("--train_tokenizer=290")
    tokenizer = load_tokenizer("out/tokenizer.json")
    assert [*tokens()] == stream(tokenizer, text_files)
    out = capsys.readouterr().out
    config = yaml.safe_load(out.partition("\n")[2])
    init_args = {"path": "out", "tokenizer": "out/tokenizer.json", "vocab_size": tokenizer.vocab_size}
    assert config["data"] == {"class_path": "TokenShards", "init_args": init_args}
    assert config["model"] == {"gpt": {"vocab_size": tokenizer.vocab_size}}


def test_validation_text_does_not_affect_the_vocabulary(folder):
    (folder / "text").mkdir()
    (folder / "text/1.txt").write_text("to be or not to be " * 50 + "zzzzqqqq " * 10)
    tokenize_files("--train_tokenizer=290")
    assert b"qq" not in load_tokenizer("out/tokenizer.json").bytes_of
    tokenize_files("--train_tokenizer=290", "--val_tokens=50", out="number")  # the last 400 bytes are left out
    assert b"qq" not in load_tokenizer("number/tokenizer.json").bytes_of
    assert b" be" in load_tokenizer("number/tokenizer.json").bytes_of
    tokenize_files("--train_tokenizer=290", "--val_fraction=0.01", out="other")
    assert b"qq" in load_tokenizer("other/tokenizer.json").bytes_of


def test_validation_documents_do_not_affect_the_vocabulary_with_any_separator(folder):
    (folder / "text.txt").write_text("<|endoftext|>".join(["to be or not"] * 90 + ["zzzzqqqq"] * 10))
    tokenize_files("--train_tokenizer=290", "--separator=<|endoftext|>", "--val_fraction=0.2", paths=["text.txt"])
    assert b"qq" not in load_tokenizer("out/tokenizer.json").bytes_of


def test_tokenizer_is_learned_from_half_of_the_text_at_least(folder):
    (folder / "short.txt").write_text("to be or not to be " * 10)
    tokenize_files("--train_tokenizer=290", "--val_tokens=60", paths=["short.txt"])
    assert b" be" in load_tokenizer("out/tokenizer.json").bytes_of


def test_separator(folder):
    (folder / "text").mkdir()
    (folder / "text/1.txt").write_text("<e>one<e>two<e><e>three")
    (folder / "text/2.txt").write_text("four<e>")
    tokenize_files("--tokenizer=bytes", "--separator=<e>")
    assert [*tokens()] == stream(ByteTokenizer(), ["one", "two", "three", "four"])


def test_no_other_state_remains(text_files, folder):
    tokenize_files("--tokenizer=bytes")
    assert sorted(path.name for path in (folder / "out").iterdir()) == ["train_000000.bin", "val_000000.bin"]


@pytest.mark.parametrize("separator", [None, "<e>", "\n\n"])
@pytest.mark.parametrize("size", [1, 7, 64])
def test_long_files_are_cut_and_put_together_again(folder, monkeypatch, separator, size):
    monkeypatch.setattr(tokenize, "PIECE_CHARACTERS", size)
    content = "one two\r\n  three<e>" * 20 + "x" * 200 + "<e>\n\n\u4f60\u597d\U0001f600 four <e"
    (folder / "long.txt").write_bytes(content.encode())
    documents = []
    pieces = [*text_pieces(folder / "long.txt", separator)]
    for text, begins in pieces:
        documents[len(documents) :] = [""] if begins else []
        documents[-1] += text
    assert documents == [text for text in (content.split(separator) if separator else [content]) if text]
    assert max(len(piece.text) for piece in pieces) <= 3 * size + 3


def test_files_are_cut_at_token_borders(folder, monkeypatch, tokenizer_json):
    content = " ".join(DOCUMENTS) + "\r\n\r\n  indented\n\n\nlines and  spaces \t tabs\n" * 5
    (folder / "long.txt").write_bytes(content.encode())
    monkeypatch.setattr(tokenize, "PIECE_CHARACTERS", 100)
    pieces = [*text_pieces(folder / "long.txt")]
    tokenizer = load_tokenizer(tokenizer_json)
    assert len(pieces) > 20
    assert [token for array in encoded(pieces, tokenizer, 1) for token in array] == stream(tokenizer, [content])


def test_short_files_are_one_piece(folder):
    (folder / "short.txt").write_text("one\ntwo\n")
    assert [*text_pieces(folder / "short.txt")] == [Piece("one\ntwo\n", begins=True)]


@pytest.mark.parametrize("fraction", ["0", "1", "-0.1", "nan"])
def test_invalid_fractions_are_rejected(rejected, text_files, fraction):
    line = rejected(tokenize_files, "--tokenizer=bytes", f"--val_fraction={fraction}")
    assert "val_fraction: " in line
    assert not shards()


def test_too_many_validation_tokens_are_rejected(rejected, text_files, folder):
    line = rejected(tokenize_files, "--tokenizer=bytes", "--val_tokens=100000", status=DataError.exit_status)
    assert "100000 would validate" in line
    assert [*(folder / "out").iterdir()] == []


def test_empty_files_are_rejected(rejected, folder):
    (folder / "empty.txt").touch()
    line = rejected(lambda: tokenize_files("--tokenizer=bytes", paths=["empty.txt"]), status=DataError.exit_status)
    assert "of its 0 tokens" in line


def test_non_text_files_are_named(rejected, folder):
    (folder / "text.bin").write_bytes(b"abc\xff\xfe")
    line = rejected(lambda: tokenize_files("--tokenizer=bytes", paths=["text.bin"]), status=DataError.exit_status)
    assert "path: 'text.bin' cannot be used; accepted: text in UTF-8; " in line


def test_missing_files_are_rejected(rejected):
    line = rejected(lambda: tokenize_files("--tokenizer=bytes", paths=["nowhere"]), status=DataError.exit_status)
    assert "path: 'nowhere' cannot be used; not found" in line


def test_shards_are_not_overwritten(rejected, text_files):
    tokenize_files("--tokenizer=bytes")
    before = shards()
    assert "train_000000.bin is there" in rejected(tokenize_files, "--tokenizer=bytes", "--val_tokens=5")
    assert shards() == before


@pytest.mark.parametrize("option", ["--shard_tokens=0", "--processes=0", "--tokens=-1", "--shard_tokens=many"])
def test_numbers_are_checked(rejected, option):
    assert "not accepted; accepted: a whole number above 0" in rejected(prepare, option)


def test_files_have_no_configurations(rejected, tmp_path):
    (tmp_path / "a.jsonl").touch()
    reason = "name: 'x' cannot be used; files have no configurations"
    assert reason in rejected(prepare, "--name=x", f"--dataset={tmp_path / '*.jsonl'}")
    (tmp_path / "state.json").touch()  # of a data set that was saved
    for key, reason in (("name", "which has one configuration"), ("split", "without splits")):
        assert reason in rejected(prepare, f"--{key}=x", f"--dataset={tmp_path}")
