"""Makes token shards of FineWeb, or of another data set of texts, for `data: TokenShards`.

    python scripts/prepare_fineweb.py --out data/fineweb10B
    python scripts/prepare_fineweb.py --out data/fineweb1B --tokens 1_000_000_000 --processes 8
    python scripts/prepare_fineweb.py --out data/own --dataset 'texts/*.parquet' --tokenizer own/tokenizer.json

The data set is streamed from the Hugging Face hub, or read from a folder or files of this machine (parquet, jsonl, …).
Its documents are concatenated, with an end-of-text token before each, and cut into shards of `--shard_tokens` tokens:
fineweb_val_000000.bin for validation, then fineweb_train_000001.bin, ….

The script can be interrupted at any time. The same command resumes after the last complete shard and makes the same
shards as without the interruption: shards.json stores where each shard ends in the data set, and the options.
"""

import hashlib
import json
import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import asdict, dataclass
from glob import glob, has_magic
from pathlib import Path
from typing import Any

import numpy as np
from jsonargparse import Namespace
from tqdm import tqdm

from bytelm.config.command import CommandParser
from bytelm.config.values import PositiveInt
from bytelm.data.shard_file import Shard as ShardFile
from bytelm.data.shard_file import write_shard
from bytelm.data.tokenize import Piece, Tokens, config_lines, encoded, shard_folder, shard_tokenizer
from bytelm.data.tokenizer import Tokenizer
from bytelm.errors import ConfigError, DataError, Interrupted
from bytelm.program import errors_in_one_line
from bytelm.system.files import write_text

FINEWEB, SAMPLE = "HuggingFaceFW/fineweb", "sample-10BT"
SPLIT = "train"
ONE_SAVED = "state.json"  # in the folder of a data set that is not a dict of several
ROWS = 1000  # rows of the data set that are read together


@dataclass(frozen=True)
class Shard:
    """A complete shard, and where it ends in the data set.

    Attributes:
        file: Its name.
        tokens: Its length.
        documents: Number of whole documents in this shard and all before it.
        cut: Number of tokens of the next document that the shard ends with.
    """

    file: str
    tokens: int
    documents: int
    cut: int


def shards_of(
    documents: Iterable[Tokens], sizes: Iterable[int], done: int, cut: int
) -> Iterator[tuple[Tokens, int, int]]:
    """Cuts documents into shards.

    Args:
        documents: Tokens of each document, from the first that earlier shards do not contain completely.
        sizes: Lengths of the shards; the last can be shorter.
        done: Number of documents in earlier shards.
        cut: Number of tokens of the first document in an earlier shard.

    Yields:
        The tokens of a shard, and `done` and `cut` for the next.
    """
    sizes = iter(sizes)
    shard, filled = np.empty(next(sizes), np.uint16), 0
    for tokens in documents:
        while cut < len(tokens):
            n = min(len(tokens) - cut, len(shard) - filled)
            shard[filled : filled + n] = tokens[cut : cut + n]
            filled, cut = filled + n, cut + n
            if filled == len(shard):
                yield (shard, done, cut) if cut < len(tokens) else (shard, done + 1, 0)
                if (size := next(sizes, None)) is None:
                    return
                shard, filled = np.empty(size, np.uint16), 0
        done, cut = done + 1, 0
    if filled:
        yield shard[:filled], done, 0


def sizes_of(shard_tokens: int, tokens: int | None, done: int) -> Iterator[int]:
    """Lengths of the shards that remain after `done` tokens; endless if `tokens` is None."""
    while tokens is None or done < tokens:
        size = shard_tokens if tokens is None else min(shard_tokens, tokens - done)
        yield size
        done += size


def finished(folder: Path, made_with: dict[str, Any]) -> list[Shard]:
    """The shards in a folder, up to the first incomplete one.

    Raises:
        ConfigError: They were made with other options, or not by this script.
    """
    if not (state := folder / "shards.json").is_file():
        if found := sorted(path.name for path in folder.glob("*.bin")):
            raise ConfigError("out", str(folder), f"accepted: an empty folder; {found[0]} is there, and no shards.json")
        return []
    content = json.loads(state.read_text())
    for key, value in made_with.items():
        if (before := content["made_with"].get(key)) != value:
            advice = "accepted: the same options, or another folder"
            raise ConfigError(
                "out", str(folder), f"its shards were made with {key} {before!r}, not {value!r}; {advice}"
            )
    shards = [Shard(**shard) for shard in content["shards"]]
    return shards[: next((i for i, shard in enumerate(shards) if not is_whole(folder, shard)), len(shards))]


def is_whole(folder: Path, shard: Shard) -> bool:
    try:
        return len(ShardFile(folder / shard.file)) == shard.tokens
    except DataError:
        return False


def write_state(folder: Path, made_with: dict[str, Any], shards: list[Shard]) -> None:
    state = {"made_with": made_with, "shards": [asdict(shard) for shard in shards]}
    write_text(folder / "shards.json", json.dumps(state, indent=2) + "\n")


def is_saved(path: Path) -> bool:
    """Whether a folder is a data set, or a dict of them, as `save_to_disk` leaves it."""
    return (path / ONE_SAVED).is_file() or (path / "dataset_dict.json").is_file()


