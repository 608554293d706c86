"""Files are written whole or not at all."""

import os
import threading

import pytest

from bytelm.system.files import replacing


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
