"""Loads trained models: the network of a checkpoint and the tokenizer of its text.

A checkpoint contains the config of its run; the corpus and other files are not needed. The config names classes, and
importing a class runs the code of its module. A checkpoint can come from a stranger, so its own config can name only
parts of bytelm. For a network with parts of the user's, the user gives the config.
"""

import inspect
import json
from argparse import ArgumentError, ArgumentParser
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jsonargparse import Namespace
from torch import nn
from torch.overrides import TorchFunctionMode

from bytelm.config import keys
from bytelm.config.messages import clarify, note
from bytelm.config.parser import ConfigFileParser
from bytelm.config.untrusted_config import foreign, leaves
from bytelm.data.tokenizer import Tokenizer, load_tokenizer, tokenizer_of_shards
from bytelm.errors import CheckpointError, ConfigError, OutOfMemory, reason, run_error
from bytelm.gpt import GPT
from bytelm.parts.contract import known_parts
from bytelm.runs.checkpoint_checks import check_compatible
from bytelm.runs.checkpoints import Contents, other_version, read
from bytelm.runs.choice import NAMES, find_checkpoint
from bytelm.system.memory import limited_memory

RANDOM = {f"{name}_" for name in ("normal", "uniform", "trunc_normal", "xavier_normal", "xavier_uniform")}
RANDOM |= {f"kaiming_{name}_" for name in ("normal", "uniform")}
SMALL_SIZE = 2**22  # sizes up to this build quickly, in any option
MOST_TABLE_BYTES = 2**32  # of tables that a network computes beside its weights, such as those of positions
LONGEST_MESSAGE = 500  # characters


@dataclass(frozen=True)
class Trained:
    """A trained model.

    Attributes:
        gpt: The network, in evaluation mode, its weights frozen.
        tokenizer: Converts text to tokens and tokens to text.
    """

    gpt: GPT
    tokenizer: Tokenizer


def add_arguments(parser: ArgumentParser) -> None:
    """Adds the options `ckpt_path`, `experiment`, `config` and `device`, which `load_given` reads."""
    parser.add_argument(
        "--ckpt_path",
        required=True,
        type=str,
        help="A checkpoint; the folder of a run, for its best.ckpt; or last or best, for that of the newest run.",
    )
    parser.add_argument(
        "--experiment",
        type=str,
        help="The experiment whose newest run last and best refer to; default: all experiments.",
    )
    parser.add_argument(
        "--config",
        action="append",
        default=[],
        help="Config of its run, instead of the one in the checkpoint; needed for parts of your own. Can be repeated.",
    )
    parser.add_argument("--device", type=str, default="auto", help="Such as cpu or cuda; auto: a GPU, if there is one.")


def load_given(options: dict[str, Any]) -> Trained:
    """Loads the model that the options of `add_arguments` name, and removes these options."""
    path, experiment = options.pop("ckpt_path"), options.pop("experiment")
    if experiment is not None and path not in NAMES:
        raise ConfigError("experiment", experiment, f"accepted with ckpt_path: {', '.join(NAMES)}; it is {path!r}")
    file = find_checkpoint(path, experiment)
    if path in NAMES:
        note(f"ckpt_path {path} is {file}")
    return load(file, options.pop("config"), options.pop("device"))


def load(ckpt_path: str | Path, configs: Sequence[str | Path] = (), device: str = "cpu") -> Trained:
    """Loads the network of a checkpoint, and its tokenizer.

    Args:
        ckpt_path: The checkpoint's file; the folder of a run; or `last` or `best`, those of the newest run.
        configs: Config files that replace the config in the checkpoint; later ones take precedence.
        device: Device of the network, such as `cuda`; `auto`: a GPU, if there is one.

    Raises:
        CheckpointError: It is missing, damaged, unsafe, has no config, or is of another network than the configs'.
        ConfigError: The configs or the device are invalid.
        DataError: The tokenizer cannot be loaded.
    """
    gpt, config = load_network(ckpt_path, configs)
    if (name := tokenizer_name(config)) is None:
        accepted = "accepted: what made its tokens, in the run's config (--config) or given to import (--tokenizer)"
        raise ConfigError("data.tokenizer", None, accepted)
    tokenizer = load_tokenizer(name, "data.tokenizer")
    if tokenizer.vocab_size > gpt.vocab_size:
        accepted = f"accepted: up to {gpt.vocab_size} tokens, the network's; it has {tokenizer.vocab_size}"
        raise ConfigError("data.tokenizer", tokenizer.name, accepted)
    return Trained(_move(gpt, device), tokenizer)


