"""Checkpoint files: written atomically, read without running code, and their contents by name.

A checkpoint is written beside its final name, flushed to the disk, and renamed in one atomic step. A file named
`last.ckpt` is therefore always complete, even after a power failure. It contains only plain values and tensors and is
read with `torch.load(weights_only=True)`: a checkpoint from a stranger cannot run code.
"""

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import bytelm
from bytelm.config.renamed import current_callbacks, current_names
from bytelm.errors import CheckpointError, StorageError, reason
from bytelm.runs import archive, structure
from bytelm.system.files import replacing

CONFIG = "config"  # key of the run's config
TRAINED = "current_model_state"  # WeightAveraging's key for the trained weights, where `state_dict` has the average
VERSION = "bytelm_version"  # key of the version that wrote a checkpoint


def write(checkpoint: Mapping[str, Any], path: str | Path) -> None:
    """Writes a checkpoint.

    Args:
        checkpoint: Plain values and tensors.
        path: The file to write; an existing file is replaced.

    Raises:
        StorageError: It could not be written; an existing file at `path` is unchanged.
    """
    try:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        # A file instead of its path: torch's own errors of opening do not include the system's reason.
        with replacing(Path(path)) as partial, open(partial, "wb") as file:
            torch.save({**checkpoint, VERSION: bytelm.__version__}, file)
    except (OSError, RuntimeError) as error:  # torch wraps the file's errors
        raise StorageError(
            f"{path}: the checkpoint could not be written ({reason(error)}); an earlier one is unchanged"
        ) from error


def read(
    path: str | Path,
    map_location: str | Callable[..., Any] = "meta",
    check: bool = False,
    mapped: bool = False,
) -> dict[str, Any]:
    """Reads a checkpoint; the default `map_location` reads only the shapes and types of its tensors.

    Args:
        path: Its file.
        map_location: As for torch.load.
        check: Whether to compare all contents with their checksums, which torch does not do.
        mapped: Whether tensors are read from the file when they are used; the file must not change. Needs
            `map_location: cpu`.

    Raises:
        CheckpointError: It is missing, damaged, not a checkpoint of Lightning, or contains more than plain values.
    """
    try:
        structure.check_contents(archive.check(path, checksums=check))
        checkpoint: dict[str, Any] = torch.load(path, map_location=map_location, weights_only=True, mmap=mapped)
        if VERSION not in checkpoint:
            renew = functools.partial(current_names, trusted=False)
            for key, of_today in ((CONFIG, renew), ("hyper_parameters", renew), ("callbacks", current_callbacks)):
                if key in checkpoint:
                    checkpoint[key] = of_today(checkpoint[key])
    except structure.BadStructure as error:
        message = f"ckpt_path: {str(path)!r} is not a checkpoint of a run: {error}; accepted: files like last.ckpt"
        raise CheckpointError(message) from error
    except archive.UnsafeArchive as error:
        raise CheckpointError(
            f"ckpt_path: {str(path)!r} contains more than tensors and plain values, and reading it could run code: "
            f"{error}; accepted: checkpoints that bytelm writes"
        ) from error
    except OSError as error:
        raise CheckpointError(f"ckpt_path: {str(path)!r} cannot be read: {error.strerror or error}") from error
    except Exception as error:  # torch.load can raise anything for a damaged file
        raise CheckpointError(f"ckpt_path: {str(path)!r} is damaged or not a checkpoint ({reason(error)})") from error
    return checkpoint


