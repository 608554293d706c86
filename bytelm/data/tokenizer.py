"""Tokenizers: text to tokens and back, and the number of bytes of each token, on which val_bpb is based.

Every text token stands for certain bytes, and a text is the bytes of its tokens joined together. A special token stands
for no bytes: it marks the beginning of a document and decodes to nothing. Text that looks like a special token is
encoded as text.
"""

import json
import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from functools import cached_property, lru_cache
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bytelm.data import tokenizer_json
from bytelm.data.encoding_pickle import is_encoding, read_encoding
from bytelm.data.meta_pkl import read_meta
from bytelm.data.tokenizer_json import BYTE_OF
from bytelm.errors import ConfigError, DataError

if TYPE_CHECKING:
    from torch import Tensor

BOS = 0  # the byte that begins a row of bytes; it does not occur in text
MOST_TOKENS = 2**24  # memory grows with the largest one
KEY = "tokenizer"  # key of the data and of the scripts
INSTALL = 'pip install "bytelm[tokens]" installs it'
PICKLE = "tokenizer.pkl"
META = "meta.pkl"  # of nanoGPT's data sets of characters
TOKENIZER_JSON = "tokenizer.json"
AUTO = "auto"  # the tokenizer of shards that is found beside them
END_OF_TEXT = ("<|endoftext|>", "<|end_of_text|>", "</s>")  # its names in a tokenizer.json; the first one found counts
BEGINNINGS = ("<|bos|>", "<|reserved_0|>", *END_OF_TEXT)  # nanochat's and autoresearch's names, in a tokenizer.pkl


