"""Whether a checkpoint fits a run: its weights the model, its states the objects that resume, its config this one.

Everything is compared before training begins, so that a message can name the keys of the config that differ.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from bytelm.config.flat import classes_in, flat
from bytelm.errors import CheckpointError
from bytelm.runs import structure
from bytelm.runs.checkpoints import TRAINED, Contents, other_version

NEEDED = ("callbacks", "loops", "lr_schedulers", "global_step", "epoch", "optimizer_states")  # of a resumed run
# The sections that define the training; a run can resume with another budget and on other devices.
COMPARED = ("data", "lr_schedule", "schedules", "model")
# These are compared too when a run is resumed: they change the training or the order of batches.
RESUMED = (
    "seed_everything",
    *(f"trainer.{key}" for key in ("precision", "plugins", "strategy", "devices", "num_nodes")),
    *(f"trainer.{key}" for key in ("accumulate_grad_batches", "gradient_clip_val", "gradient_clip_algorithm")),
)


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
