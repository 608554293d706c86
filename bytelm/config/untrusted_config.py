"""Untrusted configs: they cannot run code, read files, or get a score that cannot be compared with the baseline's.

A config is more than data: it names classes to import, a file named in place of a value is read, and the trainer's
options reach every feature of Lightning. Therefore the accepted keys and values are listed, and all others are
rejected, in two steps:

* the config as written, before it is parsed (`check_written`);
* the config as parsed, because a short name can mean any loaded class (`check_resolved`).

All other keys have the baseline's values (`shared_config`): the corpus, the device, the callbacks.
"""

import math
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from torch.optim import Optimizer

from bytelm.config import base
from bytelm.errors import ConfigError
from bytelm.units import Duration, limits_of

# Each run sets these keys, with everything below them, and these options of other keys.
OWN_KEYS = ("model", "time_budget", "lr_schedule", "divergence", "seed_everything")
OWN_OPTIONS = {
    "data": ("batch_size", "order", "seed"),
    "trainer": (
        *("precision", "gradient_clip_val", "gradient_clip_algorithm", "accumulate_grad_batches"),
        *("deterministic", "val_check_interval", "log_every_n_steps"),
    ),
}
WHOLE = (
    "accepted here: a whole config, as `fit --config FILE --print_config=skip_default` prints it, or `base: baseline` "
    "and what differs from the baseline"
)
DEFAULTS = ("val_check_interval",)  # own options of the trainer whose default is the baseline's value
# These must have the baseline's values: they determine the text and the device of a score.
FIXED_OPTIONS = {"data": ("class_path", "seq_len", "train_fraction", "eval_bytes"), "trainer": ("accelerator",)}

ROOTS = ("bytelm.", "torch.optim.", "lion_pytorch.")
_kinds: set[type] = {Optimizer}  # and those that are passed to `nameable`
Kind = TypeVar("Kind", bound=type)
CLASSES = "accepted here: numbers, words, and parts of bytelm, torch.optim and lion_pytorch"

NAME = re.compile(r"[A-Za-z]\w*(\.[A-Za-z]\w*)*", re.ASCII)
# A dot only before a digit (1.5h): other dots could form an import path or `file.yaml`. No brackets, quotes or colons:
# jsonargparse reads a text as YAML a second time.
_WORD = r"[+-]?([A-Za-z0-9_%]|\.[0-9])([A-Za-z0-9_%+-]|\.(?=[0-9]))*"
WORDS = re.compile(rf"{_WORD}( {_WORD})*")
LONGEST_WORDS = 200  # characters; no part or value has more, and file systems have names of up to 255 bytes


def nameable(kind: Kind) -> Kind:
    """Lets untrusted configs name a class and its subclasses in bytelm, torch.optim and lion_pytorch."""
    _kinds.add(kind)
    return kind


def check_written(config: Mapping[Any, Any], baseline: Mapping[str, Any], folder: Path) -> None:
    """Checks the keys and values of a config before it is parsed; imports and opens nothing.

    Args:
        config: The config.
        baseline: The baseline's resolved config.
        folder: The folder from which the config, and files that it names, will be read.

    Raises:
        ConfigError: A key or a value is not accepted.
    """
    corpus = _last(baseline["data"]["class_path"])
    for key, value in leaves(config):
        path = ".".join(part for part in key.split(".") if part != "init_args")
        path = "data.class_path" if path == "data" else path  # a class may be given by its name alone
        _check_key(key, path, value)
        _check_value(key, value, folder)
        # Checked before parsing, because another corpus would be searched for and downloaded.
        if path == "data.class_path" and value != {} and _last(str(value)) != corpus:
            raise ConfigError(key, value, f"accepted: {corpus}, the baseline's corpus")


def check_resolved(resolved: Mapping[str, Any], baseline: Mapping[str, Any]) -> None:
    """Checks the classes of a parsed config, and that its score can be compared with the baseline's.

    Args:
        resolved: The resolved config.
        baseline: The baseline's resolved config.

    Raises:
        ConfigError: A class is not accepted, or an option differs from the baseline's.
    """
    for key, value in leaves({key: resolved[key] for key in OWN_KEYS if key in resolved}):
        if key.endswith(".class_path") and not is_part(str(value)):
            raise ConfigError(key, value, CLASSES)
    given, wanted = _shared(resolved), _shared(baseline)
    for key in {**wanted, **given}:
        if given.get(key) != wanted.get(key):
            accepted = f"accepted: {wanted.get(key)!r}, as in the baseline, for comparable scores"
            raise ConfigError(key, given.get(key), accepted)


def check_limit(resolved: Mapping[str, Any], most: float, baseline: Mapping[str, Any]) -> None:
    """Checks that a budget is not larger than the baseline's, and that a run has enough time for it.

    Args:
        resolved: The resolved config.
        most: Seconds that training may take.
        baseline: The baseline's resolved config.

    Raises:
        ConfigError: The limit is too large.
    """
    limit = resolved["time_budget"]["limit"]
    limits, equal = limits_of(limit), limits_of(baseline["time_budget"]["limit"])
    for unit, value in equal.items():  # steps do not measure training: each run chooses its batch size
        if unit != "steps" and limits.get(unit, math.inf) > value:
            accepted = f"accepted: up to {Duration(value, unit)}, the baseline's limit"
            raise ConfigError("time_budget.limit", limit, accepted)
    seconds = limits.get("seconds")
    if seconds is not None and seconds > most:
        raise ConfigError("time_budget.limit", limit, f"accepted: up to {most:g}s, the time of a run here")


