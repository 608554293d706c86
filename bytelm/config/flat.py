"""A nested config by its keys, as they are on the command line: a class has a key, and its options are below that."""

from collections.abc import Iterator, Mapping
from typing import Any

OF_CLASS = ("class_path", "init_args", "dict_kwargs")  # keys of a mapping that names a class


def flat(value: Any, key: str = "") -> dict[str, Any]:
    """Returns a config as `{"model.gpt.d_model": 80, "model.gpt.position": "Rotary", …}`, without its nulls.

    Args:
        value: The config, or a value in it.
        key: Its key in the whole config.
    """
    if not isinstance(value, Mapping):
        return {} if value is None else {key: value}
    values: dict[str, Any] = {}
    if "class_path" in value:
        values = {key: value["class_path"].rpartition(".")[2]}
        value = value.get("init_args") or {}
    for name, inner in value.items():
        values |= flat(inner, f"{key}.{name}" if key else name)
    return values


def values_of(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """Yields a value of a config and all values in it, each with its key; those in a list have the list's.

    Args:
        value: The config, or a value in it.
        key: Its key in the whole config.
    """
    yield key, value
    if isinstance(value, Mapping):
        for name, inner in value.items():
            is_class_option = name in ("init_args", "dict_kwargs")
            yield from values_of(inner, key if is_class_option else f"{key}.{name}" if key else str(name))
    elif isinstance(value, list):
        for inner in value:
            yield from values_of(inner, key)


def classes_in(value: Any, key: str = "") -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yields the classes that a value of a config names, as mappings with `class_path`, each with its key.

    Args:
        value: The config, or a value in it.
        key: Its key in the whole config.
    """
    for where, each in values_of(value, key):
        if isinstance(each, Mapping) and isinstance(each.get("class_path"), str):
            yield where, each


def keys_of_class(name: str, config: Any) -> Iterator[str]:
    """Yields the keys of a config at which a class of a name is given, in any module."""
    return (key for key, value in classes_in(config) if value["class_path"].rpartition(".")[2] == name)
