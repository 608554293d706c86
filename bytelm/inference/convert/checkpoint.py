"""Converts GPT-2s from and to bytelm's checkpoints.

Options that a GPT-2 does not have are rejected by their keys. A part that computes the same as GPT-2's, for example
with other kernels, declares this (parts/contract.py). All other options must be those of the GPT-2 of the same sizes.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import bytelm
from bytelm.errors import ConfigError
from bytelm.gpt import GPT
from bytelm.inference.convert.gpt2 import FEEDFORWARDS, GPT2, GPT2_TOKENS
from bytelm.inference.load import load_network, tokenizer_name
from bytelm.parts.norm import LayerNorm
from bytelm.runs.checkpoints import VERSION, write

# Options that do not affect the output of a trained network in float32.
OF_TRAINING = ("dropout", "init", "std", "residual_autocast")


def read_checkpoint(path: str | Path, configs: Sequence[str | Path] = ()) -> GPT2:
    """Reads a bytelm checkpoint.

    Args:
        path: The checkpoint.
        configs: Config files instead of the config in the checkpoint, for parts of the user's own.

    Raises:
        CheckpointError: It is missing, damaged, or its config does not match its weights.
        ConfigError: The network has something that a GPT-2 does not have.
    """
    gpt, config = load_network(path, configs)
    network = config["model"]["gpt"]
    options = network["init_args"]
    weights = gpt.state_dict()
    accepted = "accepted: GELU, ReLU, SiLU and ReLUSquared, or a part that declares gpt2_activation"
    activation = _declared(gpt, "feedforward", "gpt2_activation", FEEDFORWARDS, accepted)
    _declared(gpt, "attention", "gpt2_attention", (True,), "accepted: SDPA, or a part that declares gpt2_attention")
    up = weights.get("blocks.0.feedforward.up.weight")
    gpt2 = GPT2(
        d_model=gpt.d_model,
        n_heads=options["n_heads"],
        n_layers=len(gpt.blocks),
        d_ff=4 * gpt.d_model if up is None else up.shape[0],
        vocab_size=gpt.vocab_size,
        max_seq_len=gpt.max_seq_len,
        attention_bias="blocks.0.attention.qkv.bias" in weights,
        feedforward_bias="blocks.0.feedforward.up.bias" in weights,
        norm_bias="norm.bias" in weights,
        activation=activation,
        eps=gpt.norm.eps if isinstance(gpt.norm, LayerNorm) else 1e-5,
        tied=options["tie_embeddings"],
        tokenizer=tokenizer_name(config),
    )
    expected = gpt2.model_config()["gpt"]
    theirs = expected["init_args"]
    theirs["d_ff"], theirs["attention"]["init_args"]["n_kv_heads"] = gpt2.d_ff, gpt2.n_heads  # defaults, written out
    theirs["feedforward"] = options["feedforward"]  # their declarations tell all that matters
    theirs["attention"]["class_path"] = options["attention"]["class_path"]
    if others := [*_others(network, expected, "model.gpt")]:
        (key, value, wanted), *rest = others
        also = "".join(f"; {key}: {value!r} must be {wanted!r}" for key, value, wanted in rest)
        raise ConfigError(key, value, f"it must be {wanted!r} in a GPT-2{also}")
    return gpt2.filled(Path(path), weights, lambda parameter: parameter.ours, "head.weight")


def write_checkpoint(gpt2: GPT2, path: Path) -> None:
    """Writes a bytelm checkpoint: the weights and the config that they need.

    Raises:
        StorageError: It cannot be written.
    """
    write(as_checkpoint(gpt2), path)


def as_checkpoint(gpt2: GPT2) -> dict[str, Any]:
    """The contents of a bytelm checkpoint with these weights."""
    tokens = GPT2_TOKENS if gpt2.tokenizer == "gpt2" else gpt2.vocab_size
    data = {"tokenizer": gpt2.tokenizer, "vocab_size": tokens, "seq_len": gpt2.max_seq_len}
    model = gpt2.model_config()
    return {
        VERSION: bytelm.__version__,
        "pytorch-lightning_version": version("lightning"),
        "state_dict": gpt2.state_dict(),
        "hyper_parameters": {**model, "_instantiator": "lightning.pytorch.cli.instantiate_module"},
        "config": {
            "model": model,
            "data": {"class_path": "bytelm.data.shards.TokenShards", "init_args": data},
        },
    }


def _declared(gpt: GPT, key: str, name: str, values: Collection[Any], accepted: str) -> Any:
    """The declaration of the parts of all blocks. Inherited ones do not count: a subclass may compute something else.

    Raises:
        ConfigError: A part declares none of the values, or another value than the other parts.
    """
    parts: list[Any] = [getattr(block, key) for block in gpt.blocks]
    declared = [getattr(part, name) if name in vars(type(part)) else None for part in parts]
    for part, value in zip(parts, declared, strict=True):
        if value not in values or value != declared[0]:
            raise ConfigError(f"model.gpt.{key}", type(part).__name__, f"GPT-2 has no equivalent; {accepted}")
    return declared[0]


def _others(ours: Mapping[str, Any], expected: Mapping[str, Any], key: str) -> Iterator[tuple[str, Any, Any]]:
    """Yields the options by which a network differs from the GPT-2 of its sizes: the key, the value and GPT-2's."""
    for name, value in ours.items():
        if value is None or name in OF_TRAINING:
            continue
        inner = key if name in ("class_path", "init_args") else f"{key}.{name}"
        if isinstance(value, Mapping) and isinstance(expected.get(name), Mapping):
            yield from _others(value, expected[name], inner)
        elif value != expected.get(name):
            yield inner, value, expected.get(name)