def shared_config(baseline: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the part of the baseline's resolved config that applies to all runs, as a config before theirs."""
    rest = {key: value for key, value in baseline.items() if key not in OWN_KEYS}
    data = baseline["data"]
    rest["data"] = {**data, "init_args": _without(data.get("init_args") or {}, OWN_OPTIONS["data"])}
    own = tuple(option for option in OWN_OPTIONS["trainer"] if option not in DEFAULTS)
    rest["trainer"] = _without(baseline["trainer"], own)
    return rest


def own_config(resolved: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the part of a resolved config that an untrusted config may set."""
    own = {key: value for key, value in resolved.items() if key in OWN_KEYS}
    data, trainer = ((*OWN_OPTIONS[key], *FIXED_OPTIONS[key]) for key in ("data", "trainer"))
    options = {key: value for key, value in (resolved["data"].get("init_args") or {}).items() if key in data}
    own["data"] = {"class_path": resolved["data"]["class_path"], "init_args": options}
    own["trainer"] = {key: value for key, value in resolved["trainer"].items() if key in trainer}
    return own


def leaves(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """Yields the values of a config with their dotted keys; an empty mapping or list counts as a value.

    Args:
        value: The config, or a value in it.
        key: Its key in the whole config.

    Raises:
        ConfigError: A key is not a name.
    """
    if isinstance(value, Mapping) and value:
        for name, inner in value.items():
            if not isinstance(name, str) or not NAME.fullmatch(name):
                raise ConfigError(key or "config", name, "a key has to be a name")
            yield from leaves(inner, f"{key}.{name}" if key else name)
    elif isinstance(value, list) and value:
        for inner in value:
            yield from leaves(inner, key)
    else:
        yield key, value


def foreign(network: Any) -> tuple[str, Any] | None:
    """Returns the first value of a network's config that names something other than a part of bytelm, with its key.

    Args:
        network: The config at the key `model.gpt`.

    Raises:
        ConfigError: A key is not a name.
    """
    for where, value in leaves(network, "model.gpt"):
        plain = value is None or isinstance(value, bool | int | float) or value in ({}, [])
        if not plain and not (isinstance(value, str) and (value.isidentifier() or is_part(value))):
            return where, value
    return None


def is_part(path: str) -> bool:
    """Returns whether an import path names a part of bytelm; other classes of bytelm may, for example, start processes.

    Modules contain attributes of other modules (`bytelm.system.files.os.system`), so the module that defines the class
    counts. A module that is not loaded contains no parts.

    Args:
        path: An import path such as `bytelm.parts.position.Rotary`.
    """
    module, _, name = path.rpartition(".")
    found = getattr(sys.modules.get(module), name, None)
    is_class = isinstance(found, type) and not _kinds.isdisjoint(found.__mro__)
    return path.startswith(ROOTS) and is_class and f"{found.__module__}.".startswith(ROOTS)


def _check_key(key: str, path: str, value: Any) -> None:
    top, _, rest = path.partition(".")
    if top in OWN_KEYS:
        return
    if top == base.KEY:
        raise ConfigError(key, value, f"it names a file; {WHOLE}")
    if top not in OWN_OPTIONS:
        raise ConfigError(key, value, f"accepted here: {', '.join((*OWN_KEYS, *OWN_OPTIONS))}")
    accepted = (*OWN_OPTIONS[top], *FIXED_OPTIONS[top])
    if rest.partition(".")[0] not in accepted:
        rules = f"accepted of {top} here: {', '.join(accepted)}; all else is as in the baseline"
        raise ConfigError(key, value, f"{rules}, the corpus too" if top == "data" else rules)


def _check_value(key: str, value: Any, folder: Path) -> None:
    if value is None or isinstance(value, bool | int | float) or value in ({}, []):
        return
    if not isinstance(value, str) or not (WORDS.fullmatch(value) or is_part(value)):
        raise ConfigError(key, value, CLASSES)
    if len(value) > LONGEST_WORDS:
        raise ConfigError(key, f"{value[:20]}…", f"accepted here: texts of up to {LONGEST_WORDS} characters")
    if (folder / value).is_file():
        raise ConfigError(key, value, "it is a file, which would be read in its place; accepted here: no files")


def _shared(config: Mapping[str, Any]) -> dict[str, Any]:
    data = {**config["data"]}
    data |= data.pop("init_args", None) or {}
    shared = {f"data.{key}": value for key, value in _without(data, OWN_OPTIONS["data"]).items()}
    return shared | {f"trainer.{key}": config["trainer"][key] for key in FIXED_OPTIONS["trainer"]}


def _without(values: Mapping[str, Any], keys: tuple[str, ...]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if key not in keys}


def _last(path: str) -> str:
    return path.rpartition(".")[2]