class Tokenizer(ABC):
    """Text as tokens.

    Args:
        name: The name that `load_tokenizer` accepts for it.
        bytes_of: The bytes of each token; empty for special tokens and for unused numbers.
        end_of_text: The special token that begins a document, if the tokenizer has one.

    Attributes:
        vocab_size: The largest token plus one.
    """

    def __init__(self, name: str, bytes_of: Sequence[bytes], end_of_text: int | None) -> None:
        self.name = name
        self.bytes_of = bytes_of
        self.end_of_text = end_of_text
        self.vocab_size = len(bytes_of)

    @cached_property
    def token_bytes(self) -> "Tensor":
        """Number of bytes of each token, int64, (vocab_size,)."""
        import torch  # here, because a process that only encodes starts faster without it

        return torch.tensor([len(piece) for piece in self.bytes_of])

    @abstractmethod
    def encode(self, text: str) -> list[int]:
        """Returns the tokens of a text, without special tokens."""

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Returns the tokens of each of several texts."""
        return [self.encode(text) for text in texts]

    @abstractmethod
    def to_json(self) -> str:
        """Returns the content of a tokenizer.json with which Hugging Face's libraries make the same tokens from a text.

        There, special tokens are recognised in texts, as is usual; here they are encoded as ordinary text.

        Raises:
            ConfigError: No tokenizer.json makes the same tokens.
        """

    def decode_bytes(self, tokens: Iterable[int]) -> bytes:
        """Returns the bytes of tokens, which may begin or end inside a character."""
        return b"".join(self.bytes_of[token] for token in tokens)

    def decode(self, tokens: Iterable[int]) -> str:
        """Returns the text of tokens, with U+FFFD for bytes that are not UTF-8."""
        return self.decode_bytes(tokens).decode("utf-8", errors="replace")


class ByteTokenizer(Tokenizer):
    """A token is a byte of UTF-8. Byte 0, which is not in text, marks the beginning, as in bytelm/data/rows.py."""

    def __init__(self) -> None:
        bytes_of = [bytes([byte]) for byte in range(256)]
        bytes_of[BOS] = b""
        super().__init__("bytes", bytes_of, BOS)

    def encode(self, text: str) -> list[int]:
        return list(text.encode())

    def to_json(self) -> str:
        return tokenizer_json.of_bytes(BOS)


class CharacterTokenizer(Tokenizer):
    """A token is a character, numbered as in nanoGPT's meta.pkl.

    Args:
        path: The file.

    Raises:
        DataError: It cannot be read, or is not a meta.pkl.
    """

    def __init__(self, path: str | Path) -> None:
        try:
            meta = read_meta(Path(path))
        except (OSError, ValueError) as error:
            accepted = "accepted: a meta.pkl as nanoGPT writes it"
            raise DataError(KEY, str(path), f"it cannot be read: {error}; {accepted}") from error
        self.numbers, self.texts = meta.numbers, meta.texts
        bytes_of = [self.texts.get(number, "").encode() for number in range(1 + max(self.texts))]
        super().__init__(str(path), bytes_of, None)

    def encode(self, text: str) -> list[int]:
        try:
            return [self.numbers[character] for character in text]
        except KeyError as error:
            accepted = f"accepted with {self.name}: texts of its {len(self.numbers)} characters"
            raise ConfigError("text", error.args[0], accepted) from error

    def to_json(self) -> str:
        return tokenizer_json.of_characters(self.numbers)


class EncodingTokenizer(Tokenizer):
    """A tokenizer that tiktoken's encoding computes.

    Args:
        name: See Tokenizer.
        encoding: The encoding.
        end_of_text: The special token that begins a document, if it has one.
    """

    def __init__(self, name: str, encoding: Any, end_of_text: int | None) -> None:
        self._encoding = encoding
        super().__init__(name, [*map(self._bytes, range(encoding.n_vocab))], end_of_text)

    def _bytes(self, token: int) -> bytes:
        try:
            special = self._encoding.is_special_token(token)
            return b"" if special else self._encoding.decode_single_token_bytes(token)
        except KeyError:  # a gap between the text tokens and the special ones
            return b""

    def encode(self, text: str) -> list[int]:
        return self._encoding.encode_ordinary(text)

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        return self._encoding.encode_ordinary_batch(list(texts), num_threads=n_threads())

    def to_json(self) -> str:
        # tiktoken's README names these attributes for deriving one encoding from another.
        encoding = self._encoding
        content = tokenizer_json.of_ranks(encoding._mergeable_ranks, encoding._pat_str, encoding._special_tokens)
        theirs = _imported("tokenizers", self.name).Tokenizer.from_str(content)
        for text in (tokenizer_json.PROBE, tokenizer_json.PROBE[::-1]):
            if theirs.encode(text).ids != self.encode(text):
                accepted = "accepted: a tokenizer.json in its place (--tokenizer)"
                raise ConfigError(KEY, self.name, f"no tokenizer.json makes the same tokens of a text; {accepted}")
        return content


class TiktokenTokenizer(EncodingTokenizer):
    """One of tiktoken's tokenizers, which tiktoken downloads on first use.

    Args:
        name: tiktoken's name of it, such as gpt2.

    Raises:
        DataError: The name is unknown, the download failed, or tiktoken is not installed.
    """

    def __init__(self, name: str) -> None:
        tiktoken = _imported("tiktoken", name)
        known = tiktoken.list_encoding_names()
        if name not in known:
            files = "a tokenizer.json or tokenizer.pkl or a folder with one, a meta.pkl"
            raise DataError(KEY, name, f"accepted: bytes, {', '.join(known)}, {files}")
        try:
            encoding = tiktoken.get_encoding(name)
        except (OSError, ValueError) as error:  # ValueError: the download is not in the form that tiktoken expects
            advice = "set TIKTOKEN_CACHE_DIR to a folder where tiktoken has kept it, or give a tokenizer.json"
            # urllib3's error is a chain of objects in one line.
            reason = "no connection to its server" if "Max retries" in str(error) else str(error)
            raise DataError(KEY, name, f"tiktoken cannot download it ({reason}); {advice}") from error
        end_of_text = encoding.eot_token if END_OF_TEXT[0] in encoding.special_tokens_set else None
        super().__init__(name, encoding, end_of_text)


class EncodingFile(EncodingTokenizer):
    """A tokenizer.pkl as autoresearch and nanochat write it: a pickled tiktoken.Encoding. No code of it is run.

    Args:
        path: The file, or the folder that contains it.

    Raises:
        DataError: It cannot be read, has other content, or tiktoken is not installed.
    """

    def __init__(self, path: str | Path) -> None:
        tiktoken = _imported("tiktoken", str(path))
        file = Path(path).expanduser()
        file = file / PICKLE if file.is_dir() else file
        try:
            read = read_encoding(file)
            encoding = tiktoken.Encoding(
                read.name, pat_str=read.pattern, mergeable_ranks=read.ranks, special_tokens=read.special
            )
        except Exception as error:  # tiktoken raises any error, depending on the pattern
            accepted = "accepted: a pickled tiktoken.Encoding, or nanoGPT's meta.pkl"
            raise DataError(KEY, str(path), f"{file} cannot be read: {error}; {accepted}") from error
        end_of_text = next((read.special[name] for name in BEGINNINGS if name in read.special), None)
        super().__init__(str(path), encoding, end_of_text)


class TokenizerFile(Tokenizer):
    """A tokenizer.json of Hugging Face's tokenizers with byte-level BPE, like those of GPT-2, Pythia, OLMo and SmolLM.

    Other kinds are rejected, because the bytes of their tokens are unknown. Tokenizers that change the text before they
    encode it are rejected too, except for NFC, which leaves nearly all text unchanged.

    Args:
        path: The file, or the folder that contains it.

    Raises:
        DataError: It does not exist, is of another kind, or tokenizers is not installed.
    """

    def __init__(self, path: str | Path) -> None:
        tokenizers = _imported("tokenizers", str(path))
        file = Path(path).expanduser()
        file = file / TOKENIZER_JSON if file.is_dir() else file
        try:
            content = file.read_text(encoding="utf-8")
            reason = _not_byte_level(json.loads(content))
        except (OSError, ValueError, RecursionError) as error:
            raise DataError(KEY, str(path), f"{file} cannot be read: {error}") from error
        if reason:
            raise DataError(KEY, str(path), f"{reason}; accepted: byte-level BPE, with no normalizer or NFC")
        try:
            self._tokenizer = tokenizers.Tokenizer.from_str(content)
        except Exception as error:  # the only kind that tokenizers raises
            raise DataError(KEY, str(path), f"tokenizers cannot read {file}: {error}") from error
        self._content = content
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._tokenizer.encode_special_tokens = True  # encoded as ordinary text

        added = self._tokenizer.get_added_tokens_decoder()
        learned = {token: text for text, token in self._tokenizer.get_vocab().items() if token not in added}
        if (largest := max([0, *added, *learned])) >= MOST_TOKENS:
            raise DataError(KEY, str(path), f"it has token {largest}; accepted: tokens below {MOST_TOKENS}")
        bytes_of = [b""] * (1 + largest)
        try:
            for token, text in learned.items():
                bytes_of[token] = bytes(BYTE_OF[character] for character in text)
        except KeyError as error:
            raise DataError(KEY, str(path), f"its token {text!r} is not written in the alphabet of bytes") from error
        for token, one in added.items():
            bytes_of[token] = b"" if one.special else one.content.encode()
        special = {one.content: token for token, one in added.items() if one.special}
        end_of_text = next((special[name] for name in END_OF_TEXT if name in special), None)
        super().__init__(str(path), bytes_of, end_of_text)

    def encode(self, text: str) -> list[int]:
        return self._tokenizer.encode(text, add_special_tokens=False).ids

    def to_json(self) -> str:
        return tokenizer_json.of_file(self._content)

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        # Uses several threads, and does not compute the position of each token in the text.
        return [found.ids for found in self._tokenizer.encode_batch_fast(texts, add_special_tokens=False)]


def _imported(package: str, name: str) -> Any:
    """Returns a package; `name` is the tokenizer that needs it, for the message."""
    try:
        return import_module(package)
    except ImportError as error:
        raise DataError(KEY, name, f"it needs {package}, which is not installed; {INSTALL}") from error


def _not_byte_level(content: Any) -> str | None:
    """Returns the reason why the bytes of a tokenizer.json's tokens are unknown, or not the text's; None if neither."""
    try:
        if (model := content["model"]["type"]) != "BPE":
            return f"it is a {model}"
        if (normalizer := content["normalizer"]) is not None and normalizer["type"] != "NFC":
            return f"its normalizer {normalizer['type']} changes the text"
        before = content["pre_tokenizer"] or {}
        levels = [step for step in before.get("pretokenizers", [before]) if step.get("type") == "ByteLevel"]
    except (AttributeError, KeyError, TypeError):
        return "it is not a tokenizer.json"
    if not levels:
        return "its BPE is not of bytes"
    if any(level["add_prefix_space"] for level in levels):
        return "it puts a space before the text (add_prefix_space)"
    return None


def n_threads() -> int:
    """Number of threads that encode a batch: one where several processes do, as Hugging Face's tokenizers are told."""
    return 1 if os.environ.get("TOKENIZERS_PARALLELISM") == "false" else min(8, os.cpu_count() or 1)


