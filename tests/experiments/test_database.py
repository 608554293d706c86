"""A storage in a database waits while the database cannot be reached. The database here is a file of SQLite."""

import pytest

pytest.importorskip("optuna")

import optuna
from optuna.exceptions import StorageInternalError
from optuna.storages import BaseStorage, RDBStorage
from sqlalchemy.exc import IntegrityError, OperationalError, PendingRollbackError

from bytelm.experiments import database
from bytelm.experiments.database import Database, is_lost

LOST = OperationalError("select 1", {}, Exception("server closed the connection unexpectedly"))


@pytest.fixture
def storage(tmp_path, monkeypatch):
    """A storage, with a clock that goes on while it waits."""
    clock = [0.0]
    monkeypatch.setattr(database.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(database.time, "sleep", lambda seconds: clock.__setitem__(0, clock[0] + seconds))
    storage = Database(f"sqlite:///{tmp_path}/study.db", "sqlite://…")
    storage.clock = clock
    return storage


def failing(monkeypatch, name, error, times):
    """Makes a method of Optuna's storage fail; returns the list of its calls."""
    real, calls = getattr(RDBStorage, name), []

    def method(self, *args, **kwargs):
        calls.append(args)
        if len(calls) <= times:
            raise error
        return real(self, *args, **kwargs)

    monkeypatch.setattr(RDBStorage, name, method)
    return calls


def test_every_operation_is_passed_on(storage):
    names = [name for name in vars(BaseStorage) if not name.startswith("_")]
    assert len(names) > 20
    assert all(name in vars(Database) for name in names)
    study = optuna.create_study(study_name="s", storage=storage)
    study.enqueue_trial({}, user_attrs={"task": "a"})
    trial = study.ask()
    trial.suggest_float("lr", 0.1, 1.0)
    trial.report(3.0, 1)
    study.tell(trial, 2.0)
    (ended,) = study.get_trials()
    assert (ended.value, ended.user_attrs, ended.intermediate_values) == (2.0, {"task": "a"}, {1: 3.0})


@pytest.mark.parametrize("error", [LOST, PendingRollbackError("rollback")])
def test_an_operation_waits_for_a_database_that_is_lost(storage, monkeypatch, capsys, error):
    study = optuna.create_study(study_name="s", storage=storage)
    wrapped = StorageInternalError()
    wrapped.__cause__ = error
    calls = failing(monkeypatch, "_create_new_trial", wrapped, 4)
    study.ask()
    assert len(calls) == 5
    assert len(study.get_trials()) == 1
    assert storage.clock[0] == 4 * database.PAUSE_SECONDS
    assert capsys.readouterr().err.count("cannot be reached; trying again for 15 minutes") == 1


def test_a_database_that_stays_lost_ends_the_command(storage, monkeypatch):
    study = optuna.create_study(study_name="s", storage=storage)
    failing(monkeypatch, "_create_new_trial", LOST, 10**6)
    with pytest.raises(OperationalError):
        study.ask()
    assert database.WAIT_SECONDS < storage.clock[0] < 2 * database.WAIT_SECONDS


def test_other_errors_are_not_repeated(storage, monkeypatch):
    study = optuna.create_study(study_name="s", storage=storage)
    error = IntegrityError("insert", {}, Exception("duplicate key"))
    calls = failing(monkeypatch, "_create_new_trial", error, 10**6)
    with pytest.raises(IntegrityError):
        study.ask()
    assert len(calls) == 1
    assert not is_lost(error)
