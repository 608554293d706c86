"""Classes of Lightning that need a package that is not installed: one line with the key and the command."""

import re
from typing import Any

from bytelm.config.flat import keys_of_class
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
    package, name = needed[1], made[1].rpartition(".")[2]
    key = next(keys_of_class(name, config), "trainer")
    return ConfigError(key, name, f"it needs {package}, which is not installed: pip install '{package}{needed[2]}'")
