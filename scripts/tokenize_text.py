"""Makes token shards of your own text files, for `data: TokenShards`.

    python scripts/tokenize_text.py my-folder --out data/own --train_tokenizer 8192
    python scripts/tokenize_text.py 'stories/*.txt' --separator '<|endoftext|>' --out data/stories --tokenizer gpt2

Each file is one document, or several with a separator between them. Each document begins with an end-of-text token.
The last tokens are for validation (val_000000.bin, …), the others for training (train_000000.bin, …).
`--train_tokenizer` first trains a byte-level BPE on the text and writes it to tokenizer.json beside the shards. The
script ends with the lines that a config needs for these shards.
"""

import os
import sys
from collections.abc import Iterator
from contextlib import closing
from itertools import chain
from pathlib import Path

import numpy as np
from jsonargparse import Namespace
from tqdm import tqdm

from bytelm.config.command import CommandParser
from bytelm.config.values import PositiveInt
from bytelm.data.shard_file import write_shard
from bytelm.data.tokenize import Piece, config_lines, encoded, shard_folder, shard_tokenizer, text_pieces
from bytelm.data.tokenizer import Tokenizer
from bytelm.data.train_tokenizer import train_tokenizer
from bytelm.errors import ConfigError, DataError
from bytelm.program import errors_in_one_line

LONG_TOKEN = 8  # bytes; above the mean of a text


def all_pieces(files: list[Path], separator: str | None) -> Iterator[Piece]:
    return chain.from_iterable(text_pieces(file, separator) for file in files)


def first_texts(pieces: Iterator[Piece], n_bytes: int, separator: str | None) -> Iterator[str]:
    """Texts of the first `n_bytes` bytes of the files, separators included, with a progress bar."""
    between = len((separator or "").encode())
    with tqdm(total=n_bytes, unit="B", unit_scale=True, desc="tokenizer") as bar:
        for piece in pieces:
            n_bytes -= between * piece.begins
            text = piece.text.encode()[: max(n_bytes, 0)]
            n_bytes -= len(text)
            if not text:
                return
            yield text.decode(errors="ignore")
            bar.update(len(text))


def learn_tokenizer(files: list[Path], folder: Path, options: Namespace) -> str:
    """Writes a tokenizer.json for these files and returns its name. Validation text does not affect the vocabulary."""
    n_bytes = sum(file.stat().st_size for file in files)
    if options.val_tokens is None:
        n_val = int(options.val_fraction * n_bytes)
    else:
        n_val = min(LONG_TOKEN * options.val_tokens, n_bytes // 2)
    file = folder / "tokenizer.json"
    texts = first_texts(all_pieces(files, options.separator), n_bytes - n_val, options.separator)
    train_tokenizer(texts, options.train_tokenizer, file)
    return str(file)


def tokenize(files: list[Path], tokenizer: Tokenizer, options: Namespace) -> None:
    """Writes the shards of these files.

    Raises:
        DataError: A file is not text, or one of the splits would be empty.
    """
    folder = Path(options.out)
    all_tokens = folder / ".tokens.part"  # a file, because the tokens may not fit into memory
    documents = encoded(all_pieces(files, options.separator), tokenizer, options.processes)
    n_bytes = sum(file.stat().st_size for file in files)
    token_bytes = tokenizer.token_bytes.numpy()
    try:
        with (
            closing(documents),
            all_tokens.open("wb") as file,
            tqdm(total=n_bytes, unit="B", unit_scale=True, desc="text") as bar,
        ):
            for piece in documents:
                file.write(piece.tobytes())
                bar.update(int(token_bytes[piece].sum()))
        n_tokens = all_tokens.stat().st_size // 2
        n_val = round(options.val_fraction * n_tokens) if options.val_tokens is None else options.val_tokens
        if not 0 < n_val < n_tokens:
            reason = f"of its {n_tokens} tokens {n_val} would validate, and {n_tokens - n_val} train"
            raise DataError("path", options.paths[0], f"{reason}; accepted: a text with tokens for both")
        tokens = np.memmap(all_tokens, np.uint16, "r")
        for split, part in {"train": tokens[:-n_val], "val": tokens[-n_val:]}.items():
            for i, start in enumerate(range(0, len(part), options.shard_tokens)):
                write_shard(folder / f"{split}_{i:06d}.bin", part[start : start + options.shard_tokens])
    finally:
        all_tokens.unlink(missing_ok=True)
    print(f"{n_tokens - n_val:,} tokens to train, {n_val:,} to validate; {n_bytes / n_tokens:.2f} bytes a token")


def main(arguments: list[str] | None = None) -> None:
    from bytelm.data.corpora import text_files  # here, because each encoding process imports this module

    parser = CommandParser(prog=Path(__file__).name, description=str(__doc__).splitlines()[0])
    parser.add_argument("paths", nargs="+", metavar="path", help="text in UTF-8: files, folders, globs")
    parser.add_argument("--out", required=True, help="folder for the shards")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--tokenizer", default="gpt2", help="bytes, a name of tiktoken, or a tokenizer.json")
    which.add_argument(
        "--train_tokenizer", type=PositiveInt, metavar="VOCAB_SIZE", help="train a tokenizer on the text"
    )
    parser.add_argument("--separator", help="text between the documents of a file")
    split = parser.add_mutually_exclusive_group()
    split.add_argument("--val_fraction", type=float, default=0.1, help="share of the tokens for validation")
    split.add_argument("--val_tokens", type=PositiveInt, help="number of tokens for validation")
    parser.add_argument("--shard_tokens", type=PositiveInt, default=100_000_000, help="tokens of a shard")
    parser.add_argument("--processes", type=PositiveInt, default=os.cpu_count(), help="encoding processes")
    with errors_in_one_line():
        options = parser.parse_args(sys.argv[1:] if arguments is None else arguments)
        if not 0 < options.val_fraction < 1:
            raise ConfigError("val_fraction", options.val_fraction, "accepted: a number between 0 and 1")
        files = [file for path in options.paths for file in text_files(path)]
        folder = shard_folder(options.out)
        if found := sorted(path.name for path in folder.glob("*.bin")):
            raise ConfigError("out", str(folder), f"accepted: a folder without shards; {found[0]} is there")
        if options.train_tokenizer:
            options.tokenizer = learn_tokenizer(files, folder, options)
        tokenizer = shard_tokenizer(options.tokenizer)
        tokenize(files, tokenizer, options)
        print(config_lines(options.out, tokenizer))


if __name__ == "__main__":
    main()
