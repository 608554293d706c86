"""Checkpoint files: written atomically, read without running code, compared with the config before training.

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
from torch import nn

import bytelm
from bytelm.config.flat import classes_in, flat
from bytelm.config.renamed import current_callbacks, current_names
from bytelm.errors import CheckpointError, StorageError
from bytelm.runs import archive, structure
from bytelm.system.files import replacing

CONFIG = "config"  # key of the run's config
NEEDED = ("callbacks", "loops", "lr_schedulers", "global_step", "epoch", "optimizer_states")  # of a resumed run
# The sections that define the training; a run can resume with another budget and on other devices.
COMPARED = ("data", "lr_schedule", "schedules", "model")
TRAINED = "current_model_state"  # WeightAveraging's key for the trained weights, where `state_dict` has the average
# These are compared too when a run is resumed: they change the training or the order of batches.
RESUMED = (
    "seed_everything",
    *(f"trainer.{key}" for key in ("precision", "plugins", "strategy", "devices", "num_nodes")),
    *(f"trainer.{key}" for key in ("accumulate_grad_batches", "gradient_clip_val", "gradient_clip_algorithm")),
)
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


def check_compatible(
    path: str | Path, checkpoint: Mapping[str, Any], model: nn.Module, config: Mapping[str, Any]
) -> list[str]:
    """Checks that a model can load a checkpoint's weights.

    Args:
        path: The checkpoint, for the message.
        checkpoint: Its contents.
        model: The module that loads the weights.
        config: The config of the new run.

    Returns:
        The keys whose values differ without making the weights incompatible, each as `key: a in the checkpoint, b now`.

    Raises:
        CheckpointError: It cannot load them; the message names the keys of the config that differ.
    """
    saved = Contents(checkpoint, path).config
    differing = differences(saved, config) if saved else []
    current = model.state_dict()
    theirs, ours = (
        {name: tuple(value.shape) for name, value in state.items() if not name.endswith("_extra_state")}
        for state in (checkpoint["state_dict"], current)
    )
    for name, value in current.items():
        text = checkpoint["state_dict"].get(name)
        if name.endswith("_extra_state") and not (
            isinstance(text, torch.Tensor) and text.dtype == value.dtype and text.ndim == value.ndim
        ):
            message = f"ckpt_path: {str(path)!r} is of another model; it lacks the text of {name}"
            raise CheckpointError(message + other_version(checkpoint))
    for name, value in current.items():
        given = checkpoint["state_dict"].get(name)
        if given is not None and given.dtype.is_floating_point != value.dtype.is_floating_point:
            message = f"is of another model; {name}: {given.dtype} in the checkpoint, {value.dtype} now"
            raise CheckpointError(f"ckpt_path: {str(path)!r} {message}")
    # Tied and untied embeddings have the same keys and shapes; only half of an untied pair would be loaded.
    if theirs != ours or any(line.startswith("model.gpt.tie_embeddings:") for line in differing):
        of_network = [line for line in differing if line.startswith("model.gpt.")]
        if not of_network:
            name = next(name for name in sorted({**theirs, **ours}) if theirs.get(name) != ours.get(name))
            of_network = [f"{name}: {theirs.get(name, 'absent')} in the checkpoint, {ours.get(name, 'absent')} now"]
        message = f"ckpt_path: {str(path)!r} is of another model; {'; '.join(of_network)}"
        raise CheckpointError(message + other_version(checkpoint))
    return differing


def check_optimizer(path: str | Path, checkpoint: Mapping[str, Any], config: Mapping[str, Any]) -> None:
    """Checks that training can resume with a checkpoint's optimizer.

    Raises:
        CheckpointError: The checkpoint contains only weights, or the state of an optimizer of another class.
    """
    if not checkpoint.get("optimizer_states"):
        raise CheckpointError(f"ckpt_path: {str(path)!r} contains weights but no optimizer state to resume with")
    if missing := [key for key in NEEDED if key not in checkpoint]:
        raise CheckpointError(f"ckpt_path: {str(path)!r} cannot be resumed from: it lacks {', '.join(missing)}")
    sections = (given.get("model", {}) for given in (Contents(checkpoint, path).config, config))
    theirs, ours = (
        {key: value["class_path"] for key, value in classes_in(section.get("optimizer"), "model.optimizer")}
        for section in sections
    )
    for key in theirs:
        if key in ours and theirs[key] != ours[key]:
            message = f"ckpt_path: {str(path)!r}; {key}: {theirs[key]} in the checkpoint, {ours[key]} now"
            raise CheckpointError(message + other_version(checkpoint))


def check_states(
    path: str | Path, checkpoint: Mapping[str, Any], likes: Mapping[tuple[str, ...], Any], optimizers: Any
) -> None:
    """Checks that the states in a checkpoint can be restored.

    Args:
        path: The checkpoint, for the message.
        checkpoint: Its contents; check_optimizer has accepted it.
        likes: Current states of the objects that will load them, by their place in the checkpoint, such as
            `("callbacks", "TimeBudget")`.
        optimizers: Pairs of a saved state and the optimizer that will load it.

    Raises:
        CheckpointError: A state does not have the structure of its object.
    """
    try:
        for keys, like in likes.items():
            saved: Any = checkpoint
            for key in keys:
                saved = saved.get(key) if isinstance(saved, Mapping) else None
            if saved is not None:
                structure.check_like(saved, like, ".".join(keys), further=keys[0] == "loops")
        for number, (state, optimizer) in enumerate(optimizers):
            structure.check_optimizer_state(state, optimizer, f"optimizer_states.{number}")
    except structure.BadStructure as error:
        raise CheckpointError(f"ckpt_path: {str(path)!r} cannot be resumed from: {error}") from error


def check_average(path: str | Path, checkpoint: Mapping[str, Any]) -> bool:
    """Whether a checkpoint's weights are an average. It then has the trained weights, too.

    Raises:
        CheckpointError: The trained weights are there, but Lightning's WeightAveraging cannot restore them.
    """
    if TRAINED not in checkpoint:
        return False
    trained, average = checkpoint[TRAINED], checkpoint["state_dict"]
    count = (checkpoint.get("averaging_state") or {}).get("n_averaged")
    try:
        structure.check_like(trained, average, TRAINED)
        if trained.keys() != average.keys() or not isinstance(count, torch.Tensor) or count.ndim:
            raise structure.BadStructure(f"{TRAINED} and averaging_state are not those of the weights")
    except structure.BadStructure as error:
        raise CheckpointError(f"ckpt_path: {str(path)!r} cannot be resumed from: {error}") from error
    return True


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


def differences(saved: Mapping[str, Any], config: Mapping[str, Any], compared: tuple[str, ...] = COMPARED) -> list[str]:
    """Keys in which the training of two configs differs, each as `key: a in the checkpoint, b now`.

    Args:
        saved: The config in a checkpoint.
        config: That of the run that begins.
        compared: Keys that are compared, with all below them.
    """
    theirs, ours = flat(saved), flat(config)
    return [
        f"{key}: {theirs.get(key, 'absent')} in the checkpoint, {ours.get(key, 'absent')} now"
        for key in sorted({**theirs, **ours})
        if theirs.get(key) != ours.get(key)
        and any(key == name or key.startswith(f"{name}.") for name in compared)
        and key != "model.compile"
    ]


def reason(error: Exception) -> str:
    """The first line of an exception's message: that of the system error that caused it, or of the first cause."""
    cause: BaseException = error
    while not isinstance(cause, OSError) and (behind := cause.__cause__ or cause.__context__) is not None:
        cause = behind
    text = getattr(cause, "strerror", None) or str(cause).strip() or type(cause).__name__
    return text.splitlines()[0]
