"""A callback that a test holds in its hands, in a run that the command line makes."""

from contextlib import contextmanager

import pytest

from bytelm.cli import BytelmCLI


@contextmanager
def added_callback(callback):
    """Puts a callback, which the test holds in its hands, before the others of the next trainer."""
    original = BytelmCLI.instantiate_trainer

    def instantiate_trainer(cli, **kwargs):
        trainer = original(cli, **kwargs)
        trainer.callbacks.insert(0, callback)
        return trainer

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(BytelmCLI, "instantiate_trainer", instantiate_trainer)
        yield
