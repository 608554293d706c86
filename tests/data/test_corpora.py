"""Where each corpus finds its bytes, their order, and the message if there are none."""

import hashlib
import json.decoder
from pathlib import Path

import pytest

from bytelm.data import corpora
from bytelm.data.corpora import Bytes, PythonSource, Shakespeare
from bytelm.errors import ConfigError, DataError


def content(data) -> bytes:
    return bytes(data.corpus.stream.tolist())


@pytest.fixture
def tree(tmp_path):
    """A folder whose files, sorted by path, contain abcd."""
    for name, text in {"z.txt": b"d", "a/2.txt": b"b", "a/b/1.md": b"c", "a/1.txt": b"a"}.items():
        (tmp_path / "tree" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "tree" / name).write_bytes(text)
    return tmp_path / "tree"


@pytest.mark.parametrize(
    ("paths", "expected"),
    [
        ("a/1.txt", b"a"),
        ("", b"abcd"),
        ("a", b"abc"),
        ("*.txt", b"d"),
        ("**/*.txt", b"abd"),
        ("a/[12].txt", b"ab"),
        (["z.txt", "a/b", "*/2.txt"], b"dcb"),
        (["z.txt", "z.txt"], b"dd"),
    ],
)
def test_bytes_reads_files_folders_globs_and_lists_in_order(paths, expected, tree):
    paths = str(tree / paths) if isinstance(paths, str) else [str(tree / path) for path in paths]
    assert content(Bytes(paths)) == expected


def test_a_file_whose_name_looks_like_a_glob_is_that_file(tree):
    (tree / "[ab].txt").write_bytes(b"itself")
    (tree / "a.txt").write_bytes(b"other")
    assert content(Bytes(str(tree / "[ab].txt"))) == b"itself"


def test_a_tilde_is_the_home_folder(tree, monkeypatch):
    monkeypatch.setenv("HOME", str(tree))
    assert content(Bytes("~/z.txt")) == b"d"
    assert content(Bytes("~/a/*.txt")) == b"ab"


@pytest.mark.parametrize("files", [1, 2])
def test_any_bytes_are_kept_and_hashed(files, tmp_path):
    all_bytes = bytes(range(256)) * 2 + b"\xc3\x28\xff\xfe\r\n"  # not UTF-8
    paths = [tmp_path / f"{i}.bin" for i in range(files)]
    for path in paths:
        path.write_bytes(all_bytes)
    data = Bytes([str(path) for path in paths])
    assert content(data) == all_bytes * files
    assert data.corpus.sha256 == hashlib.sha256(all_bytes * files).hexdigest()
    assert data.corpus.name == "0.bin"


def test_hidden_files_and_folders_are_left_out_of_a_folder(tree):
    for name in (".DS_Store", ".git/config", "a/.cache/x.txt", "a/.hidden"):
        (tree / name).parent.mkdir(exist_ok=True)
        (tree / name).write_bytes(b"hidden")
    assert content(Bytes(str(tree))) == b"abcd"
    assert content(Bytes(str(tree / "**/*"))) == b"abcd"
    assert content(Bytes(str(tree / ".git"))) == b"hidden"  # a path that is named is read
    assert content(Bytes(str(tree / "a/.hidden"))) == b"hidden"
    (tree / "hollow").mkdir()
    (tree / "hollow/.DS_Store").touch()
    with pytest.raises(DataError, match="it is a folder without files, or with hidden ones alone"):
        Bytes(str(tree / "hollow")).read()


def test_binary_files_of_a_folder_are_left_out_with_a_note(tree, capsys):
    assert content(Bytes(str(tree))) == b"abcd"
    assert capsys.readouterr().err == ""
    for name in ("a/p.png", "q.bin"):
        (tree / name).write_bytes(b"\x89PNG\0")
    (tree / "r.txt").write_bytes(b"t" * corpora.PROBED + b"\0\xff")
    late = (tree / "r.txt").read_bytes()
    assert content(Bytes(f"{tree}/")) == b"abc" + late + b"d"
    note = f"bytelm: note: data.path: 2 binary files of {tree}/ left out: {tree}/a/p.png, {tree}/q.bin; "
    assert capsys.readouterr().err == note + f"'{tree}/**/*' includes all files\n"
    assert content(Bytes(str(tree / "**/*"))) == b"abc\x89PNG\0\x89PNG\0" + late + b"d"
    assert content(Bytes(str(tree / "q.bin"))) == b"\x89PNG\0"
    (tree / "pictures").mkdir()
    (tree / "a/p.png").rename(tree / "pictures/p.png")
    with pytest.raises(DataError, match=r"all of its 1 files are binary; accepted to read them: '.*/pictures/\*\*/\*'"):
        Bytes(str(tree / "pictures")).read()


@pytest.mark.parametrize("files", [1, 2])
def test_text_in_memory_does_not_change_with_its_files(files, tree):
    data = Bytes([str(tree / name) for name in ("a/1.txt", "a/2.txt")][:files])
    before = content(data)
    (tree / "a/1.txt").write_bytes(b"")
    (tree / "a/2.txt").write_bytes(b"other")
    assert content(data) == before
    assert data.changed() is None


