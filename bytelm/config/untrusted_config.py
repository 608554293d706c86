"""What a config from a stranger may say: nothing that runs code, touches files, or makes its score mean something else.

A config is more than data: it names classes to import, a file that is named in place of a value is read, and the
trainer's options reach all that Lightning can do. So what is accepted is listed, and all else is refused:

* keys and words, before anything parses them (`check_words`);
* what they have become, as a short name stands for any class that is loaded (`check_meaning`).

What a stranger's config may not say is as in the baseline (`rest_of`): its corpus, its device, its callbacks.
"""

import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from torch.optim import Optimizer

from bytelm.config import base
from bytelm.errors import ConfigError
from bytelm.units import time_limit

# Keys that are each run's own: these with all below them, and of those in PARTLY some.
WHOLLY = ("model", "time_budget", "lr_schedule", "divergence", "seed_everything")
PARTLY = {
    "data": ("batch_size", "order", "seed"),
    "trainer": (
        *("precision", "gradient_clip_val", "gradient_clip_algorithm", "accumulate_grad_batches"),
        *("deterministic", "val_check_interval", "log_every_n_steps"),
    ),
}
# Keys that may be said, but only as in the baseline: they decide on what text, and on what device, a score is won.
SHARED = {"data": ("class_path", "seq_len", "train_fraction", "eval_bytes"), "trainer": ("accelerator",)}

ROOTS = ("bytelm.", "torch.optim.", "lion_pytorch.")
_kinds: set[type] = {Optimizer}  # and those that are `nameable`
Kind = TypeVar("Kind", bound=type)
CLASSES = "accepted here: numbers, words, and parts of bytelm, torch.optim and lion_pytorch"

NAME = re.compile(r"[A-Za-z]\w*(\.[A-Za-z]\w*)*", re.ASCII)
# A dot only before a digit (1.5h), so that it is neither an import path nor `file.yaml`. No brackets, quotes or colons:
# jsonargparse reads a text as YAML once more.
_WORD = r"[+-]?([A-Za-z0-9_%]|\.[0-9])([A-Za-z0-9_%+-]|\.(?=[0-9]))*"
WORDS = re.compile(rf"{_WORD}( {_WORD})*")


def nameable(kind: Kind) -> Kind:
    """Lets untrusted configs name a class and its subclasses, those of bytelm, torch.optim and lion_pytorch."""
    _kinds.add(kind)
    return kind


def check_words(config: Mapping[Any, Any], baseline: Mapping[str, Any], folder: Path) -> None:
    """Refuses keys and words that a stranger may not use; nothing is imported or opened for that.

    Args:
        config: What it says.
        baseline: The baseline's resolved config.
        folder: Where the config will be read from, and files that it names with it.

    Raises:
        ConfigError: One that is not accepted.
    """
    corpus = _last(baseline["data"]["class_path"])
    for key, value in leaves(config):
        path = ".".join(part for part in key.split(".") if part != "init_args")
        path = "data.class_path" if path == "data" else path  # a class may be given by its name alone
        _check_key(key, path, value)
        _check_value(key, value, folder)
        # Said by its name, before it is parsed: other corpora would be looked for, and downloaded.
        if path == "data.class_path" and value != {} and _last(str(value)) != corpus:
            raise ConfigError(key, value, f"accepted: {corpus}, the baseline's corpus")


def check_meaning(resolved: Mapping[str, Any], baseline: Mapping[str, Any]) -> None:
    """Refuses classes from elsewhere, and whatever would make scores incomparable.

    Args:
        resolved: The config, after it was parsed.
        baseline: The baseline's.

    Raises:
        ConfigError: One of these.
    """
    for key, value in leaves({key: resolved[key] for key in WHOLLY if key in resolved}):
        if key.endswith(".class_path") and not is_part(str(value)):
            raise ConfigError(key, value, CLASSES)
    given, wanted = _shared(resolved), _shared(baseline)
    for key in {**wanted, **given}:
        if given.get(key) != wanted.get(key):
            accepted = f"accepted: {wanted.get(key)!r}, as in the baseline, so that all scores mean the same"
            raise ConfigError(key, given.get(key), accepted)


