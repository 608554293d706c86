"""Adds a test's callback object to a run of the command line."""

from contextlib import contextmanager

import pytest

from bytelm.cli import BytelmCLI


@contextmanager
def added_callback(callback):
    """Puts a callback object before the others of the next trainer."""
    original = BytelmCLI.instantiate_trainer

    def instantiate_trainer(cli, **kwargs):
        trainer = original(cli, **kwargs)
        trainer.callbacks.insert(0, callback)
        return trainer

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(BytelmCLI, "instantiate_trainer", instantiate_trainer)
        yield
