"""`fit --init_from PATH`: initialises a run with the weights of another.

Only the weights are loaded. Optimizer, budget, data position and random states start as in any new run.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from torch import nn

from bytelm.config.messages import note
from bytelm.errors import CheckpointError
from bytelm.inference.convert import as_checkpoint, read_foreign
from bytelm.language_model import LanguageModel
from bytelm.runs.checkpoint_checks import check_compatible
from bytelm.runs.checkpoints import Contents, read
from bytelm.runs.choice import find_checkpoint
from bytelm.runs.record import InitFrom
from bytelm.system.files import sha256_of

KEY = "init_from"
SIZES = ("vocab_size", "max_seq_len", "d_model", "n_layers", "n_heads", "d_ff")  # of GPT


def init_from(model: LanguageModel, given: str, config: Mapping[str, Any]) -> InitFrom:
    """Loads the weights of another run's network into a model.

    Args:
        model: The model, whose own weights are replaced.
        given: A checkpoint of bytelm, the folder of a run, nanoGPT's ckpt.pt, or a Hugging Face folder.
        config: The resolved config of the new run.

    Returns:
        The source of the weights, for the run's record.

    Raises:
        CheckpointError: It is missing, damaged, or of a network with other sizes or parameters.
        ConfigError: It is a Hugging Face folder, and safetensors is not installed.
    """
    try:
        files, checkpoint = _read(Path(given))
        _check_sizes(given, Contents(checkpoint, given).config, config)
        weights = Contents(checkpoint, given).network
        network = nn.ModuleDict({"gpt": model.gpt})
        differing = check_compatible(given, {**checkpoint, "state_dict": weights}, network, config)
    except CheckpointError as error:
        raise CheckpointError(str(error).replace("ckpt_path:", f"{KEY}:", 1)) from error
    network.load_state_dict(weights)
    if of_network := [line for line in differing if line.startswith("model.gpt.")]:
        note(f"{KEY}: {given} was written with other values: {'; '.join(of_network)}")
    return {"path": given if len(files) > 1 else str(files[0]), "sha256": sha256_of(_opened(files))}


def _read(path: Path) -> tuple[list[Path], Mapping[str, Any]]:
    """The files with the weights, and the contents of a bytelm checkpoint with these weights."""
    if (path / "config.json").is_file():
        return sorted(path.glob("*.safetensors")), as_checkpoint(read_foreign(path))
    file = find_checkpoint(path)
    try:
        return [file], read(file, map_location="cpu", check=True)
    except CheckpointError as error:
        try:
            return [file], as_checkpoint(read_foreign(file))  # nanoGPT's
        except CheckpointError:
            raise error from None


def _check_sizes(given: str, saved: Mapping[str, Any], config: Mapping[str, Any]) -> None:
    """Rejects a network of other sizes, even if its weights would fit, as with another max_seq_len."""
    theirs, ours = _sizes(saved), _sizes(config)
    if differing := [key for key in SIZES if theirs and theirs.get(key) != ours.get(key)]:
        listed = "; ".join(f"model.gpt.{key}: {theirs.get(key)} there, {ours.get(key)} here" for key in differing)
        raise CheckpointError(f"{KEY}: {given!r} is of a network of other sizes; {listed}")


def _sizes(config: Mapping[str, Any]) -> dict[str, Any]:
    options = config["model"]["gpt"]["init_args"] if config else {}
    sizes: dict[str, Any] = {key: options.get(key) for key in SIZES} if options else {}
    return sizes | {"d_ff": sizes["d_ff"] or 4 * sizes["d_model"]} if sizes else {}


def _opened(files: list[Path]) -> Iterator[BinaryIO]:
    for path in files:
        with path.open("rb") as file:
            yield file
