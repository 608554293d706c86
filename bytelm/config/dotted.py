"""Keys with dots beside the key that they belong to: `optimizer: Muon` and `optimizer.lr: 0.02` in one mapping.

jsonargparse reads the two as settings of the same key, and keeps one of them.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bytelm.config.flat import OF_CLASS


def joined(value: Any) -> Any:
    """A config in which the value of a key contains its keys with dots, if the same mapping has both.

    Args:
        value: The config, or a value in it. A key with dots wins over the same option inside the value.
    """
    if isinstance(value, list):
        return [joined(each) for each in value]
    if not isinstance(value, Mapping):
        return value
    whole = {key: joined(inner) for key, inner in value.items()}
    for key in sorted(filter(lambda key: isinstance(key, str) and "." in key, whole), key=len):
        places = [place for place in whole if isinstance(place, str) and key.startswith(f"{place}.")]
        place = max(places, key=len, default="")
        if _has_options(whole.get(place)):
            whole[place] = _with(whole[place], key.removeprefix(f"{place}."), whole.pop(key))
    return whole


def _has_options(value: Any) -> bool:
    """Whether a value is a mapping or a class's name; not the path of a file with the key's value."""
    return isinstance(value, Mapping) or (isinstance(value, str) and not Path(value).is_file())


def _with(value: Any, key: str, option: Any) -> dict[str, Any]:
    whole = {"class_path": value} if isinstance(value, str) else dict(value)
    name, _, rest = key.partition(".")
    if key == "class_path":
        return _both(whole, option)
    if "class_path" in whole and name not in OF_CLASS:
        whole["init_args"] = _with(whole.get("init_args") or {}, key, option)
    elif rest and (name in OF_CLASS or _has_options(whole.get(name))):
        whole[name] = _with(whole.get(name) or {}, rest, option)
    else:
        whole[key] = _both(whole.get(key), option)
    return whole


def _both(value: Any, other: Any) -> Any:
    """Two values of one key; of options that both have, and of two classes, the other's."""
    if not _has_options(value) or not _has_options(other):
        return other
    if isinstance(other, str):
        if isinstance(value, str):
            return other
        return {**(value if set(value) <= set(OF_CLASS) else {"init_args": value}), "class_path": other}
    for key, option in other.items():
        value = _with(value, key, option)
    return value
