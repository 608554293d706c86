"""Each run claims its own folder, only on request, and reports when it cannot."""

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from bytelm.errors import ConfigError, StorageError
from bytelm.runs.folder import RunFolder, run_of, runs_root
from bytelm.runs.logger import CSVLogger, TensorBoardLogger


def logger_in(folder):
    logger = TensorBoardLogger()
    logger.place(folder)
    return logger


def test_runs_of_an_experiment_get_folders_of_their_own(tmp_path):
    one, two, other = (RunFolder(tmp_path / name) for name in ("rope", "rope", "alibi"))
    assert one.path == tmp_path / "rope" / "version_0"
    assert two.path == tmp_path / "rope" / "version_1"
    assert other.path == tmp_path / "alibi" / "version_0"
    assert (one.path, one.version, one.name) == (one.path, 0, "rope")
    assert sorted(path.name for path in (tmp_path / "rope").iterdir()) == ["version_0", "version_1"]


def test_runs_that_start_together_never_share_a_folder(tmp_path, monkeypatch):
    runs = 8
    have_looked = threading.Barrier(runs)
    look = Path.glob

    def look_and_wait(folder: Path, pattern: str):
        seen = list(look(folder, pattern))
        have_looked.wait(timeout=60)  # all see the same folder before any of them claims
        return seen

    monkeypatch.setattr(Path, "glob", look_and_wait)
    with ThreadPoolExecutor(runs) as pool:
        versions = list(pool.map(lambda _: RunFolder(tmp_path / "rope").version, range(runs)))
    assert sorted(versions) == list(range(runs))
    assert sorted(path.name for path in (tmp_path / "rope").iterdir()) == [f"version_{i}" for i in range(runs)]


def test_a_version_is_never_used_twice_whatever_else_is_in_the_folder(tmp_path):
    for name in ("version_0", "version_7", "version_x", "version_", "notes", "version_9_old", "my_version_30"):
        (tmp_path / "rope" / name).mkdir(parents=True)
    (tmp_path / "rope" / "version_8").write_text("a file by that name")
    (tmp_path / "rope" / "version_8.tar").touch()
    assert RunFolder(tmp_path / "rope").version == 9
    assert RunFolder(tmp_path / "rope").version == 10


@pytest.mark.parametrize("log_dir", [lambda f: f.path, lambda f: logger_in(f).log_dir])
def test_nothing_is_made_before_the_folder_is_asked_for(tmp_path, log_dir):
    folder = RunFolder(tmp_path / "runs" / "rope")
    assert logger_in(folder).name == "rope"
    assert list(tmp_path.iterdir()) == []
    assert Path(log_dir(folder)).is_dir()


def test_a_run_is_continued_by_one_process_at_a_time(tmp_path):
    first = RunFolder(tmp_path / "rope")
    assert first.version == 0
    with pytest.raises(StorageError, match="another process works"):
        RunFolder(tmp_path / "rope", version=0).path  # noqa: B018
    first.release()
    assert RunFolder(tmp_path / "rope", version=0).path == first.path


def test_other_ranks_receive_the_folder_of_rank_0(tmp_path, monkeypatch):
    first = RunFolder(tmp_path / "rope")
    RunFolder(tmp_path / "rope").share(lambda known: known)
    first.share(lambda known: known)
    monkeypatch.setattr("bytelm.runs.folder.is_rank_zero", lambda: False)
    other = RunFolder(tmp_path / "rope")
    other.share(lambda known: (str(first.path), 1))
    assert other.path == first.path == tmp_path / "rope" / "version_1"
    assert other.version == 1
    assert len(list((tmp_path / "rope").iterdir())) == 2


@pytest.mark.parametrize("in_the_way", ["runs", "runs/rope"])
def test_a_file_in_the_way_is_rejected_by_its_path(in_the_way, tmp_path):
    (tmp_path / in_the_way).parent.mkdir(exist_ok=True)
    (tmp_path / in_the_way).write_text("kept")
    with pytest.raises(StorageError) as rejection:
        RunFolder(tmp_path / "runs" / "rope").path  # noqa: B018
    reason = f"({tmp_path / in_the_way} is not a folder); accepted: a --trainer.default_root_dir that can be written to"
    assert str(rejection.value) == f"the run's folder '{tmp_path / 'runs/rope'}' cannot be created {reason}"
    assert (tmp_path / in_the_way).read_text() == "kept"


def test_all_experiments_are_below_the_trainers_root(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert runs_root(None) == Path("runs")
    assert runs_root("~/here") == tmp_path / "home" / "here" / "runs"
    with pytest.raises(ConfigError, match=r"trainer\.default_root_dir: 's3://bucket/x'"):
        runs_root("s3://bucket/x")


def test_a_file_names_its_run(tmp_path):
    run = tmp_path / "rope" / "version_3"
    (run / "checkpoints").mkdir(parents=True)
    assert run_of(run / "config.yaml") == run_of(run / "checkpoints" / "a.ckpt") == run
    for other in (run / "other.yaml", run.parent / "config.yaml", tmp_path / "version_x" / "config.yaml"):
        assert run_of(other) is None


def test_saving_leaves_only_events(tmp_path):
    logger = logger_in(RunFolder(tmp_path / "rope"))
    logger.log_hyperparams({"d_model": 80})
    logger.log_metrics({"val/bpb": 2.0}, step=1)
    logger.save()
    logger.finalize("success")
    assert {path.name.split(".")[0] for path in Path(logger.log_dir).glob("[!.]*")} == {"events"}


@pytest.mark.parametrize("kind", [TensorBoardLogger, CSVLogger])
def test_a_logger_with_a_save_dir_writes_where_lightnings_does(tmp_path, kind):
    mine = kind(tmp_path)
    assert not mine.in_run_folder
    theirs = next(base for base in kind.__mro__[1:] if base.__name__ == kind.__name__)(tmp_path)
    for name in ("log_dir", "root_dir", "save_dir", "name", "version"):
        assert getattr(mine, name) == getattr(theirs, name), name
    for name in ("my", "other"):
        assert kind(tmp_path, name=name, version="x").log_dir == str(tmp_path / name / "x")
