"""AtomicCheckpointIO: Lightning's way to checkpoint files (checkpoints.py)."""

from typing import Any

import lightning
from lightning.fabric.plugins import TorchCheckpointIO

from bytelm.runs.checkpoints import read, write


class AtomicCheckpointIO(TorchCheckpointIO):
    """Reads and writes checkpoints.

    Lightning's own collects a whole checkpoint in memory, writes it to the system's temporary folder and copies it from
    there: a process that is killed leaves half a file under the final name.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Writes a checkpoint, whole or not at all; `storage_options` are not used.

        Raises:
            StorageError: It could not be written; what was at `path` is as it was.
        """
        write(checkpoint, path)

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        """Reads a checkpoint into main memory, whatever `weights_only` says, without running code from it.

        Raises:
            CheckpointError: See `read`.
        """
        checkpoint = read(path, map_location=map_location or (lambda storage, location: storage))
        checkpoint.setdefault("pytorch-lightning_version", lightning.__version__)  # weights alone can be scored, too
        return checkpoint
