"""The output of Lightning: reports that a user asks for are shown, hints on hardware and services are not.

Lightning writes both at the same level, INFO. Reports come from a profiler, a callback, a tuner or a logger of
Lightning's; messages of its trainer, strategies and accelerators are hints.
"""

import logging
import warnings
from pathlib import Path

import lightning
import lightning.fabric
import lightning.pytorch

ASKED_FOR = ("callbacks", "profilers", "tuner", "loggers")
HINTS = ("litlogger", "litmodels")  # advertisements that are written from these folders


def quieten() -> None:
    """Leaves out hints, and warnings about intended settings. Later calls change nothing."""
    # The handlers of Lightning, of which only the first exists if the user has configured logging, not the user's own.
    for package in (lightning, lightning.pytorch, lightning.fabric):
        logger = logging.getLogger(package.__name__)
        logger.setLevel(logging.INFO)
        for handler in logger.handlers:
            if _is_asked_for not in handler.filters:
                handler.addFilter(_is_asked_for)
    for message in (
        ".*LeafSpec.*is deprecated",
        "The dirpath has changed from",
        "Checkpoint directory .* exists and is not empty",
        "Couldn't infer the batch indices",
        r"`\.fit\(ckpt_path=None\)` was called without a model",  # with OnExceptionCheckpoint: see check_new_run
        r'\.fit\(ckpt_path="last"\) is set, but there is no last checkpoint',
    ):
        warnings.filterwarnings("ignore", message=message)


def _is_asked_for(record: logging.LogRecord) -> bool:
    if record.levelno >= logging.WARNING or any(hint in record.getMessage() for hint in HINTS):
        return record.levelno >= logging.WARNING
    for package in (lightning.pytorch, lightning.fabric):
        home = Path(str(package.__file__)).parent
        path = Path(record.pathname)
        if path.is_relative_to(home):
            return path.relative_to(home).parts[0] in ASKED_FOR
    return True  # of the user's own code, by Lightning's functions
