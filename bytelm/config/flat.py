"""A nested config as one level of keys, for comparisons and tables."""

from collections.abc import Mapping
from typing import Any


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
