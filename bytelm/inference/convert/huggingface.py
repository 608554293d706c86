"""Converts GPT-2s from and to Hugging Face folders: config.json, model.safetensors and the tokenizer."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bytelm.config.messages import note
from bytelm.data.tokenizer import ByteTokenizer, Tokenizer, load_tokenizer
from bytelm.errors import CheckpointError, ConfigError, DataError, StorageError, reason
from bytelm.inference.convert.gpt2 import FEEDFORWARDS, GPT2, size
from bytelm.system.files import replacing, write_text

ALIASES = {"gelu_pytorch_tanh": "gelu_new", "swish": "silu"}  # further names of activations
# Other options of the computation, with the only values that bytelm supports.
CONSTANTS = {
    "model_type": "gpt2",
    "scale_attn_weights": True,
    "scale_attn_by_inverse_layer_idx": False,
    "add_cross_attention": False,
}
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")


def read_huggingface(folder: Path) -> GPT2:
    """Reads a folder with config.json and model.safetensors, in one file or in shards.

    The tokenizer is the folder's tokenizer.json, if there is one.

    Raises:
        CheckpointError: One of the first two is missing, damaged, or not of a GPT-2.
        ConfigError: The package safetensors is missing.
    """
    path = folder / "config.json"
    config = _read_json(path)
    for key, constant in CONSTANTS.items():
        _accept(path, config, key, constant, [constant])
    activation = _accept(path, config, "activation_function", "gelu_new", [*FEEDFORWARDS, *ALIASES])
    eps = config.get("layer_norm_epsilon", 1e-5)
    if not isinstance(eps, float) or not eps > 0:
        raise CheckpointError(f"{path}: layer_norm_epsilon: {eps!r} cannot be used; accepted: a number above 0")
    gpt2 = GPT2(
        d_model=size(path, config, "n_embd"),
        n_heads=size(path, config, "n_head"),
        n_layers=size(path, config, "n_layer"),
        d_ff=4 * size(path, config, "n_embd") if config.get("n_inner") is None else size(path, config, "n_inner"),
        vocab_size=size(path, config, "vocab_size"),
        max_seq_len=size(path, config, "n_positions"),
        activation=ALIASES.get(activation, activation),
        eps=eps,
        tied=_accept(path, config, "tie_word_embeddings", True, [True, False]),
    )
    tensors = {
        # The head has no prefix. Some folders have no prefix at all.
        name if name == "lm_head.weight" else f"transformer.{name.removeprefix('transformer.')}": tensor
        for file in _safetensors_files(folder)
        for name, tensor in _read_safetensors(file).items()
    }
    gpt2 = gpt2.filled(folder, tensors, lambda parameter: f"transformer.{parameter.theirs}", "lm_head.weight", True)
    return replace(gpt2, tokenizer=_find_tokenizer(folder, gpt2.vocab_size))


def write_huggingface(gpt2: GPT2, folder: Path) -> None:
    """Writes a folder that transformers' GPT2LMHeadModel and AutoTokenizer load.

    Biases that the network does not have are written as zeros.

    Raises:
        ConfigError: The package safetensors is missing, or no tokenizer.json can represent the tokenizer.
        DataError: The tokenizer cannot be loaded.
        StorageError: It cannot be written.
    """
    complete = replace(gpt2, attention_bias=True, feedforward_bias=True, norm_bias=True)
    tensors = {}
    for parameter in complete.parameters():
        tensor = gpt2.weights.get(parameter.ours)
        tensor = torch.zeros(parameter.shape) if tensor is None else tensor
        tensors[f"transformer.{parameter.theirs}"] = (tensor.t() if parameter.is_conv1d else tensor).contiguous()
    if not gpt2.tied:
        tensors["lm_head.weight"] = gpt2.head
    tokenizer = None if gpt2.tokenizer is None else load_tokenizer(gpt2.tokenizer)
    end_of_text = None if tokenizer is None else tokenizer.end_of_text
    config = {
        "architectures": ["GPT2LMHeadModel"],
        **CONSTANTS,
        "tie_word_embeddings": gpt2.tied,
        "n_embd": gpt2.d_model,
        "n_head": gpt2.n_heads,
        "n_layer": gpt2.n_layers,
        "n_inner": gpt2.d_ff,
        "vocab_size": gpt2.vocab_size,
        "n_positions": gpt2.max_seq_len,
        "activation_function": gpt2.activation,
        "layer_norm_epsilon": gpt2.eps,
        "attn_pdrop": 0.0,
        "embd_pdrop": 0.0,
        "resid_pdrop": 0.0,
        "bos_token_id": end_of_text,
        "eos_token_id": end_of_text,
        "torch_dtype": "float32",
    }
    files = {"config.json": json.dumps(config, indent=2) + "\n"}
    if tokenizer is None:
        note("the tokenizer is not known, and the folder has none; --tokenizer sets one")
    else:
        files |= _tokenizer_files(tokenizer, gpt2.max_seq_len)
    safetensors = _import_safetensors()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with replacing(folder / "model.safetensors") as partial:
            partial.touch()
            mode = partial.stat().st_mode  # save_file leaves a file that only its owner may read
            safetensors.torch.save_file(tensors, partial, metadata={"format": "pt"})
            partial.chmod(mode)
        for name, content in files.items():
            write_text(folder / name, content)
        for name in TOKENIZER_FILES:
            if name not in files:
                (folder / name).unlink(missing_ok=True)  # of an earlier export, of other tokens
    except (OSError, safetensors.SafetensorError) as error:
        raise StorageError(f"{folder}: the model could not be written ({reason(error)})") from error


def _tokenizer_files(tokenizer: Tokenizer, max_seq_len: int) -> dict[str, str]:
    """The contents of a tokenizer's files, by name."""
    content = tokenizer.to_json()
    config: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": max_seq_len,
        "clean_up_tokenization_spaces": False,  # it would remove spaces before punctuation
    }
    added = {token["id"]: token["content"] for token in json.loads(content)["added_tokens"]}
    if tokenizer.end_of_text is not None:
        config["bos_token"] = config["eos_token"] = added[tokenizer.end_of_text]
    return dict(zip(TOKENIZER_FILES, (content, json.dumps(config, indent=2) + "\n"), strict=True))


