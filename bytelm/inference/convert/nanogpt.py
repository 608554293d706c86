"""Converts GPT-2s from and to nanoGPT's ckpt.pt.

nanoGPT reads the characters of its tokens from the meta.pkl of the data set that the checkpoint's config names. Without
one it assumes GPT-2's tokens.
"""

from pathlib import Path
from typing import Any

import torch

from bytelm.config.messages import note
from bytelm.data.meta_pkl import BYTES, Meta, read_meta, write_meta
from bytelm.data.tokenizer import ByteTokenizer, CharacterTokenizer, load_tokenizer
from bytelm.errors import CheckpointError, ConfigError, as_storage_error, reason
from bytelm.inference.convert.gpt2 import GPT2, size
from bytelm.runs import archive
from bytelm.runs.checkpoints import write

ACCEPTED = "accepted: nanoGPT's ckpt.pt, or a Hugging Face folder"


def read_nanogpt(path: Path) -> GPT2:
    """Reads a nanoGPT checkpoint, compiled or not, without running code from it.

    The tokenizer is the meta.pkl beside it, or the one that nanoGPT would read, if there is one.

    Raises:
        CheckpointError: It is missing, damaged, or not a nanoGPT checkpoint.
    """
    try:
        archive.check(path, checksums=True)
        # Memory-mapped: the optimizer's state, two thirds of the file, then needs no memory.
        checkpoint = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    except Exception as error:  # torch.load can raise anything for a damaged file
        raise CheckpointError(f"{path} cannot be read ({reason(error)}); {ACCEPTED}") from error
    args, weights = (checkpoint.get(key) if isinstance(checkpoint, dict) else None for key in ("model_args", "model"))
    if not isinstance(args, dict) or not isinstance(weights, dict):
        raise CheckpointError(f"{path} lacks model_args or model; {ACCEPTED}")
    bias = bool(args.get("bias", True))  # checkpoints from before it was an option have none
    gpt2 = GPT2(
        d_model=size(path, args, "n_embd"),
        n_heads=size(path, args, "n_head"),
        n_layers=size(path, args, "n_layer"),
        d_ff=4 * size(path, args, "n_embd"),
        vocab_size=size(path, args, "vocab_size"),
        max_seq_len=size(path, args, "block_size"),
        attention_bias=bias,
        feedforward_bias=bias,
        norm_bias=bias,
        tokenizer=_find_tokenizer(path, checkpoint.get("config")),
    )
    tensors = {str(name).removeprefix("_orig_mod."): tensor for name, tensor in weights.items()}
    return gpt2.filled(path, tensors, lambda parameter: f"transformer.{parameter.theirs}", "lm_head.weight")


def write_nanogpt(gpt2: GPT2, path: Path) -> None:
    """Writes a checkpoint that nanoGPT's sample.py reads, without an optimizer's state.

    If its tokens are bytes or characters, their meta.pkl is written to a folder beside it.

    Raises:
        ConfigError: nanoGPT cannot represent the network.
        DataError: Its tokenizer cannot be loaded.
        StorageError: It cannot be written.
    """
    bias = gpt2.attention_bias
    for key, value, accepted in (
        ("d_ff", gpt2.d_ff, 4 * gpt2.d_model),
        ("feedforward", gpt2.activation, "gelu"),
        ("feedforward.bias", gpt2.feedforward_bias, bias),
        ("norm.bias", gpt2.norm_bias, bias),
        ("norm.eps", gpt2.eps, 1e-5),
        ("tie_embeddings", gpt2.tied, True),
    ):
        if value != accepted:
            others = f", as attention.bias is {bias}" if key.endswith(".bias") else ""
            raise ConfigError(f"model.gpt.{key}", value, f"accepted by nanoGPT: {accepted!r}{others}")
    weights = {f"transformer.{p.theirs}": gpt2.weights[p.ours] for p in gpt2.parameters()}
    args = {
        "n_layer": gpt2.n_layers,
        "n_head": gpt2.n_heads,
        "n_embd": gpt2.d_model,
        "block_size": gpt2.max_seq_len,
        "bias": bias,
        "vocab_size": gpt2.vocab_size,
        "dropout": 0.0,
    }
    meta = _meta(gpt2)
    data = path.absolute().with_name(f"{path.stem}-data")
    write(
        {
            "model": {**weights, "lm_head.weight": gpt2.head},
            "model_args": args,
            # sample.py joins `data`, this and `meta.pkl`: an absolute path is found from any folder.
            "config": {"dataset": "openwebtext" if meta is None else str(data)},
        },
        path,
    )
    if meta is not None:
        with as_storage_error(f"{data}: meta.pkl could not be written"):
            data.mkdir(exist_ok=True)
            write_meta(data / "meta.pkl", meta)


def _meta(gpt2: GPT2) -> Meta | None:
    """The meta.pkl that sample.py needs; None for GPT-2's tokens, which it knows."""
    if gpt2.tokenizer == "gpt2":
        return None
    tokenizer = None if gpt2.tokenizer is None else load_tokenizer(gpt2.tokenizer)
    if isinstance(tokenizer, ByteTokenizer):
        # One character is one token there; a prompt can therefore have only ASCII characters.
        ascii_text = {chr(byte): byte for byte in range(128)}
        texts = {token: chr(token) if token < 128 else "\N{REPLACEMENT CHARACTER}" for token in range(gpt2.vocab_size)}
        return Meta(ascii_text, texts, is_bytes=True)
    if isinstance(tokenizer, CharacterTokenizer):
        return Meta(tokenizer.numbers, {token: tokenizer.texts.get(token, "") for token in range(gpt2.vocab_size)})
    which = "no tokenizer is known" if tokenizer is None else f"its tokenizer is {tokenizer.name}"
    note(f"{which}; sample.py supports GPT-2's tokens, bytes and characters, and reads others as GPT-2's")
    return None


def _find_tokenizer(path: Path, config: Any) -> str | None:
    """The meta.pkl of a checkpoint: beside it, or where nanoGPT looks for it, from its own folder or from here."""
    dataset = config.get("dataset") if isinstance(config, dict) else None
    places = [path.parent]
    if isinstance(dataset, str) and "\0" not in dataset:
        places += [path.absolute().parent.parent / "data" / dataset, Path("data", dataset)]
    for place in places:
        if (file := place / "meta.pkl").is_file():
            try:
                return BYTES if read_meta(file).is_bytes else str(file.absolute())
            except (OSError, ValueError) as error:
                note(f"{file} is not used: {error}; --tokenizer names another tokenizer")
                return None
    return None
