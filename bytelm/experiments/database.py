"""Database: a storage of Optuna in a database, which waits while the database cannot be reached.

Optuna ends with an error when its database restarts. Here an operation that fails because the connection was lost is
repeated, while training continues. The study's own rules (study.py) allow the repetition of an operation
that had taken effect: a run that is queued twice is run once, and a run without a process is resumed.
"""

import abc
import inspect
import time
from collections.abc import Callable
from functools import wraps
from typing import Any

from optuna.exceptions import StorageInternalError
from optuna.storages import BaseStorage, RDBStorage, get_storage
from sqlalchemy.exc import InterfaceError, OperationalError, PendingRollbackError, SQLAlchemyError

from bytelm.config.messages import note

WAIT_SECONDS = 900.0  # for the database; then the command ends, and continues when it is started again
# The last one: the connection was lost within a transaction.
LOST = (OperationalError, InterfaceError, PendingRollbackError)
PAUSE_SECONDS = 2.0  # between two attempts


class Database(BaseStorage):
    """The storage.

    Args:
        url: The database's URL, as in SQLAlchemy.
        shown: The URL for messages, without a password.
    """

    def __init__(self, url: str, shown: str) -> None:
        # A connection that was lost while it was not in use is replaced.
        self._database = RDBStorage(url, engine_kwargs={"pool_pre_ping": True})
        self._inner = get_storage(self._database)
        self._shown = shown

    def _patiently(self, operation: Callable[[], Any]) -> Any:
        lost_at: float | None = None
        while True:
            try:
                return operation()
            except (StorageInternalError, SQLAlchemyError) as error:
                now = time.monotonic()
                if lost_at is None and is_lost(error):
                    lost_at = now
                    note(f"storage: {self._shown} cannot be reached; trying again for {WAIT_SECONDS / 60:.0f} minutes")
                if lost_at is None or not is_lost(error) or now - lost_at > WAIT_SECONDS:
                    raise
                self._database.remove_session()  # it may be in a transaction that was lost
                time.sleep(PAUSE_SECONDS)


def _delegated(name: str) -> Callable[..., Any]:
    @wraps(getattr(BaseStorage, name))
    def method(self: Database, *args: Any, **kwargs: Any) -> Any:
        return self._patiently(lambda: getattr(self._inner, name)(*args, **kwargs))

    method.__isabstractmethod__ = False  # type: ignore[attr-defined]
    return method


for _name, _ in inspect.getmembers(BaseStorage, inspect.isfunction):
    if not _name.startswith("_"):
        setattr(Database, _name, _delegated(_name))
abc.update_abstractmethods(Database)  # type: ignore[type-abstract]


def is_lost(error: BaseException) -> bool:
    """Whether an error means that the database cannot be reached at present.

    Args:
        error: An error of the storage; its causes count too.
    """
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, LOST) or getattr(cause, "connection_invalidated", False):
            return True
        cause = cause.__cause__
    return False