def _find_tokenizer(folder: Path, vocab_size: int) -> str | None:
    """The name of the tokenizer in a folder's tokenizer.json, if bytelm can use it."""
    file = folder / TOKENIZER_FILES[0]
    if not file.is_file():
        return None
    try:
        if file.read_text(encoding="utf-8") == ByteTokenizer().to_json():
            return "bytes"  # an export of bytelm's, whose rows begin with a marker
        tokenizer = load_tokenizer(str(file.absolute()))
        if tokenizer.vocab_size > vocab_size:
            raise DataError("tokenizer", str(file), f"it has {tokenizer.vocab_size} tokens, the network {vocab_size}")
    except (DataError, OSError, ValueError) as error:
        note(f"{file} is not used: {error}; --tokenizer names another tokenizer")
        return None
    return tokenizer.name


def _accept(path: Path, config: Mapping[str, Any], key: str, default: Any, accepted: Sequence[Any]) -> Any:
    value = config.get(key, default)
    if value not in accepted:
        raise CheckpointError(f"{path}: {key}: {value!r} cannot be used; accepted: {', '.join(map(repr, accepted))}")
    return value


def _read_json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(values, dict):
            raise ValueError("it is not an object with keys")
    except (OSError, RecursionError, ValueError) as error:
        accepted = "accepted: a folder with config.json and model.safetensors"
        raise CheckpointError(f"{path} cannot be read ({reason(error)}); {accepted}") from error
    return values


def _safetensors_files(folder: Path) -> list[Path]:
    """The files with a model's weights: one, or those of an index."""
    index = folder / "model.safetensors.index.json"
    if (folder / "model.safetensors").exists() or not index.exists():
        return [folder / "model.safetensors"]
    shards = _read_json(index).get("weight_map")
    if not isinstance(shards, dict) or not all(isinstance(shard, str) for shard in shards.values()):
        raise CheckpointError(f"{index} lacks weight_map, the file of each tensor")
    return [folder / shard for shard in sorted(set(shards.values()))]


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    safetensors = _import_safetensors()
    try:
        tensors: dict[str, Tensor] = safetensors.torch.load_file(path)
    except (OSError, safetensors.SafetensorError) as error:
        accepted = "accepted: weights as safetensors"
        raise CheckpointError(f"{path} cannot be read ({reason(error)}); {accepted}") from error
    return tensors


def _import_safetensors() -> Any:
    try:
        import safetensors.torch
    except ModuleNotFoundError as error:
        advice = 'run pip install -e ".[tokens]"'
        raise ConfigError("huggingface", error.name, f"safetensors is not installed; {advice}") from error
    return safetensors
