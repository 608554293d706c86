"""Trains a tokenizer on documents, for `data: Documents` and `data: TokenShards`.

    python scripts/train_tokenizer.py my-documents --vocab_size 8192 --out my-documents/tokenizer.json
    python scripts/train_tokenizer.py 'shards/shard_000*.parquet' more.jsonl --vocab_size 8192 --out tokenizer.json

Documents are in Parquet, JSON lines or text files. Of a single folder, the files that `Documents` would validate on are
left out. The tokenizer is a byte-level BPE with the token <|endoftext|>. The script ends with the lines that a config
needs for it.
"""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

from tqdm import tqdm

from bytelm.config.command import CommandParser
from bytelm.config.messages import note
from bytelm.config.text import dump
from bytelm.config.values import PositiveInt
from bytelm.data.documents import COLUMN, check_column, document_files, groups
from bytelm.data.tokenizer import load_tokenizer
from bytelm.data.train_tokenizer import Pattern, train_tokenizer
from bytelm.errors import ConfigError
from bytelm.program import errors_in_one_line
from bytelm.system.files import check_folder


def training_files(places: list[str]) -> list[Path]:
    """The files of places; of one folder, those that Documents trains on."""
    if len(places) == 1 and Path(places[0]).expanduser().is_dir():
        from bytelm.data.packed import Documents  # here, because it loads Lightning

        return Documents(places[0]).files["train"]
    return [file for place in places for file in document_files(place, "paths")]


def texts(files: list[Path], column: str, most: int, most_of_one: int) -> Iterator[str]:
    """The beginning of each document, up to a number of characters, with a progress bar."""
    with tqdm(total=most, unit="character", unit_scale=True, desc="tokenizer") as bar:
        for file in files:
            for _, documents in groups(file, column):
                for document in documents:
                    yield document[:most_of_one]
                    bar.update(min(len(document), most_of_one))
                    if bar.n >= most:
                        return


def located(places: list[str]) -> dict[str, Any]:
    """The options of Documents for places; only for one folder or pattern does it know which of the files validate."""
    if len(places) == 1 and not Path(places[0]).expanduser().is_file():
        return {"path": places[0]}
    note("val: write the files for validation in place of FILES")
    return {"train": places, "val": "FILES"}


def main(arguments: list[str] | None = None) -> None:
    parser = CommandParser(prog=Path(__file__).name, description=str(__doc__).splitlines()[0])
    parser.add_argument("paths", nargs="+", metavar="path", help="documents: files, folders, globs")
    parser.add_argument("--out", required=True, help="the tokenizer.json to write")
    parser.add_argument("--vocab_size", type=PositiveInt, required=True, help="number of tokens")
    parser.add_argument("--column", default=COLUMN, help="column of Parquet, or key of the JSON objects")
    parser.add_argument("--pattern", choices=get_args(Pattern), default="gpt4", help="how texts are cut")
    parser.add_argument("--characters", type=PositiveInt, default=1_000_000_000, help="at most, in all")
    parser.add_argument("--document_characters", type=PositiveInt, default=10_000, help="at most, of a document")
    with errors_in_one_line():
        options = parser.parse_args(sys.argv[1:] if arguments is None else arguments)
        out = Path(options.out)
        if not out.name.endswith(".json") or not out.parent.is_dir():
            raise ConfigError("out", options.out, "accepted: a file that ends in .json, in an existing folder")
        check_folder("out", out.parent)
        files = training_files(options.paths)
        check_column(files, options.column, "column")
        found = texts(files, options.column, options.characters, options.document_characters)
        train_tokenizer(found, options.vocab_size, out, options.pattern)
        size = load_tokenizer(str(out)).vocab_size
        column = {} if options.column == COLUMN else {"column": options.column}
        data = {"class_path": "Documents", "init_args": {**located(options.paths), **column, "tokenizer": str(out)}}
        print(dump({"data": data, "model": {"gpt": {"vocab_size": size}}}).rstrip())


if __name__ == "__main__":
    main()