def tokenizer_of_shards(name: str | None, folder: str | None) -> str | None:
    """Returns the name of the tokenizer that made the tokens of a folder.

    Args:
        name: `auto`: the tokenizer.json, tokenizer.pkl or meta.pkl in the folder, if there is one, otherwise gpt2. Any
            other name is returned.
        folder: The folder; None for shards that are named one by one.
    """
    if name != AUTO:
        return name
    files = [] if folder is None else [Path(folder, each) for each in (TOKENIZER_JSON, PICKLE, META)]
    return next((str(file) for file in files if file.expanduser().is_file()), "gpt2")


def load_tokenizer(name: str, key: str = KEY) -> Tokenizer:
    """Loads a tokenizer by name.

    Args:
        name: `bytes`; a tokenizer.json or a tokenizer.pkl (a pickled tiktoken.Encoding), or a folder that contains one;
            nanoGPT's meta.pkl; or one of tiktoken's names, such as gpt2.
        key: The option that gives it, for the message.

    Raises:
        DataError: It does not exist, cannot be used, or needs a package that is not installed.
    """
    try:
        return _load(name)
    except DataError as error:
        raise DataError(key, error.value, error.accepted) from error


def _load(name: str) -> Tokenizer:
    if name == "bytes":
        return ByteTokenizer()
    path = Path(name).expanduser()
    if name.endswith(".json") or (path / TOKENIZER_JSON).is_file():
        file = path / TOKENIZER_JSON if path.is_dir() else path
        status = file.stat() if file.exists() else None
        return _of_file(name, file.absolute(), status and (status.st_mtime_ns, status.st_size))
    if (path / PICKLE).is_file() or (name.endswith(".pkl") and is_encoding(path)):
        return EncodingFile(name)
    if name.endswith(".pkl"):
        return CharacterTokenizer(name)
    return TiktokenTokenizer(name)


@lru_cache(maxsize=1)
def _of_file(name: str, file: Path, stamp: tuple[int, int] | None) -> TokenizerFile:
    """Loads a tokenizer.json, which takes seconds if its vocabulary is large; a run asks for it several times.

    Args:
        name: See TokenizerFile.
        file: The file, which another working directory can change.
        stamp: Time of its last change, and its size.
    """
    return TokenizerFile(name)
