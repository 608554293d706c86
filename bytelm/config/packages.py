"""Classes of Lightning that need a package that is not installed: one line with the key and the command."""

import re
from collections.abc import Iterator
from typing import Any

from bytelm.errors import ConfigError

# Classes that Lightning exports where a package is installed, or did in the past.
UNAVAILABLE = {
    "LitLogger": "it needs litlogger, which is not installed: pip install 'litlogger'",
    "SingleTPUStrategy": "Lightning has no such strategy any more; accepted: auto, ddp, fsdp, single_device",
}


def missing_package(error: BaseException, config: dict[str, Any]) -> ConfigError | None:
    """Returns the message about a package that is not installed; None for any other error.

    Args:
        error: Raised while the objects of a config were created.
        config: The config, as plain values.
    """
    text = str(error)
    needed = re.search(r"Requirement '([\w.-]+)([^']*)' not met", text)
    made = re.search(r"Problem with given class_path '([\w.]+)':", text)
    if needed is None or made is None:
        return None
    key = next(_keys_of(config, made[1]), "trainer")
    package, name = needed[1], made[1].rpartition(".")[2]
    return ConfigError(key, name, f"it needs {package}, which is not installed: pip install '{package}{needed[2]}'")


def _keys_of(value: Any, class_path: str, key: str = "") -> Iterator[str]:
    """Returns the keys whose value is a class, or a list that contains it."""
    if isinstance(value, dict):
        if value.get("class_path") == class_path:
            yield key
        for name, inner in value.items():
            yield from _keys_of(inner, class_path, f"{key}.{name}" if key else str(name))
    elif isinstance(value, list):
        for inner in value:
            yield from _keys_of(inner, class_path, key)
