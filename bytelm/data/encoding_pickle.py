"""A pickled tiktoken.Encoding, as nanochat and autoresearch write tokenizer.pkl, read without running code from it.

The file consists of texts, bytes, numbers and dicts, and one object of the class tiktoken.core.Encoding. A file with
other instructions (restricted_pickle.py) or another class is rejected, and a class without code takes the place of the
encoding.
"""

import pickle
from pathlib import Path
from typing import Any, NamedTuple

from bytelm.data.restricted_pickle import VALUES, read_pickle

LARGEST = 2**28  # bytes
CLASS = ("tiktoken.core", "Encoding")
OPCODES = VALUES | {
    *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "EMPTY_TUPLE", "NONE"),
    *("GLOBAL", "STACK_GLOBAL", "NEWOBJ", "BUILD"),  # the object
}


class Encoding(NamedTuple):
    """The arguments of tiktoken.Encoding.

    Attributes:
        name: Its name.
        pattern: Regular expression that cuts text into pieces.
        ranks: The number of each token's bytes.
        special: Special tokens and their numbers.
    """

    name: str
    pattern: str
    ranks: dict[bytes, int]
    special: dict[str, int]


class _State:
    """Takes the place of tiktoken.Encoding, and keeps the state that it would be restored from."""

    values: Any = None

    def __setstate__(self, values: Any) -> None:
        self.values = values


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) != CLASS:
            raise ValueError(f"it names {module}.{name}; accepted: {'.'.join(CLASS)}")
        return _State


def is_encoding(path: Path) -> bool:
    """Returns whether a file that can be read begins like a pickled tiktoken.Encoding."""
    try:
        with path.open("rb") as file:
            return CLASS[0].encode() in file.read(256)
    except OSError:
        return False


def read_encoding(path: Path) -> Encoding:
    """Reads a pickled tiktoken.Encoding.

    Raises:
        OSError: The file cannot be read.
        ValueError: The file has other content; the message names it.
    """
    found = read_pickle(path, LARGEST, "an encoding", OPCODES, _Unpickler)
    return _checked(found.values if isinstance(found, _State) else None)


def _checked(values: Any) -> Encoding:
    if not isinstance(values, dict):  # tiktoken pickles those that it knows by their names
        raise ValueError(f"it holds no encoding with its tokens, but {values!r}"[:200])
    name, pattern, ranks, special = (
        values.get(key) for key in ("name", "pat_str", "mergeable_ranks", "special_tokens")
    )
    if not (isinstance(name, str) and isinstance(pattern, str)):
        raise ValueError("it lacks name or pat_str")
    if not (isinstance(ranks, dict) and isinstance(special, dict)):
        raise ValueError("it lacks mergeable_ranks or special_tokens")
    for numbers, kind in ((ranks, bytes), (special, str)):
        for token, number in numbers.items():
            if not isinstance(token, kind) or type(number) is not int or not 0 <= number < 2**24:
                raise ValueError(f"{token!r}: {number!r} is not a token with its number")
    if len({*ranks.values(), *special.values()}) < len(ranks) + len(special):
        raise ValueError("two of its tokens have one number")
    if missing := [byte for byte in range(256) if bytes([byte]) not in ranks]:
        raise ValueError(f"it has no token for byte {missing[0]}")
    return Encoding(name, pattern, ranks, special)
