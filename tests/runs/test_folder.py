"""Proves that every run claims a folder of its own, only when it is asked for, and says when it cannot."""

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from bytelm.errors import StorageError
from bytelm.runs.logger import RunLogger


def test_runs_of_an_experiment_get_folders_of_their_own(tmp_path):
    one, two, other = (RunLogger(str(tmp_path), name) for name in ("rope", "rope", "alibi"))
    assert Path(one.log_dir) == tmp_path / "rope" / "version_0"
    assert Path(two.log_dir) == tmp_path / "rope" / "version_1"
    assert Path(other.log_dir) == tmp_path / "alibi" / "version_0"
    assert one.log_dir == one.log_dir
    assert sorted(path.name for path in (tmp_path / "rope").iterdir()) == ["version_0", "version_1"]


def test_runs_that_start_together_never_share_a_folder(tmp_path, monkeypatch):
    runs = 8
    have_looked = threading.Barrier(runs)
    look = Path.glob

    def look_and_wait(folder: Path, pattern: str):
        seen = list(look(folder, pattern))
        have_looked.wait(timeout=10)  # all see the same folder before any of them claims
        return seen

    monkeypatch.setattr(Path, "glob", look_and_wait)
    with ThreadPoolExecutor(runs) as pool:
        versions = list(pool.map(lambda _: RunLogger(str(tmp_path), "rope").version, range(runs)))
    assert sorted(versions) == list(range(runs))
    assert sorted(path.name for path in (tmp_path / "rope").iterdir()) == [f"version_{i}" for i in range(runs)]


def test_a_version_is_never_used_twice_whatever_else_is_in_the_folder(tmp_path):
    for name in ("version_0", "version_7", "version_x", "version_", "notes", "version_9_old", "my_version_30"):
        (tmp_path / "rope" / name).mkdir(parents=True)
    (tmp_path / "rope" / "version_8").write_text("a file by that name")
    (tmp_path / "rope" / "version_8.tar").touch()
    assert RunLogger(str(tmp_path), "rope").version == 9
    assert RunLogger(str(tmp_path), "rope").version == 10


def test_nothing_is_made_before_the_folder_is_asked_for(tmp_path):
    logger = RunLogger(str(tmp_path / "runs"), "rope")
    assert (logger.name, Path(logger.root_dir)) == ("rope", tmp_path / "runs" / "rope")
    assert list(tmp_path.iterdir()) == []
    assert Path(logger.log_dir).is_dir()


@pytest.mark.parametrize("in_the_way", ["runs", "runs/rope"])
def test_a_file_in_the_way_is_refused_by_its_path(in_the_way, tmp_path):
    (tmp_path / in_the_way).parent.mkdir(exist_ok=True)
    (tmp_path / in_the_way).write_text("kept")
    with pytest.raises(StorageError, match="the run's folder cannot be made there") as refusal:
        RunLogger(str(tmp_path / "runs"), "rope").version  # noqa: B018
    assert str(tmp_path / "runs" / "rope") in str(refusal.value)
    assert (tmp_path / in_the_way).read_text() == "kept"


def test_the_folder_that_is_claimed_is_the_one_that_is_used(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    logger = RunLogger("~/runs", "rope")
    assert Path(logger.log_dir) == tmp_path / "home" / "runs" / "rope" / "version_0"
    assert Path(logger.log_dir).is_dir()
    assert not (tmp_path / "~").exists()


def test_saving_leaves_only_events(tmp_path):
    logger = RunLogger(str(tmp_path), "rope")
    logger.log_hyperparams({"d_model": 80})
    logger.log_metrics({"val/bpb": 2.0}, step=1)
    logger.save()
    logger.finalize("success")
    assert {path.name.split(".")[0] for path in Path(logger.log_dir).glob("[!.]*")} == {"events"}