def check_limit(resolved: Mapping[str, Any], most: float, baseline: Mapping[str, Any]) -> None:
    """Refuses a budget that no run can use up, or that is larger than the baseline's.

    Args:
        resolved: A resolved config.
        most: Seconds that the run may take.
        baseline: The baseline's.

    Raises:
        ConfigError: One of these.
    """
    limit = resolved["time_budget"]["limit"]
    seconds, equal = time_limit(limit), time_limit(baseline["time_budget"]["limit"])
    if equal is not None and (seconds is None or seconds > equal):
        raise ConfigError(
            "time_budget.limit", limit, f"accepted: up to {equal:g}s, the baseline's, so that it is a match"
        )
    if seconds is not None and seconds > most:
        raise ConfigError("time_budget.limit", limit, f"accepted: up to {most:g}s, all that a run may take here")


def rest_of(baseline: Mapping[str, Any]) -> dict[str, Any]:
    """What of the baseline's resolved config holds for all runs, as a config to put before each."""
    rest = {key: value for key, value in baseline.items() if key not in WHOLLY}
    data = baseline["data"]
    rest["data"] = {**data, "init_args": _without(data.get("init_args") or {}, PARTLY["data"])}
    rest["trainer"] = _without(baseline["trainer"], PARTLY["trainer"])
    return rest


def leaves(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """The values of a config with their keys, written with dots; an empty mapping or list counts as a value.

    Args:
        value: The config.
        key: Of all of it.

    Raises:
        ConfigError: A key is no name.
    """
    if isinstance(value, Mapping) and value:
        for name, inner in value.items():
            if not isinstance(name, str) or not NAME.fullmatch(name):
                raise ConfigError(key or "config", name, "accepted as a key: a name")
            yield from leaves(inner, f"{key}.{name}" if key else name)
    elif isinstance(value, list) and value:
        for inner in value:
            yield from leaves(inner, key)
    else:
        yield key, value


def is_part(path: str) -> bool:
    """Whether an import path names a part of ours; other classes of ours start processes, say.

    Modules have attributes that are not their own (`bytelm.system.files.os.system`), so what counts is where it was
    defined. Those that are not loaded hold no parts.

    Args:
        path: Such as `bytelm.parts.position.Rotary`.
    """
    module, _, name = path.rpartition(".")
    found = getattr(sys.modules.get(module), name, None)
    is_class = isinstance(found, type) and not _kinds.isdisjoint(found.__mro__)
    return path.startswith(ROOTS) and is_class and f"{found.__module__}.".startswith(ROOTS)


def _check_key(key: str, path: str, value: Any) -> None:
    top, _, rest = path.partition(".")
    if top in WHOLLY:
        return
    if top == base.KEY:
        whole = "a whole config, as `python -m bytelm fit --config FILE --print_config=skip_default` prints it"
        raise ConfigError(key, value, f"it names a file; accepted here: {whole}")
    if top not in PARTLY:
        raise ConfigError(key, value, f"accepted here: {', '.join((*WHOLLY, *PARTLY))}")
    accepted = (*PARTLY[top], *SHARED[top])
    if rest.partition(".")[0] not in accepted:
        rules = f"accepted of {top} here: {', '.join(accepted)}; all else is as in the baseline"
        raise ConfigError(key, value, f"{rules}, the corpus too" if top == "data" else rules)


def _check_value(key: str, value: Any, folder: Path) -> None:
    if value is None or isinstance(value, bool | int | float) or value in ({}, []):
        return
    if not isinstance(value, str) or not (WORDS.fullmatch(value) or is_part(value)):
        raise ConfigError(key, value, CLASSES)
    if (folder / value).is_file():
        raise ConfigError(key, value, "it is a file, which would be read in its place; accepted here: no files")


def _shared(config: Mapping[str, Any]) -> dict[str, Any]:
    data = {**config["data"]}
    data |= data.pop("init_args", None) or {}
    shared = {f"data.{key}": value for key, value in _without(data, PARTLY["data"]).items()}
    return shared | {f"trainer.{key}": config["trainer"][key] for key in SHARED["trainer"]}


def _without(values: Mapping[str, Any], keys: tuple[str, ...]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if key not in keys}


def _last(path: str) -> str:
    return path.rpartition(".")[2]
