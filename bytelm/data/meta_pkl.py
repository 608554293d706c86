"""nanoGPT's meta.pkl: the characters of a data set and their numbers, read without running code from it.

The file contains a dict of dicts of characters and integers. A file with anything else is rejected
(restricted_pickle.py).
"""

import pickle
from pathlib import Path
from typing import Any, NamedTuple

from bytelm.data.restricted_pickle import VALUES, read_pickle

LARGEST = 2**26  # bytes; all characters of Unicode take less
MOST_TOKENS = 2**21  # more than the number of Unicode's characters
TOKENIZER, BYTES = "tokenizer", "bytes"  # a key of bytelm's, which nanoGPT ignores, and its value


class Meta(NamedTuple):
    """Content of a meta.pkl.

    Attributes:
        numbers: The number of each character that can be encoded (`stoi`).
        texts: The text that each number decodes to (`itos`).
        is_bytes: Whether the tokens are bytes, of which only some are characters. Only bytelm writes this.
    """

    numbers: dict[str, int]
    texts: dict[int, str]
    is_bytes: bool = False


def read_meta(path: Path) -> Meta:
    """Reads a meta.pkl.

    Raises:
        OSError: The file cannot be read.
        ValueError: The file has other content; the message names it.
    """
    return _checked(read_pickle(path, LARGEST, "characters and numbers", VALUES))


def write_meta(path: Path, meta: Meta) -> None:
    """Writes a meta.pkl."""
    values: dict[str, Any] = {"vocab_size": len(meta.texts), "itos": meta.texts, "stoi": meta.numbers}
    if meta.is_bytes:
        values[TOKENIZER] = BYTES
    path.write_bytes(pickle.dumps(values, protocol=4))


def _checked(values: Any) -> Meta:
    numbers, texts, tokenizer = (
        values.get(key) if isinstance(values, dict) else None for key in ("stoi", "itos", TOKENIZER)
    )
    if not isinstance(numbers, dict) or not isinstance(texts, dict):
        raise ValueError("it lacks stoi or itos")
    for character, number in numbers.items():
        if not isinstance(character, str) or len(character) != 1 or texts.get(number) != character:
            raise ValueError(f"stoi: {character!r}: {number!r} is not a character with its number in itos")
    for number, text in texts.items():
        if type(number) is not int or not 0 <= number < MOST_TOKENS or not isinstance(text, str):
            raise ValueError(f"itos: {number!r}: {text!r} is not a number with its text")
    if not numbers:
        raise ValueError("it has no characters")
    return Meta(numbers, texts, tokenizer == BYTES)
