"""Files are written whole or not at all."""

import os
import threading

import pytest

from bytelm.errors import FolderError
from bytelm.system.files import check_folder, replacing


@pytest.mark.parametrize("shared", [False, True])
def test_a_file_appears_when_it_is_whole(tmp_path, shared):
    target = tmp_path / "a.txt"
    target.write_text("old")
    with replacing(target, shared) as partial:
        partial.write_text("new")
        assert target.read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]
    assert target.read_text() == "new"


@pytest.mark.parametrize("shared", [False, True])
def test_a_failure_leaves_the_file_as_it_was(tmp_path, shared):
    target = tmp_path / "a.txt"
    target.write_text("old")

    def fail():
        with replacing(target, shared) as partial:
            partial.write_text("half")
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]
    assert target.read_text() == "old"


def test_several_processes_may_write_a_shared_file_at_the_same_moment(tmp_path):
    target = tmp_path / "a.txt"
    together = threading.Barrier(4)

    def write(text):
        with replacing(target, shared=True) as partial:
            partial.write_text(text)
            together.wait()

    threads = [threading.Thread(target=write, args=(str(i) * 1000,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert target.read_text() in [str(i) * 1000 for i in range(4)]
    assert os.listdir(tmp_path) == ["a.txt"]


@pytest.mark.parametrize(
    ("folder", "why"),
    [("file", "it is not a folder"), ("file/a/b", "{here}/file is not a folder"), ("locked/a", "{here}/locked cannot")],
)
def test_a_folder_that_cannot_be_written_to_is_rejected_with_its_key(tmp_path, monkeypatch, folder, why):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    (tmp_path / "locked").mkdir()
    monkeypatch.setattr(os, "access", lambda path, mode: path.name != "locked")  # root may write to any folder
    with pytest.raises(FolderError) as raised:
        check_folder("out", folder)
    assert str(raised.value).startswith(f"out: {folder!r} cannot be used; {why.format(here=tmp_path)}")
    assert raised.value.exit_status == 5


def test_a_folder_that_can_be_created_is_accepted_and_not_created(tmp_path):
    check_folder("out", tmp_path / "a" / "b")
    check_folder("out", "s3://bucket/a")
    assert not any(tmp_path.iterdir())
