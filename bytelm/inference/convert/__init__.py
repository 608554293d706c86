"""Converts GPT-2 weights from and to nanoGPT and Hugging Face.

    python -m bytelm import ckpt.pt model.ckpt                     nanoGPT's checkpoint, or a Hugging Face folder
    python -m bytelm export runs/…/version_0 gpt2 --format huggingface

All readers return a `GPT2` (gpt2.py), with sizes and weights by bytelm's names, and all writers take one. Dropout is
not converted, because it belongs to training. The tokenizer is converted.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

from bytelm.config.command import CommandParser
from bytelm.inference.convert.checkpoint import as_checkpoint, read_checkpoint, write_checkpoint
from bytelm.inference.convert.gpt2 import GPT2, GPT2_SIZES
from bytelm.inference.convert.huggingface import read_huggingface, write_huggingface
from bytelm.inference.convert.nanogpt import read_nanogpt, write_nanogpt
from bytelm.runs.choice import config_beside

__all__ = [
    "GPT2",
    "as_checkpoint",
    "export_weights",
    "import_weights",
    "read_checkpoint",
    "read_foreign",
    "read_huggingface",
    "read_nanogpt",
    "write_checkpoint",
    "write_huggingface",
    "write_nanogpt",
]

Format = Literal["nanogpt", "huggingface"]
NONE = "none"  # the value of --tokenizer for no tokenizer


def import_weights(source: str, target: str, tokenizer: str | None = None) -> None:
    """Makes a bytelm checkpoint from a nanoGPT checkpoint or a Hugging Face folder.

    Args:
        source: The checkpoint or the folder.
        target: The checkpoint to write; an existing file is replaced.
        tokenizer: The network's tokenizer, as for TokenShards; `none` if it is not known. Default: the tokenizer.json
            or meta.pkl beside the weights, which the checkpoint then names by its path; or gpt2, if the network has
            50,257 or 50,304 tokens. A network without a tokenizer can be scored on shards; generate and evaluate
            reject it.

    Raises:
        CheckpointError: The source is missing, damaged, or not a GPT-2.
        ConfigError: A package is missing.
        StorageError: The target cannot be written.
    """
    write_checkpoint(_with_tokenizer(read_foreign(Path(source)), tokenizer), Path(target))


def export_weights(
    ckpt_path: str, target: str, format: Format, tokenizer: str | None = None, config: Sequence[str] = ()
) -> None:
    """Makes a nanoGPT checkpoint or a Hugging Face folder from a bytelm checkpoint.

    Args:
        ckpt_path: The checkpoint.
        target: The file (nanogpt) or folder (huggingface) to write; existing files are replaced.
        format: `nanogpt`, for its sample.py, or `huggingface`. Neither includes the state that resuming needs.
        tokenizer: The network's tokenizer, instead of that of the run's config; `none` for none.
        config: Config files of its run, instead of the config in the checkpoint.

    Raises:
        CheckpointError: The checkpoint is missing or damaged.
        ConfigError: The format cannot represent the network, or a package is missing.
        DataError: The tokenizer cannot be loaded.
        StorageError: The target cannot be written.
    """
    write = {"nanogpt": write_nanogpt, "huggingface": write_huggingface}[format]
    write(_with_tokenizer(read_checkpoint(ckpt_path, config), tokenizer), Path(target))


def read_foreign(path: Path) -> GPT2:
    """Reads a nanoGPT checkpoint or a Hugging Face folder.

    Raises:
        CheckpointError: It is missing, damaged, or not a GPT-2.
        ConfigError: A package is missing.
    """
    gpt2 = read_huggingface(path) if path.is_dir() else read_nanogpt(path)
    if gpt2.tokenizer is None and gpt2.vocab_size in GPT2_SIZES:
        return replace(gpt2, tokenizer="gpt2")
    return gpt2


def main_import(args: list[str]) -> None:
    """Runs the command.

    Args:
        args: Arguments after `python -m bytelm import`.
    """
    parser = CommandParser("import", description="Makes a checkpoint of GPT-2 weights from nanoGPT or Hugging Face.")
    parser.add_argument("source", help="nanoGPT's ckpt.pt, or a folder with config.json and model.safetensors.")
    parser.add_argument("target", help="The checkpoint to write, such as model.ckpt.")
    parser.add_function_arguments(import_weights, skip={"source", "target"})
    given = vars(parser.parse_args(args))
    import_weights(**given)
    print(f"checkpoint: {given['target']}")


def main_export(args: list[str]) -> None:
    """Runs the command.

    Args:
        args: Arguments after `python -m bytelm export`.
    """
    parser = CommandParser("export", description="Makes GPT-2 weights for nanoGPT or Hugging Face from a checkpoint.")
    parser.add_argument("ckpt_path", help="The folder of a run, for its config and its best.ckpt; or a checkpoint.")
    parser.add_argument("target", help="The file (nanogpt) or the folder (huggingface) to write.")
    parser.add_function_arguments(export_weights, skip={"ckpt_path", "target", "config"})
    parser.add_argument(
        "--config",
        action="append",
        default=[],
        help="Config of its run, instead of the one in the checkpoint; needed for parts of your own. Can be repeated.",
    )
    given = vars(parser.parse_args(args))
    given["config"] = given["config"] or config_beside(given["ckpt_path"])
    export_weights(**given)
    print(f"{given['format']}: {given['target']}")


def _with_tokenizer(gpt2: GPT2, name: str | None) -> GPT2:
    return gpt2 if name is None else replace(gpt2, tokenizer=None if name == NONE else name)