@dataclass(frozen=True)
class Contents:
    """Named access to a checkpoint. Lightning writes the contents, and callbacks/resume.py the config of the run.

    Attributes:
        checkpoint: The contents.
        path: Its file, for messages.
    """

    checkpoint: Mapping[str, Any]
    path: str | Path

    @property
    def config(self) -> Mapping[str, Any]:
        """The resolved config of the run; empty if bytelm's commands did not write the checkpoint."""
        return self.checkpoint.get(CONFIG) or {}

    @property
    def weights(self) -> dict[str, torch.Tensor]:
        """All tensors of the model's state."""
        return self.checkpoint["state_dict"]

    @property
    def network(self) -> dict[str, torch.Tensor]:
        """The tensors of the network, which is `gpt` in the model."""
        return {name: tensor for name, tensor in self.weights.items() if name.startswith("gpt.")}

    @property
    def has_budget(self) -> bool:
        """Whether it is of a run under a TimeBudget."""
        return "TimeBudget" in (self.checkpoint.get("callbacks") or {})

    @property
    def steps(self) -> int:
        """Steps that the run had trained."""
        return self.budget["steps"]

    @property
    def budget(self) -> Mapping[str, Any]:
        """State of the run's TimeBudget."""
        return self._state("TimeBudget")

    @property
    def rewinds(self) -> int:
        """Number of the run's rewinds after a divergence."""
        return self._state("Divergence")["rewinds"]

    def state_of(self, datamodule: Any) -> dict[str, Any]:
        """The state of the data: the position and the corpus; empty if no data were read."""
        return self.checkpoint.get(type(datamodule).__qualname__) or {}  # Lightning's key for it

    def _state(self, callback: str) -> dict[str, Any]:
        try:
            return self.checkpoint["callbacks"][callback]  # Lightning's key for a callback: the name of its class
        except (KeyError, TypeError) as error:
            message = f"ckpt_path: {str(self.path)!r} cannot be resumed from: it lacks the state of {callback}"
            raise CheckpointError(message) from error


def set_counters(
    checkpoint: dict[str, Any], steps: int, batches_per_step: int, batches_per_epoch: int | None = None
) -> None:
    """Sets Lightning's counters in a checkpoint to their values after a number of finished steps.

    The saved values depend on the place in Lightning's loop (after a step, in a validation, at the end). From some of
    these places Lightning would continue with one step more or less. Runs of version 0.1.0 had one endless epoch; they
    resume in the epoch that contains their last step.

    Args:
        checkpoint: The checkpoint to restore.
        steps: Number of finished steps.
        batches_per_step: Batches whose gradients are accumulated into a step.
        batches_per_epoch: Length of an epoch of the resumed run; None: one endless epoch.
    """
    if steps == 0:
        checkpoint.pop("loops")
        return
    loops = checkpoint["loops"]["fit_loop"]
    batches = steps * batches_per_step
    epochs, in_epoch = divmod(batches, batches_per_epoch) if batches_per_epoch else (0, batches)
    # In the middle of an epoch Lightning itself counts the last batch as completed, and as one that stepped. After a
    # whole number of epochs it does not: it starts an epoch.
    uncounted = 1 if in_epoch else 0
    loops["epoch_loop.batch_progress"] = {
        "total": _ended(batches, uncounted),
        "current": _ended(in_epoch, uncounted),
        "is_last_batch": False,
    }
    loops["epoch_loop.state_dict"]["_batches_that_stepped"] = steps - uncounted
    for event in loops["epoch_loop.automatic_optimization.optim_progress"]["optimizer"].values():
        for count in event.values():
            count.update(dict.fromkeys(count, steps))
    epoch = {"ready": epochs + uncounted, "started": epochs + uncounted, "processed": epochs, "completed": epochs}
    loops["epoch_progress"] = {"total": epoch, "current": dict(epoch)}
    nothing = _ended(0, 0)
    loops["epoch_loop.val_loop.batch_progress"] = {"total": nothing, "current": nothing, "is_last_batch": False}


def _ended(batches: int, uncounted: int) -> dict[str, int]:
    """Lightning's counts when so many batches have ended."""
    return {"ready": batches, "started": batches, "processed": batches, "completed": batches - uncounted}


def other_version(checkpoint: Mapping[str, Any]) -> str:
    """The end of a message about a checkpoint of another version of bytelm; empty for this version."""
    version = checkpoint.get(VERSION, "0.1.0 or earlier")
    return "" if version == bytelm.__version__ else f" (written by bytelm {version}; this is {bytelm.__version__})"
