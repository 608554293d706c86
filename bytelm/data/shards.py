"""TokenShards: text that was turned into tokens in advance (see shard_file.py), as batches.

A crop of T + 1 consecutive tokens t0 ... tT of one shard is a row with the inputs [t0, ..., t(T-1)] and the targets
[t1, ..., tT]. Files are not loaded as a whole: each batch reads its own crops.
"""

import glob
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from bytelm.config.values import NonNegativeInt, PositiveInt
from bytelm.data.base import TokenData
from bytelm.data.file_watch import FileWatch, Stamp
from bytelm.data.rows import eval_shares
from bytelm.data.shard_file import Shard, Split, Tokens, check_disjoint, find_shards
from bytelm.data.tokenizer import AUTO, Tokenizer, load_tokenizer, tokenizer_of_shards
from bytelm.errors import ConfigError, DataError
from bytelm.system.files import searched

CropOrder = Literal["random", "sequential"]
SPLITS: tuple[Split, ...] = ("train", "val")
Shards = Mapping[Path, Shard]

KEY = "data.tokenizer"
GPT2_VOCAB_SIZE = 50_257
MEGABYTE = 2**20
SCANNED = 1_000_000  # tokens at either end of a shard


class TokenShards(TokenData):
    """Tokens in files: nanoGPT's train.bin and val.bin, or llm.c's fineweb_train_*.bin and fineweb_val_*.bin.

    `validate` scores the first `eval_tokens` of the validation shards; `test` and `predict` use all of them. Every
    token is predicted once, except each shard's first, which has no token before it, and its last few, which do not
    fill a row.

    Args:
        path: Folder with the shards of both splits: the .bin files with the word `train` or `val` in their names
            (`train.bin`, `fineweb_val_000000.bin`; `medieval_train_000.bin` contains only the word `train`).
        train: Training shards, in place of those in `path`: a file, a folder (its shards with `train`), a glob pattern,
            or a list of these.
        val: Validation shards, in the same forms (in a folder, its shards with `val`).
        batch_size: Rows of one batch of one rank.
        seq_len: Tokens of a row.
        order: `random` takes crops that begin at any position with equal probability, as nanoGPT does; `sequential`
            takes them one after another, shard by shard, and starts again after the last.
        vocab_size: Size of the vocabulary; all tokens are below it. Default: that of the tokenizer; 50257,
            GPT-2's, if it is unknown.
        tokenizer: The tokenizer that made the tokens; it defines the number of bytes of each token. auto: the
            tokenizer.json, the tokenizer.pkl or nanoGPT's meta.pkl in `path`, if there is one, otherwise gpt2. null:
            unknown; then there is no `val/bpb`, and `val/loss` is the score, also in studies of many runs.
        eval_tokens: Maximum number of tokens that validation predicts.
        seed: Seed of the random order; default: the run's seed (`seed_everything`).

    Raises:
        ConfigError: Neither `path` nor `train` and `val` locate the shards.
    """

    UNUSED_WITH: ClassVar = {"seed": ("order", ("sequential",))}
    OF_TRAINING: ClassVar = ("order", "seed")
    schedulable = ("batch_size", "seq_len")

    def __init__(
        self,
        path: str | None = None,
        train: str | list[str] | None = None,
        val: str | list[str] | None = None,
        batch_size: PositiveInt = 12,
        seq_len: PositiveInt = 1024,
        order: CropOrder = "random",
        vocab_size: PositiveInt | None = None,
        tokenizer: str | None = AUTO,
        eval_tokens: PositiveInt = 1_048_576,
        seed: NonNegativeInt | None = None,
    ) -> None:
        super().__init__(batch_size, seq_len, seed)
        if path is None and not (train and val):
            raise ConfigError("data.path", path, "accepted: a folder with *train*.bin and *val*.bin; or train and val")
        self.path = path
        self.given = {"train": train, "val": val}
        self.order: CropOrder = order
        found = self.resolved({"path": path, "tokenizer": tokenizer, "vocab_size": vocab_size})
        self.tokenizer: str | None = found["tokenizer"]
        self.vocab_size = found["vocab_size"]
        self.counts_bytes = self.tokenizer is not None
        self.eval_tokens = eval_tokens
        self._shards: dict[Split, Shards] = {}

    @classmethod
    def resolved(cls, options: Mapping[str, Any]) -> dict[str, Any]:
        """See TokenData.

        Raises:
            DataError: The tokenizer cannot be loaded, or the folder in which it is searched for does not exist.
        """
        path, tokenizer, vocab_size = options["path"], options["tokenizer"], options["vocab_size"]
        if tokenizer == AUTO and path is not None:
            _folder(path)
        tokenizer = tokenizer_of_shards(tokenizer, path)
        if vocab_size is None:
            is_known = tokenizer in (None, "gpt2")  # without a download
            vocab_size = GPT2_VOCAB_SIZE if is_known else load_tokenizer(str(tokenizer), KEY).vocab_size
        return {"tokenizer": tokenizer, "vocab_size": vocab_size}

    def shards(self, split: Split) -> Shards:
        """Returns the tokens of a split's files, read on first access.

        Raises:
            DataError: The files do not exist, cannot be read, or contain tokens that are not below vocab_size.
        """
        if split not in self._shards:
            shards = {file: Shard(file) for file in self._files(split)}
            for file, shard in shards.items():
                if self.vocab_size > (most := 1 + np.iinfo(shard.dtype).max):
                    reason = f"{file} has {8 * shard.dtype.itemsize}-bit tokens; accepted: up to {most}"
                    raise DataError("data.vocab_size", self.vocab_size, reason)
                check_ends(shard, self.vocab_size)
            self._shards[split] = shards
        return self._shards[split]

    def val_files(self) -> list[Path]:
        return [*self.shards("val")]

    def setup(self, stage: str) -> None:
        if stage == "fit":
            check_disjoint(*(self.shards(split) for split in SPLITS))
        for split in SPLITS if stage == "fit" else ("val",):
            if (longest := max(map(len, self.shards(split).values()))) <= self.seq_len:
                reason = f"the longest of the {split} shards has {longest} tokens; accepted: up to {longest - 1}"
                raise DataError("data.seq_len", self.seq_len, reason)
        if stage == "fit":
            self._watch, self._sha256  # noqa: B018  (now, not when the first checkpoint is written and the clock runs)
        if self.tokenizer is not None and self.token_bytes is None:
            self.token_bytes = self._read_token_bytes(self.tokenizer)

    def text_tokenizer(self) -> Tokenizer | None:
        return None if self.tokenizer is None else self._loaded_tokenizer

    @cached_property
    def _loaded_tokenizer(self) -> Tokenizer:
        return load_tokenizer(str(self.tokenizer), KEY)

    def changed(self) -> str | None:
        return self._watch.changed(self._sha256)

    def corpus_record(self) -> dict[str, Any]:
        """See TokenData; `sha256` is the hash of all shards' names, sizes, first and last megabytes."""
        train, val = self.shards("train"), self.shards("val")
        return {
            "name": next(iter(train)).absolute().parent.name,
            "tokens": {"train": sum(map(len, train.values())), "val": sum(map(len, val.values()))},
            "sha256": self._sha256,
        }

    def train_tokens(self) -> int:
        return sum(map(len, self.shards("train").values()))

    def train_loader(self, seed: int, rank: int, world_size: int) -> "CropLoader":
        stride = 1 if self.order == "random" else self.seq_len
        return CropLoader(self._crops("train", stride), self.batch_size, self.order, seed, rank, world_size)

    def check_sizes(self, key: str, option: str, sizes: Sequence[int]) -> None:
        longest = max(map(len, self.shards("train").values()))
        if option == "seq_len" and max(sizes) >= longest:
            reason = f"the longest of the train shards has {longest} tokens; accepted: up to {longest - 1}"
            raise DataError(key, max(sizes), reason)

    def val_dataloader(self) -> "EvalCrops":
        return self._eval_crops(max(self.eval_tokens // self.seq_len, 1))

    def test_dataloader(self) -> "EvalCrops":
        return self._eval_crops()

    def _eval_crops(self, most: int | None = None) -> "EvalCrops":
        return EvalCrops(self._crops("val", self.seq_len), self.batch_size, most, *self._rank())

    def _crops(self, split: Split, stride: int) -> "Crops":
        # A copy from pinned memory to a GPU runs in parallel with the program, which does not wait for it.
        on_gpu = self.trainer is not None and self.trainer.strategy.root_device.type == "cuda"
        return Crops(self.shards(split), self.seq_len, stride, self.vocab_size, pin_memory=on_gpu)

    def _files(self, split: Split) -> list[Path]:
        given = self.given[split]
        if not given:
            files = find_shards(_folder(str(self.path)), split)
            if not files:
                accepted = f"accepted: a folder with .bin files that have the word `{split}` in their names"
                raise DataError("data.path", self.path, accepted)
            return files
        places = [given] if isinstance(given, str) else given
        return [file for place in places for file in _files(split, place)]

    @cached_property
    def _watch(self) -> FileWatch:
        return FileWatch(self._stamps, self._digest)

    def _stamps(self) -> dict[Path, Stamp]:
        return {path: shard.stamp() for split in SPLITS for path, shard in self.shards(split).items()}

    @cached_property
    def _sha256(self) -> str:
        return self._digest()

    def _digest(self) -> str:
        digest = hashlib.sha256()
        for split in SPLITS:
            for path, shard in self.shards(split).items():
                digest.update(f"{split} {path.name} {shard.size}\n".encode())
                ends = min(shard.size, MEGABYTE)
                digest.update(shard.read(0, ends))
                digest.update(shard.read(shard.size - ends, ends))
        return digest.hexdigest()

    def _read_token_bytes(self, name: str) -> Tensor:
        tokenizer = self._loaded_tokenizer
        if tokenizer.vocab_size > self.vocab_size:
            accepted = f"accepted: from {tokenizer.vocab_size}, the tokens of {name}"
            raise ConfigError("data.vocab_size", self.vocab_size, accepted)
        for shard in self.shards("val").values():  # the number of bytes is unknown for tokens that the tokenizer lacks
            check_ends(shard, tokenizer.vocab_size, key="data.tokenizer", value=name)
        return F.pad(tokenizer.token_bytes, (0, self.vocab_size - tokenizer.vocab_size))


def _folder(path: str) -> Path:
    """Returns a folder.

    Raises:
        DataError: It does not exist.
    """
    folder = Path(path).expanduser()
    if not folder.is_dir():
        missing = "it is not a folder" if folder.exists() else f"not found{searched(folder)}"
        raise DataError("data.path", path, f"{missing}; accepted: a folder with .bin files of both splits")
    return folder


class Crops:
    """Crops of several shards, numbered consecutively; they begin at every `stride`-th token and end in the same shard.

    Args:
        shards: Their tokens, as shards or as arrays, (n,) each.
        seq_len: Tokens of a row, one fewer than those of a crop.
        stride: Tokens from the beginning of one crop to the beginning of the next.
        vocab_size: All tokens must be below it.
        pin_memory: Whether batches are in pinned memory, which a GPU can read directly.
    """

    def __init__(
        self,
        shards: Mapping[Path, Shard | Tokens],
        seq_len: int,
        stride: int,
        vocab_size: int,
        pin_memory: bool = False,
    ) -> None:
        self.vocab_size = vocab_size
        self.pin_memory = pin_memory
        self._files = list(shards)
        self._tokens = [*shards.values()]
        self.lengths = [len(tokens) for tokens in self._tokens]
        self.resize(seq_len, stride)

    def resize(self, seq_len: int, stride: int) -> None:
        """Sets the length of the next crops."""
        self.seq_len = seq_len
        self.stride = stride
        counts = np.array([max((length - 1 - seq_len) // stride + 1, 0) for length in self.lengths], dtype=np.int64)
        self._ends = np.cumsum(counts)
        self._begins = self._ends - counts

    def __len__(self) -> int:
        return int(self._ends[-1])

    def places(self, numbers: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Returns the shards of some crops and the crops' first tokens there, each (B,)."""
        shards = np.searchsorted(self._ends, numbers, side="right")
        return shards, (numbers - self._begins[shards]) * self.stride

    def take(self, numbers: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        """Returns the batch of the crops with these numbers, (B,); see `cut`."""
        return self.cut(*self.places(numbers))

    def cut(self, shards: NDArray[np.int64], starts: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        """Makes a batch.

        Args:
            shards: The shard of each crop, (B,).
            starts: The first token of each crop in its shard, (B,).

        Returns:
            Inputs and targets, int64, each (B, T).

        Raises:
            DataError: A token is not below vocab_size.
        """
        # Two copies, not two views of one: a tensor that is not contiguous cannot be copied directly from pinned memory
        # to a GPU.
        batch = torch.empty((2, len(starts), self.seq_len), dtype=torch.int64, pin_memory=self.pin_memory)
        inputs, targets = batch.numpy()
        for row, (shard, start) in enumerate(zip(shards.tolist(), starts.tolist(), strict=True)):
            crop = self._tokens[shard][start : start + self.seq_len + 1]
            inputs[row] = crop[:-1]
            targets[row] = crop[1:]
        if batch.numpy().max(initial=0) >= self.vocab_size:
            for shard, row_inputs, row_targets in zip(shards.tolist(), inputs, targets, strict=True):
                check_tokens(np.append(row_inputs, row_targets), self.vocab_size, self._files[shard])
        return batch[0], batch[1]


class CropLoader:
    """Endless batches of one rank's crops; the position can be saved.

    `random` draws each batch from a generator that is seeded by the seed, the position and the rank; a batch does not
    depend on earlier draws. `sequential` follows the shards without overlap and starts again after the last; all ranks
    together take consecutive crops. `batch_size` and `seq_len` can be set between two batches; in sequential order no
    token is then skipped or predicted twice.

    Args:
        crops: The crops to make batches from.
        batch_size: Crops of one batch of one rank.
        order: `random` or `sequential`.
        seed: Seed of the random order.
        rank: This rank.
        world_size: Number of ranks.
    """

    def __init__(
        self, crops: Crops, batch_size: int, order: CropOrder, seed: int = 0, rank: int = 0, world_size: int = 1
    ) -> None:
        self.crops = crops
        self.batch_size = batch_size
        self.order = order
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.position = 0  # crops that all ranks together have taken
        self._shard, self._token = 0, 0  # where the next crop begins in sequential order

    @property
    def seq_len(self) -> int:
        """Tokens of a row."""
        return self.crops.seq_len

    @seq_len.setter
    def seq_len(self, seq_len: int) -> None:
        if seq_len != self.crops.seq_len:
            self.crops.resize(seq_len, 1 if self.order == "random" else seq_len)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        while True:
            before = self.state_dict()
            shards, starts = self._random() if self.order == "random" else self._sequential()
            try:
                batch = self.crops.cut(shards, starts)
            except DataError:
                self.load_state_dict(before)  # the position counts only batches that were taken
                raise
            self.position += self.batch_size * self.world_size
            yield batch

    def state_dict(self) -> dict[str, Any]:
        """Lightning stores this state in checkpoints."""
        place = {} if self.order == "random" else {"shard": self._shard, "token": self._token}
        return {"position": self.position, **place}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resumes at a checkpoint's position; an older version's position is the number of the next crop."""
        self.position = state["position"]
        if "shard" in state:
            self._shard, self._token = state["shard"], state["token"]
        elif self.order == "sequential":
            shards, starts = self.crops.places(np.array([self.position % len(self.crops)]))
            self._shard, self._token = int(shards[0]), int(starts[0])

    def _random(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        generator = np.random.default_rng((self.seed, self.position, self.rank))
        return self.crops.places(generator.integers(len(self.crops), size=self.batch_size))

    def _sequential(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Returns this rank's part of the next crops of all ranks."""
        shards, starts = [], []
        left = self.batch_size * self.world_size
        while left:
            n = min(left, max((self.crops.lengths[self._shard] - 1 - self._token) // self.seq_len, 0))
            shards.append(np.full(n, self._shard))
            starts.append(self._token + self.seq_len * np.arange(n))
            self._token += n * self.seq_len
            left -= n
            if left:  # no whole crop of this shard is left
                self._shard, self._token = (self._shard + 1) % len(self.crops.lengths), 0
        own = slice(self.rank * self.batch_size, (self.rank + 1) * self.batch_size)
        return np.concatenate(shards)[own], np.concatenate(starts)[own]


class EvalCrops:
    """Yields the first crops once, divided over the ranks (see eval_shares).

    Args:
        crops: The crops to make batches from.
        batch_size: Maximum number of crops of a batch.
        most: Maximum number of crops; default: all.
        rank: This rank.
        world_size: Number of ranks.
    """

    def __init__(
        self, crops: Crops, batch_size: int, most: int | None = None, rank: int = 0, world_size: int = 1
    ) -> None:
        self.crops = crops
        n_crops = len(crops) if most is None else min(len(crops), most)
        self.batches = [share.numpy() for share in eval_shares(n_crops, batch_size, rank, world_size)]

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return map(self.crops.take, self.batches)


def check_tokens(
    tokens: NDArray[Any], vocab_size: int, file: Path, key: str = "data.vocab_size", value: object = None
) -> None:
    """Rejects tokens outside a vocabulary.

    Args:
        tokens: Tokens of a shard.
        vocab_size: All tokens must be below it.
        file: The shard.
        key: The option that sets the vocabulary.
        value: Its value; default: vocab_size.

    Raises:
        DataError: A token is not below vocab_size.
    """
    if (largest := int(tokens.max(initial=0))) >= vocab_size:
        accepted = f"; accepted: from {largest + 1}" if value is None else f", and it knows {vocab_size} tokens"
        raise DataError(key, vocab_size if value is None else value, f"{file} has token {largest}{accepted}")


def check_ends(shard: Shard, vocab_size: int, **option: Any) -> None:
    """Rejects a shard whose first or last tokens are outside a vocabulary; see `check_tokens`."""
    for tokens in (shard[:SCANNED], shard[-SCANNED:]):
        check_tokens(tokens, vocab_size, shard.path, **option)


def _files(split: Split, place: str) -> list[Path]:
    path = Path(place).expanduser()
    if path.is_dir():
        files = find_shards(path, split)
    elif path.is_file():
        files = [path]
    else:
        files = sorted(Path(name) for name in glob.glob(str(path), recursive=True) if Path(name).is_file())
    if not files:
        accepted = (
            f"accepted: a file of tokens, a folder with .bin files that have the word `{split}` in their names, or a "
            "glob pattern that matches files"
        )
        raise DataError(f"data.{split}", place, accepted)
    return files
