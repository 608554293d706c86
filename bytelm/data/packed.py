"""Documents: text in Parquet, JSON lines or text files, encoded and packed into rows while a run trains."""

import hashlib
import re
import tempfile
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal
from uuid import uuid4

import torch
from torch import Tensor

from bytelm.config.values import PositiveInt
from bytelm.data.base import TokenData
from bytelm.data.documents import COLUMN, check_column, document_files, text_bytes
from bytelm.data.file_watch import FileWatch, Stamp
from bytelm.data.pack_worker import Job
from bytelm.data.packed_rows import PackedEval, PackedLoader
from bytelm.data.packing import START, DocumentTokens
from bytelm.data.shard_file import WORDS, Split, check_disjoint
from bytelm.data.shared_tokens import Sharing
from bytelm.data.tokenizer import Tokenizer, load_tokenizer
from bytelm.errors import ConfigError, DataError

BLOCK_ROWS = 64
MEGABYTE = 2**20
NUMBER = re.compile(r"[0-9a-f]*[0-9][0-9a-f]*")  # in a file's name, also a hash
Places = str | list[str]


class Documents(TokenData):
    """Documents in files, packed into rows as in autoresearch: each row begins with a document.

    Documents wait in a buffer, in the order of the files. A row takes the longest document that fits into the rest of
    it, again and again, and if none fits, the beginning of the shortest one; its other tokens are dropped. Training
    reads the files again and again. Validation packs its documents in the same way, once, without the last tokens that
    do not fill a row. Another process reads, encodes and packs, while this one trains.

    Args:
        path: A folder, with subfolders, or a glob pattern: its files of Parquet; if there are none, those of JSON lines
            (.jsonl, .ndjson, also with .gz); if there are none, those of text (.txt, .md, …), each of which is one
            document. Files with the word `val` in their names are for validation. Without such files, the last one is,
            if the names of all files are alike but for their numbers. If some names have the word `train`, only these
            files are for training.
        train: Files for training: a file, a folder, a glob pattern, or a list of these. With `path`, its other files
            are for validation, as above.
        val: Files for validation, in the same forms. With `path`, its other files are for training, as above.
        column: Column of Parquet, or key of the JSON objects, that has the text.
        tokenizer: `bytes`; a tokenizer.json, a tokenizer.pkl of autoresearch or nanochat, or a folder with one; or one
            of tiktoken's names, such as gpt2. It needs a token that marks the beginning of a document.
        batch_size: Rows of one batch of one rank.
        seq_len: Tokens of a row.
        order: `packed`, as above.
        buffer_size: Documents that wait in the buffer, at least.
        eval_tokens: Maximum number of tokens that validation predicts; `test` and `predict` use all rows.
        partial_characters: The number of bytes of a token that begins or ends inside a character. `exact`: its bytes.
            `replaced`: those of its text, in which U+FFFD stands for incomplete characters, as in autoresearch; then
            the bytes of a text's tokens can have another sum than the text.
        ahead: Whether another process works ahead; otherwise each batch is packed when it is due.

    Raises:
        ConfigError: Neither `path` nor `train` and `val` locate the files.
    """

    schedulable = ("batch_size",)

    def __init__(
        self,
        path: str | None = None,
        train: Places | None = None,
        val: Places | None = None,
        column: str = COLUMN,
        tokenizer: str = "gpt2",
        batch_size: PositiveInt = 12,
        seq_len: PositiveInt = 1024,
        order: Literal["packed"] = "packed",
        buffer_size: PositiveInt = 1000,
        eval_tokens: PositiveInt = 1_048_576,
        partial_characters: Literal["exact", "replaced"] = "exact",
        ahead: bool = True,
    ) -> None:
        super().__init__(batch_size, seq_len, None)
        if path is None and not (train and val):
            accepted = "accepted: a folder with files of Parquet, JSON lines or text; or train and val"
            raise ConfigError("data.path", path, accepted)
        self.path = path
        self.given: dict[Split, Places | None] = {"train": train, "val": val}
        self.column = column
        self.tokenizer = tokenizer
        self.order = order
        self.buffer_size = buffer_size
        self.eval_tokens = eval_tokens
        self.partial_characters = partial_characters
        self.ahead = ahead

    @cached_property
    def loaded_tokenizer(self) -> Tokenizer:
        """The tokenizer.

        Raises:
            DataError: It cannot be loaded, or has no token that marks the beginning of a document.
        """
        found = load_tokenizer(self.tokenizer, "data.tokenizer")
        if found.end_of_text is None:
            accepted = (
                "it has no token that marks the beginning of a document; accepted: tokenizers with one, such as gpt2"
            )
            raise DataError("data.tokenizer", self.tokenizer, accepted)
        return found

    @property
    def vocab_size(self) -> int:  # type: ignore[override]
        """Number of the tokenizer's tokens."""
        return self.loaded_tokenizer.vocab_size

    @cached_property
    def files(self) -> dict[Split, list[Path]]:
        """The files of each split.

        Raises:
            DataError: A split has no files.
        """
        found: dict[Split, list[Path]] = {}
        for split, given in self.given.items():
            if given:
                places = [given] if isinstance(given, str) else given
                found[split] = [file for place in places for file in document_files(place, f"data.{split}")]
        if len(found) < 2:
            given_files = {file.resolve() for files in found.values() for file in files}
            inside = [file for file in document_files(str(self.path), "data.path") if file.resolve() not in given_files]
            if "val" not in found:
                found["val"] = self._validation(inside)
            if "train" not in found:
                others = [file for file in inside if file not in found["val"]]
                others = [file for file in others if not WORDS["val"].search(file.stem)]
                found["train"] = [file for file in others if WORDS["train"].search(file.stem)] or others
        if not found["train"]:
            accepted = "accepted: at least two files, the last of which validates; or train and val"
            raise DataError("data.path", self.path, f"it has no file to train on; {accepted}")
        check_disjoint(found["train"], found["val"])
        check_column([*found["train"], *found["val"]], self.column, "data.column")
        return {"train": found["train"], "val": found["val"]}

    def _validation(self, inside: list[Path]) -> list[Path]:
        """Returns the files for validation of those in `path`.

        Raises:
            DataError: It cannot be known which they are.
        """
        if named := [file for file in inside if WORDS["val"].search(file.stem)]:
            return named
        if len({NUMBER.sub("0", file.name) for file in inside}) > 1:
            some = ", ".join(file.name for file in (inside[0], inside[-1]))
            accepted = "accepted: names with the word `val`, names that are alike but for their numbers, or data.val"
            raise DataError("data.path", self.path, f"which of its files ({some}, …) validate? {accepted}")
        return inside[-1:]

    def val_files(self) -> list[Path]:
        return self.files["val"]

    def setup(self, stage: str) -> None:
        self.files, self.loaded_tokenizer  # noqa: B018  (errors in them are raised now)
        if stage == "fit":
            self._watch, self._sha256, self._train_tokens  # noqa: B018  (now, and not when the clock runs)
            one_row = self._job("val", passes=1, most=1)._replace(buffer_size=1)
            PackedEval(one_row, 1, self.loaded_tokenizer, ahead=False).rows  # noqa: B018  (before, and not after, training)
        self.token_bytes = self._count_bytes()

    def _count_bytes(self) -> Tensor:
        tokenizer = self.loaded_tokenizer
        if self.partial_characters == "exact":
            return tokenizer.token_bytes
        return torch.tensor([len(tokenizer.decode([token]).encode()) for token in range(tokenizer.vocab_size)])

    def text_tokenizer(self) -> Tokenizer:
        return self.loaded_tokenizer

    def changed(self) -> str | None:
        return self._watch.changed(self._sha256)

    def corpus_record(self) -> dict[str, Any]:
        """See TokenData; `sha256` is that of the files' names, sizes, first and last megabytes, and of the tokens."""
        train = self.files["train"]
        return {
            "name": train[0].absolute().parent.name,
            "files": {split: len(files) for split, files in self.files.items()},
            "sha256": self._sha256,
        }

    def train_tokens(self) -> int:
        """About the number of tokens of the training text, by the bytes of its first documents' tokens."""
        return self._train_tokens

    @cached_property
    def _train_tokens(self) -> int:
        documents = DocumentTokens(self.files["train"], self.column, self.loaded_tokenizer)
        _, first = next(documents.batches(START))
        n_tokens = sum(len(tokens) for _, tokens in first)
        n_bytes = sum(int(self.loaded_tokenizer.token_bytes[tokens.astype(int)].sum()) for _, tokens in first)
        total = sum(text_bytes(file, self.column) for file in self.files["train"])
        return max(round(total * n_tokens / max(n_bytes, 1)), 1)

    def train_loader(self, seed: int, rank: int, world_size: int) -> PackedLoader:
        job = self._job("train", passes=None)._replace(sharing=self._sharing())
        on_gpu = self.trainer is not None and self.trainer.strategy.root_device.type == "cuda"
        return PackedLoader(
            job, self.batch_size, self.loaded_tokenizer, rank, world_size, self.ahead, pin_memory=on_gpu
        )

    def _sharing(self) -> Sharing | None:
        trainer = self.trainer
        if trainer is None or trainer.num_devices < 2 or not self.ahead:
            return None
        name = trainer.strategy.broadcast(uuid4().hex)
        return Sharing(str(Path(tempfile.gettempdir(), f"bytelm-{name}")), trainer.local_rank, trainer.num_devices)

    def check_sizes(self, key: str, option: str, sizes: Sequence[int]) -> None:
        pass  # batches can have any number of rows

    def teardown(self, stage: str) -> None:
        if stage == "fit" and self._epochs is not None:
            self._epochs.loader.close()

    def val_dataloader(self) -> PackedEval:
        return self._eval(max(self.eval_tokens // self.seq_len, 1))

    def test_dataloader(self) -> PackedEval:
        return self._eval()

    def _eval(self, most: int | None = None) -> PackedEval:
        job = self._job("val", passes=1, most=most)
        return PackedEval(job, self.batch_size, self.loaded_tokenizer, *self._rank(), self.ahead and most is not None)

    def _job(self, split: Split, passes: int | None, most: int | None = None) -> Job:
        files = tuple(map(str, self.files[split]))
        return Job(files, self.column, self.tokenizer, self.seq_len + 1, self.buffer_size, BLOCK_ROWS, passes, most)

    @cached_property
    def _watch(self) -> FileWatch:
        return FileWatch(self._stamps, self._digest)

    def _all_files(self) -> list[tuple[Split, Path]]:
        return [(split, file) for split, files in self.files.items() for file in files]

    def _stamps(self) -> dict[Path, Stamp]:
        found = {}
        for _, file in self._all_files():
            try:
                status = file.stat()
            except OSError as error:
                raise DataError("data", str(file), f"it cannot be read: {error.strerror}") from error
            found[file] = (status.st_size, status.st_mtime_ns)
        return found

    @cached_property
    def _sha256(self) -> str:
        return self._digest()

    def _digest(self) -> str:
        digest = hashlib.sha256()
        for piece in self.loaded_tokenizer.bytes_of:
            digest.update(len(piece).to_bytes(4, "little") + piece)
        for split, file in self._all_files():
            size = file.stat().st_size
            digest.update(f"{split} {file.name} {size}\n".encode())
            with file.open("rb") as opened:
                digest.update(opened.read(MEGABYTE))
                opened.seek(max(size - MEGABYTE, 0))
                digest.update(opened.read())
        return digest.hexdigest()
