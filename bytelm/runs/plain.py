"""Plain values: the contents of a checkpoint that can be read without running code.

The state of a user's callback, module or data may contain other values. Numbers of numpy become Python's. A Path, an
Enum, an array of numpy or a container of a user's class is converted, and a note names the key. Other values are
rejected when the checkpoint is written, because it could not be read.
"""

from collections import OrderedDict
from collections.abc import Mapping
from enum import Enum
from pathlib import PurePath
from typing import Any

import numpy as np
import torch

from bytelm.config.messages import note
from bytelm.errors import CheckpointError

LEAVES = (bool, int, float, complex, str, bytes, type(None), torch.dtype, torch.device, torch.Size)
CONTAINERS = (dict, OrderedDict, list, tuple, set)

_told: set[str] = set()  # keys that a note has named


def plain(value: Any, key: str = "") -> Any:
    """Converts a value to plain values.

    Args:
        value: A checkpoint, or a part of it.
        key: Its place, for messages: `callbacks.MyCallback.best`.

    Returns:
        The value itself if it is plain; otherwise a copy with the same tensors.

    Raises:
        CheckpointError: A checkpoint cannot contain a value in it; the message names its key.
    """
    if isinstance(value, torch.Tensor) or type(value) in LEAVES:
        return value
    if isinstance(value, np.generic) and isinstance(value.item(), LEAVES):
        return value.item()
    if isinstance(value, Enum):
        return _converted(value, plain(value.value, key), key)
    if isinstance(value, PurePath):
        return _converted(value, str(value), key)
    if isinstance(value, np.ndarray) and value.dtype.kind in "biufc":
        return _converted(value, torch.tensor(value), key)
    if isinstance(value, LEAVES):
        return _converted(value, _base(value, LEAVES)(value), key)
    if isinstance(value, Mapping):
        items = {plain(name, f"{key}.{name}"): plain(inner, _join(key, name)) for name, inner in value.items()}
        if all(a is b and value[b] is items[a] for a, b in zip(items, value, strict=True)):
            return value if type(value) in CONTAINERS else _converted(value, items, key)
        return items if type(value) in CONTAINERS else _converted(value, items, key)
    if isinstance(value, list | tuple | set):
        elements = [plain(inner, f"{key}[{number}]") for number, inner in enumerate(value)]
        if type(value) in CONTAINERS and all(a is b for a, b in zip(elements, value, strict=True)):
            return value
        made = _base(value, CONTAINERS)(elements)
        return made if type(value) in CONTAINERS else _converted(value, made, key)
    raise CheckpointError(
        f"{key}: an object of {_name(value)} cannot be saved in a checkpoint, which contains plain values and tensors; "
        "return numbers, text, lists, dictionaries or tensors from state_dict"
    )


def _join(key: str, name: object) -> str:
    # The key of a Lightning callback's state includes its options: ModelCheckpoint{'monitor': …}.
    text = str(name).partition("{")[0] if key == "callbacks" else str(name)
    return f"{key}.{text}" if key else text


def _base(value: Any, bases: tuple[type, ...]) -> Any:
    return next(base for base in bases if isinstance(value, base))


def _name(value: object) -> str:
    return f"{type(value).__module__}.{type(value).__qualname__}".removeprefix("builtins.")


def _converted(value: object, made: Any, key: str) -> Any:
    if key not in _told:
        _told.add(key)
        note(f"{key}: a checkpoint stores {_name(value)} as {_name(made)}, and restores it as {_name(made)}")
    return made