def load_network(ckpt_path: str | Path, configs: Sequence[str | Path] = ()) -> tuple[GPT, Mapping[str, Any]]:
    """Loads the network of a checkpoint, in evaluation mode, on the CPU.

    Args:
        ckpt_path: See `load`.
        configs: See `load`.

    Returns:
        The network, and the config that it was built from.

    Raises:
        CheckpointError: See `load`.
        ConfigError: The configs are invalid.
    """
    ckpt_path = find_checkpoint(ckpt_path)
    contents = Contents(read(ckpt_path, map_location="cpu", check=True, mapped=True), ckpt_path)
    network, config = _network_of_files(contents, configs) if configs else _own_network(contents)
    network.load_state_dict(contents.network)
    gpt: Any = network["gpt"]
    return gpt.eval().requires_grad_(False), config


def tokenizer_name(config: Mapping[str, Any]) -> str | None:
    """The tokenizer that a config's data names, as for `load_tokenizer`; None if it is not known."""
    data = (config.get("data") or {}).get("init_args") or {}
    name = data.get("tokenizer", "bytes")  # data without the option are bytes
    path = data.get("path")  # for other data than shards, a list too
    return None if name is None else tokenizer_of_shards(str(name), path if isinstance(path, str) else None)


def _network_of_files(contents: Contents, configs: Sequence[str | Path]) -> tuple[nn.ModuleDict, dict[str, Any]]:
    """The network of config files, and their contents."""
    parser = _parser_of_files()
    try:
        parsed = parser.parse_args([f"--config={path}" for path in configs])
    except ArgumentError as error:
        message = clarify(str(error), keys.classes(), nested=(GPT, *known_parts()))
        raise ConfigError("config", [*map(str, configs)], message) from error
    if parsed.model.gpt is None:
        raise ConfigError("config", [*map(str, configs)], "model.gpt is missing; accepted: whole configs of a run")
    config = json.loads(parser.dump(parsed, format="json"))
    network = _build(parser, parsed)
    differing = _check_network(contents, network, config)
    if of_network := [line for line in differing if line.startswith("model.gpt.")]:
        note(f"{contents.path} was written with other values: {'; '.join(of_network)}")
    return network, config


def _own_network(contents: Contents) -> tuple[nn.ModuleDict, Mapping[str, Any]]:
    """The network of a checkpoint's own config, which is not trusted, and that config.

    Raises:
        CheckpointError: The config is invalid, does not match the weights, or needs much more memory than the weights.
    """
    config, path = _own_config(contents), contents.path
    version = other_version(contents.checkpoint)
    _check_sizes(contents)
    parser = _parser()
    n_bytes = sum(tensor.nbytes for tensor in contents.network.values())
    try:
        parsed = parser.parse_object({"model": {"gpt": config["model"]["gpt"]}})
        with _WithoutInitialization(), limited_memory(2 * n_bytes + MOST_TABLE_BYTES):
            network = _build(parser, parsed)
    except ArgumentError as error:
        message = " ".join(clarify(str(error), {}, nested=(GPT, *known_parts())).split())
        raise CheckpointError(f"ckpt_path: {str(path)!r}: {message[:LONGEST_MESSAGE]}{version}") from error
    except Exception as error:  # from a constructor, for values that its checks do not expect
        if isinstance(run_error(error), OutOfMemory):
            message = f"its network takes more memory than its weights, by {MOST_TABLE_BYTES >> 30} GB or more"
            accepted = "accepted: a config that you trust, such as the run's (--config)"
            raise CheckpointError(f"ckpt_path: {str(path)!r}: {message}; {accepted}") from None
        message = " ".join(f"{type(error).__name__}: {error}".split())[:LONGEST_MESSAGE]
        raise CheckpointError(f"ckpt_path: {str(path)!r}: its config makes no network ({message}){version}") from error
    _check_network(contents, network, config)
    return network, config