def texts(options: Namespace, skipped: int) -> Iterator[str]:
    """The documents of a data set, without the first `skipped`.

    Raises:
        DataError: The data set cannot be read, or datasets is not installed.
    """
    try:
        from datasets import load_dataset, load_from_disk
    except ImportError as error:
        advice = 'it needs datasets, which is not installed; run pip install "bytelm[tokens]"'
        raise DataError("dataset", options.dataset, advice) from error
    path = Path(options.dataset)
    try:
        if is_saved(path):
            stored = load_from_disk(str(path))
            dataset = (stored[options.split] if isinstance(stored, dict) else stored).to_iterable_dataset()
        elif not path.is_dir() and glob(options.dataset):
            path = path.absolute()
            folder = next(parent for parent in path.parents if not has_magic(str(parent)))
            files = str(path.relative_to(folder))
            dataset = load_dataset(str(folder), data_files=files, split=options.split, streaming=True)
        else:
            name = options.name or (SAMPLE if options.dataset == FINEWEB else None)
            dataset = load_dataset(options.dataset, name, split=options.split, streaming=True)
        columns = dataset.select_columns([options.text_field]).skip(skipped).with_format("arrow")
        for rows in columns.iter(ROWS):
            yield from (text or "" for text in rows[options.text_field].cast("string").to_pylist())
    except Interrupted:
        raise
    except Exception as error:  # of many kinds: the hub's, the network's, those of each format
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise DataError("dataset", options.dataset, f"it cannot be read: {reason}") from error


def prepare(options: Namespace) -> Tokenizer:
    """Makes the missing shards.

    Raises:
        ConfigError: An option is invalid, or the folder's shards were made with other options.
        DataError: The data set or the tokenizer cannot be used.
    """
    if options.tokens is not None and options.tokens <= options.shard_tokens:
        accepted = f"accepted: above {options.shard_tokens} (shard_tokens), as the first shard validates"
        raise ConfigError("tokens", options.tokens, accepted)
    if options.name is not None and not Path(options.dataset).is_dir() and glob(options.dataset):
        raise ConfigError("name", options.name, f"files have no configurations, and {options.dataset} names files")
    if options.name is not None and is_saved(Path(options.dataset)):
        raise ConfigError("name", options.name, f"{options.dataset} is a saved data set, which has one configuration")
    if options.split != SPLIT and (Path(options.dataset) / ONE_SAVED).is_file():
        raise ConfigError("split", options.split, f"{options.dataset} is a saved data set without splits")
    tokenizer = shard_tokenizer(options.tokenizer)
    keys = ("dataset", "name", "split", "text_field", "tokenizer", "shard_tokens", "tokens")
    made_with = {key: getattr(options, key) for key in keys}
    made_with["tokenizer_sha256"] = hashlib.sha256(repr(tokenizer.bytes_of).encode()).hexdigest()

    folder = shard_folder(options.out)
    shards = finished(folder, made_with)
    write_state(folder, made_with, shards)
    n_tokens = sum(shard.tokens for shard in shards)
    if n_tokens == options.tokens or n_tokens < len(shards) * options.shard_tokens:
        return tokenizer  # all exist: the last one ends with the limit, or with the data set
    done, cut = (shards[-1].documents, shards[-1].cut) if shards else (0, 0)

    bar = tqdm(total=options.tokens, initial=n_tokens, unit="tok", unit_scale=True, desc="tokens")
    documents = encoded((Piece(text) for text in texts(options, done)), tokenizer, options.processes)
    with bar, closing(documents):
        sizes = sizes_of(options.shard_tokens, options.tokens, n_tokens)
        for tokens, n_documents, rest in shards_of(counted(documents, bar), sizes, done, cut):
            if not shards and len(tokens) < options.shard_tokens:
                accepted = f"accepted: below {len(tokens)}, all that the data set has, as the first shard validates"
                raise ConfigError("shard_tokens", options.shard_tokens, accepted)
            shard = Shard(
                f"fineweb_{'train' if shards else 'val'}_{len(shards):06d}.bin", len(tokens), n_documents, rest
            )
            write_shard(folder / shard.file, tokens)
            shards.append(shard)
            write_state(folder, made_with, shards)
    return tokenizer


def counted(documents: Iterable[Tokens], bar: Any) -> Iterator[Tokens]:
    for tokens in documents:
        bar.update(len(tokens))
        yield tokens


def main(arguments: list[str] | None = None) -> None:
    parser = CommandParser(prog=Path(__file__).name, description=str(__doc__).splitlines()[0])
    parser.add_argument("--dataset", default=FINEWEB, help="name on the hub, folder, file or glob pattern")
    parser.add_argument("--name", help=f"configuration of the data set (default: {SAMPLE} for FineWeb)")
    parser.add_argument("--split", default=SPLIT, help="split of the data set")
    parser.add_argument("--text_field", default="text", help="column with the texts")
    parser.add_argument("--tokenizer", default="gpt2", help="bytes, a name of tiktoken, or a tokenizer.json")
    parser.add_argument("--out", required=True, help="folder for the shards")
    parser.add_argument("--shard_tokens", type=PositiveInt, default=100_000_000, help="tokens of a shard")
    parser.add_argument("--tokens", type=PositiveInt, help="tokens of all shards together (default: all)")
    parser.add_argument("--processes", type=PositiveInt, default=os.cpu_count(), help="encoding processes")
    with errors_in_one_line():
        options = parser.parse_args(sys.argv[1:] if arguments is None else arguments)
        tokenizer = prepare(options)
        print(config_lines(options.out, tokenizer))


if __name__ == "__main__":
    main()
