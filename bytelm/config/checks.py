"""Checks of a parsed config that its types cannot express.

Types check the ranges of single numbers (values.py). A check that depends on several values is in the constructor that
receives them.
"""

import inspect
import os
from collections.abc import Mapping
from pathlib import Path
from pydoc import locate
from typing import Any

from bytelm.config.classes import parameters_of
from bytelm.config.flat import values_of
from bytelm.config.suggestions import choices
from bytelm.errors import ConfigError, DataError

MAX_SEED = 2**32 - 1  # NumPy's limit
MAX_NAME_BYTES = 255  # of one file or folder on the usual file systems
PATHS = ("ckpt_path", "init_from", "default_root_dir", "dirpath", "save_dir")  # options of any class


def check_values(config: Mapping[str, Any]) -> None:
    """Checks values that no file system or random generator accepts.

    Args:
        config: The parsed config, as plain values.

    Raises:
        ConfigError: A text contains a NUL character, a home folder belongs to no user, a name or seed is out of range,
            or `dict_kwargs` has an option that the constructor of its class does not take.
        DataError: A home folder in a path of the data belongs to no user.
    """
    for key, value in values_of(config):
        if isinstance(value, Mapping) and value.get("dict_kwargs"):
            _check_dict_kwargs(key, value)
        if not isinstance(value, str):
            continue
        if "\0" in value:
            raise ConfigError(key, value, "accepted: text without the character NUL")
        is_path = key.rpartition(".")[2] in PATHS
        if is_path and any(len(os.fsencode(part)) > MAX_NAME_BYTES for part in Path(value).parts):
            raise ConfigError(key, value, f"accepted: names of at most {MAX_NAME_BYTES} bytes")
        if (is_path or key.startswith("data.")) and value.startswith("~") and os.path.expanduser(value) == value:
            user = Path(value).parts[0].removeprefix("~")
            kind = DataError if key.startswith("data.") else ConfigError
            raise kind(key, value, f"there is no user {user!r}; accepted: a path")
    check_experiment(config.get("experiment"))
    seed = config.get("seed_everything")
    if isinstance(seed, int) and not 0 <= seed <= MAX_SEED:
        raise ConfigError("seed_everything", seed, f"accepted: a whole number from 0 to {MAX_SEED}")


def _check_dict_kwargs(key: str, value: Mapping[str, Any]) -> None:
    made: Any = locate(value["class_path"])
    if not _takes_any_option(made):
        name, given = next(iter(value["dict_kwargs"].items()))
        reason = f"{made.__name__} takes no other options; {choices(name, parameters_of(made))}"
        raise ConfigError(f"{key}.dict_kwargs.{name}", given, reason)


def _takes_any_option(made: Any) -> bool:
    """Returns whether a class or function has **kwargs that it does not pass on to a base class without such."""
    for each in (
        cls for cls in getattr(made, "__mro__", (made,)) if not isinstance(cls, type) or "__init__" in vars(cls)
    ):
        parameters = inspect.signature(each).parameters
        if all(parameter.kind is not inspect.Parameter.VAR_KEYWORD for parameter in parameters.values()):
            return False
        if parameters.keys() >= {*parameters_of(each)}:
            break
    return True


def check_experiment(name: str | None, key: str = "experiment") -> None:
    """Checks the name of an experiment or a study, which is a folder in runs/.

    Args:
        name: Names separated by slashes are nested folders; None for no name.
        key: The option, for messages.

    Raises:
        ConfigError: The name is empty, leads out of runs/, or is too long.
    """
    if name is None:
        return
    path = Path(name)
    if path.is_absolute() or ".." in path.parts or path == Path("."):
        raise ConfigError(key, name, "accepted: the name of a folder in runs/")
    if any(len(os.fsencode(part)) > MAX_NAME_BYTES for part in path.parts):
        raise ConfigError(key, name, f"accepted: a name of at most {MAX_NAME_BYTES} bytes")
