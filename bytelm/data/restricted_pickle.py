"""Pickles of other programs, read without running code from them.

A pickle is a program for a machine that can import and call anything. The files that bytelm reads need only a few of
its instructions. A file with any other instruction is rejected unread.
"""

import io
import pickle
import pickletools
from collections.abc import Set
from pathlib import Path
from typing import Any

# Instructions of protocols 0 to 5: dicts, texts, integers, and the memory that keeps a value for its next use.
VALUES = {
    *("PROTO", "FRAME", "STOP", "MARK", "DICT", "EMPTY_DICT", "SETITEM", "SETITEMS"),
    *("UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
    *("INT", "LONG", "LONG1", "BININT", "BININT1", "BININT2"),
    *("MEMOIZE", "PUT", "BINPUT", "LONG_BINPUT", "GET", "BINGET", "LONG_BINGET"),
}


def read_pickle(
    path: Path, largest: int, content: str, opcodes: Set[str], unpickler: type[pickle.Unpickler] = pickle.Unpickler
) -> Any:
    """Reads a pickle that has only the given instructions.

    Args:
        path: The file.
        largest: Its largest size, in bytes.
        content: The accepted content, for messages.
        opcodes: Names of the instructions that it may have.
        unpickler: Finds the classes that it names, if the instructions allow it to name any.

    Raises:
        OSError: The file cannot be read.
        ValueError: The file is too large, has other instructions, or is damaged.
    """
    with path.open("rb") as file:
        data = file.read(largest + 1)
    if len(data) > largest:
        raise ValueError(f"it is larger than {largest} bytes")
    try:
        for opcode, argument, _ in pickletools.genops(data):
            if opcode.name not in opcodes:
                raise ValueError(f"it holds more than {content} (instruction {opcode.name})")
            if opcode.name in ("PUT", "LONG_BINPUT") and int(argument or 0) >= len(data):
                raise ValueError(f"it asks for memory number {argument}")  # each takes space
        return unpickler(io.BytesIO(data)).load()
    except ValueError:
        raise
    except Exception as error:  # pickle raises any error, depending on the damage
        raise ValueError(f"it is not a pickle ({error})") from error