@pytest.fixture
def mapped(tmp_path, monkeypatch):
    """A file that is large enough to be mapped."""
    monkeypatch.setattr(corpora, "READ_AT_MOST", 10)
    file = tmp_path / "large.txt"
    file.write_bytes(b"twelve bytes")
    return file


def test_a_large_file_that_changes_is_noticed(mapped):
    data = Bytes(str(mapped))
    assert content(data) == b"twelve bytes"
    sha256 = data.corpus_record()["sha256"]
    assert sha256 == hashlib.sha256(b"twelve bytes").hexdigest()
    assert data.changed() is None
    mapped.with_name("new").write_bytes(b"another file")
    mapped.with_name("new").rename(mapped)
    assert data.changed() is None  # the mapped file is unchanged
    assert content(data) == b"twelve bytes"


@pytest.mark.parametrize(
    ("text", "reason"),
    [(b"twelve", "has 6 bytes, and had 12"), (b"TWELVE BYTES", "was written to: the sha256 is ")],
)
def test_a_large_file_that_is_written_to_is_noticed(text, reason, mapped):
    data = Bytes(str(mapped))
    data.corpus_record()
    with mapped.open("r+b") as file:
        file.write(text)
        file.truncate()
    assert data.changed().startswith(f"{mapped} {reason}")


@pytest.mark.parametrize("most", [0, 2**30])
def test_reading_a_file_never_writes_to_it(most, tmp_path, monkeypatch):
    monkeypatch.setattr(corpora, "READ_AT_MOST", most)
    (tmp_path / "text").write_bytes(b"original")
    Bytes(str(tmp_path / "text")).corpus.stream.fill_(0)
    assert (tmp_path / "text").read_bytes() == b"original"


@pytest.mark.parametrize("missing", ["nothing.txt", "*.nothing", "hollow"])
def test_a_path_without_files_is_rejected_by_name(missing, tree):
    (tree / "hollow").mkdir()
    path = str(tree / missing)
    with pytest.raises(DataError, match=r"^data.path: .* accepted: a file, a folder") as rejection:
        Bytes([str(tree / "z.txt"), path]).read()
    assert repr(path) in str(rejection.value)


def test_an_empty_list_of_paths_is_rejected():
    with pytest.raises(ConfigError, match="path"):
        Bytes([]).read()


@pytest.fixture
def folders(tmp_path, monkeypatch):
    """$BYTELM_DATA and the cache folder, both empty."""
    monkeypatch.setenv("BYTELM_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    folders = tmp_path / "data", tmp_path / "xdg" / "bytelm"
    for folder in folders:
        folder.mkdir(parents=True)
    return folders


def test_shakespeare_is_looked_for_in_bytelm_data_then_in_the_cache_then_downloaded(
    folders, serve, answer, etext, text
):
    url = serve(answer(etext, Content_Length=len(etext)))  # for one request only
    own, cache = (folder / "shakespeare.txt" for folder in folders)
    own.write_bytes(b"from BYTELM_DATA")
    cache.write_bytes(b"from the cache")
    assert content(Shakespeare(url=url)) == b"from BYTELM_DATA"
    own.unlink()
    assert content(Shakespeare(url=url)) == b"from the cache"
    cache.unlink()
    assert content(Shakespeare(url=url)) == text
    assert cache.read_bytes() == text
    assert sorted(path.name for path in cache.parent.iterdir()) == ["shakespeare.txt", "shakespeare.txt.sha256"]
    assert not own.exists()
    data = Shakespeare(url=url, batch_size=2)
    data.prepare_data()
    assert content(data) == text
    assert (data.corpus.name, data.batch_size) == ("shakespeare", 2)


def test_prepare_data_downloads_for_a_later_read(folders, serve, answer, etext, text):
    data = Shakespeare(url=serve(answer(etext)))
    data.prepare_data()
    assert (folders[1] / "shakespeare.txt").read_bytes() == text
    assert content(data) == text


def test_without_xdg_cache_home_the_cache_is_in_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.delenv("BYTELM_DATA", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".cache" / "bytelm").mkdir(parents=True)
    (tmp_path / ".cache" / "bytelm" / "shakespeare.txt").write_bytes(b"at home")
    assert content(Shakespeare(url="http://127.0.0.1:9/")) == b"at home"


def test_python_source_is_large_and_the_same_each_time():
    data = PythonSource()
    data.setup("fit")
    corpus = data.corpus.stream.numpy().tobytes()
    assert len(corpus) > 1_000_000
    assert len(data.val_split) > 100_000
    assert Path(json.decoder.__file__).read_bytes() in corpus
    assert PythonSource().corpus.sha256 == data.corpus.sha256


def test_python_source_takes_modules_of_the_library_only_in_the_order_of_their_names_hashes(tmp_path, monkeypatch):
    modules = ["abc.py", "json/__init__.py", "json/decoder.py", "z.py"]
    others = ["site-packages/torch.py", "test/a.py", "json/tests/b.py", "json/__pycache__/c.py", "readme.txt", "d.pyc"]
    for name in modules + others:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(f"<{name}>")
    monkeypatch.setattr("sysconfig.get_path", lambda name: {"stdlib": str(tmp_path)}[name])
    order = sorted(modules, key=lambda name: hashlib.sha256(name.encode()).hexdigest())
    assert order != modules
    assert content(PythonSource()).decode() == "".join(f"<{name}>" for name in order)