class _WithoutInitialization(TorchFunctionMode):
    """Inside, random initialisation does nothing, because the weights come from a checkpoint."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if getattr(func, "__name__", "") in RANDOM:
            return args[0] if args else (kwargs or {})["tensor"]
        return func(*args, **(kwargs or {}))


def _check_network(contents: Contents, network: nn.ModuleDict, config: Mapping[str, Any]) -> list[str]:
    checkpoint = {**contents.checkpoint, "state_dict": contents.network}
    return check_compatible(contents.path, checkpoint, network, config)


def _check_sizes(contents: Contents) -> None:
    """Rejects sizes that do not match the weights and would take very long to build.

    Raises:
        CheckpointError: There is such a size.
    """
    weights = contents.network
    most = max(SMALL_SIZE, sum(tensor.numel() for tensor in weights.values()))
    for key, value in leaves(contents.config["model"]["gpt"], "model.gpt"):
        largest = len(weights) if key.endswith(".n_layers") else most
        if isinstance(value, int | float) and abs(value) > largest:
            raise CheckpointError(f"ckpt_path: {str(contents.path)!r}: {key}: {value!r} is not a size of its weights")


def _parser() -> ConfigFileParser:
    """A parser of the network's config."""
    parser = ConfigFileParser(exit_on_error=False)
    parser.add_argument("--model.gpt", type=GPT)
    return parser


def _parser_of_files() -> ConfigFileParser:
    """A parser of config files that checks only the network and the data; it needs Lightning."""
    import bytelm.data.corpora
    import bytelm.data.shards  # noqa: F401 (these two make the short names of all data known)

    known = keys.classes()
    parser = _parser()
    parser.rejects_null = False
    parser.add_argument("--config", action="config")
    parser.add_argument("--data", type=known["data"])
    of_training = [f"model.{name}" for name in inspect.signature(known["model"]).parameters if name != "gpt"]
    for key in (*of_training, *(keys.KEYS.keys() - {"model", "data"}), *keys.METHOD_KEYS):
        parser.add_argument(f"--{key}")
    return parser


def _build(parser: ConfigFileParser, parsed: Namespace) -> nn.ModuleDict:
    """A module with the network as `gpt`, like a LanguageModel."""
    return nn.ModuleDict({"gpt": parser.instantiate(Namespace(model=Namespace(gpt=parsed.model.gpt))).model.gpt})


def _own_config(contents: Contents) -> Mapping[str, Any]:
    """The config in a checkpoint.

    Raises:
        CheckpointError: There is none, or it names something other than parts of bytelm.
    """
    config, path = contents.config, contents.path
    try:
        network = config["model"]["gpt"]
    except (KeyError, TypeError):
        message = f"ckpt_path: {str(path)!r} does not say what network it is of; accepted: a config, too (--config)"
        raise CheckpointError(message) from None
    data = config.get("data") or {}
    if not isinstance(data, Mapping) or not isinstance(data.get("init_args") or {}, Mapping):
        raise CheckpointError(f"ckpt_path: {str(path)!r}: data: {data!r} is not a class with its options")
    try:
        found = foreign(network)
    except ConfigError as error:
        raise CheckpointError(f"ckpt_path: {str(path)!r}: {error}") from error
    if found is not None:
        key, value = found
        key = key.replace(".init_args", "").removesuffix(".class_path")
        version = other_version(contents.checkpoint)
        raise CheckpointError(
            f"ckpt_path: {str(path)!r}: {key}: {value!r} is not a part of bytelm, and importing it would run its "
            f"code; accepted: a config that you trust, such as the run's (--config){version}"
        )
    return config


def _move(gpt: GPT, device: str) -> GPT:
    if device == "auto":
        device = str(torch.accelerator.current_accelerator(check_available=True) or "cpu")
    try:
        if torch.device(device).type == "meta":
            raise RuntimeError("it holds no values")
        return gpt.to(device)
    except (AssertionError, RuntimeError) as error:  # from torch, for unknown or missing devices
        raise ConfigError("device", device, f"{reason(error)}; accepted: auto, cpu, cuda, …") from error
