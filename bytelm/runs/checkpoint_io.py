"""Lightning's interface to checkpoint files (checkpoints.py), also inside a wrapping plugin; errors of restoring."""

from collections.abc import Callable
from functools import wraps
from typing import Any

import lightning
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch import Trainer
from lightning.pytorch.plugins.io.wrapper import _WrappingCheckpointIO

from bytelm.errors import CheckpointError, run_error
from bytelm.runs.checkpoints import read, write
from bytelm.runs.plain import plain


class AtomicCheckpointIO(TorchCheckpointIO):
    """Reads and writes checkpoints.

    Lightning's implementation writes a checkpoint to the system's temporary folder and copies it: a killed process
    leaves half a file under the final name.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Writes a checkpoint completely or not at all; `storage_options` are not used.

        Raises:
            CheckpointError: It contains something other than plain values and tensors.
            StorageError: It could not be written; a file at `path` is unchanged.
        """
        write(plain(checkpoint), path)

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        """Reads a checkpoint into main memory without running code from it; `weights_only` is not used.

        Raises:
            CheckpointError: See `read`.
        """
        checkpoint = read(path, map_location=map_location or (lambda storage, location: storage))
        checkpoint.setdefault(
            "pytorch-lightning_version", lightning.__version__
        )  # files with only weights can be scored, too
        return checkpoint


def prepare(plugin: object) -> None:
    """Makes a plugin that wraps another CheckpointIO, such as AsyncCheckpointIO, wrap an AtomicCheckpointIO.

    Called before the trainer is made, which would make it wrap Lightning's TorchCheckpointIO.

    Args:
        plugin: A plugin of the user. One with an explicit inner CheckpointIO is not changed.
    """
    if isinstance(plugin, _WrappingCheckpointIO) and not plugin._base_checkpoint_io_configured:
        plugin.checkpoint_io = AtomicCheckpointIO()


def errors_are_the_checkpoints(trainer: Trainer) -> None:
    """Converts errors of restoring a checkpoint to CheckpointErrors.

    Most contents are checked before (structure.py). The exceptions are the states of the user's callbacks, and
    Lightning's requirements for single values.

    Args:
        trainer: The trainer whose connector restores checkpoints.
    """

    def guarded(restore: Callable[..., None]) -> Callable[..., None]:
        @wraps(restore)
        def call(*args: Any, **kwargs: Any) -> None:
            try:
                restore(*args, **kwargs)
            except Exception as error:
                if run_error(error) is not None:
                    raise
                said = f"{type(error).__name__}: {' '.join(str(error).split())}"
                raise CheckpointError(f"ckpt_path: {str(trainer.ckpt_path)!r} cannot be restored: {said}") from error

        return call

    connector: Any = trainer._checkpoint_connector
    for name in ("_restore_modules_and_callbacks", "restore_training_state"):
        setattr(connector, name, guarded(getattr(connector, name)))
