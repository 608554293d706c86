"""Errors of optimizers' constructors as errors of the option that they are about.

A message names the rejected value, and the option in words of the optimizer: `Invalid learning rate: -0.1`.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

from bytelm.errors import ConfigError
from bytelm.parts.contract import class_of

OWN = re.compile(r"(?P<option>\w+): (?P<value>\S+) cannot be used; (?P<accepted>.*)")  # of bytelm's optimizers
OTHERS = re.compile(r"(?P<reason>.*?)(?: should be \S+ \S+)?(?: but is)?:? (?P<value>-?[\d.]+(?:e[+-]?\d+)?|-?inf|nan)")
WORDS = {"lr": "learning rate", "eps": "epsilon", "betas": "beta"}  # of options, in others' messages
ACCEPTED = {"betas": "numbers from 0 to below 1"}
FROM_ZERO = ("lr", "weight_decay", "momentum", "eps")


def rejected(factory: Callable[..., Any], error: Exception) -> ConfigError:
    """Makes the error of a run whose optimizer rejects an option.

    Args:
        factory: Makes the optimizer; a partial of its class has the options.
        error: The optimizer's error.
    """
    name, reason = class_of(factory).__name__, " ".join(str(error).split())
    whole = ConfigError("model.optimizer", name, reason or "it rejects one of its options")
    match = OWN.fullmatch(text := re.sub(r"^group \w+: ", "", reason)) or OTHERS.fullmatch(text)
    if match is None:
        return whole
    is_own = "option" in match.re.groupindex
    said = match["option"] if is_own else match["reason"].lower()
    found = [
        (option, value)
        for option, value in _options(factory)
        if match["value"] in _texts(value) and _is_named(option, said)
    ]
    if len(found) != 1:
        return whole
    [(option, value)] = found
    accepted = match["accepted"] if is_own else _accepted(option, f"{match['reason']} for {name}")
    return ConfigError(f"model.optimizer.{option}", value, accepted)


def _options(factory: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yields the options of a factory, and those of the factories among them, with their keys."""
    for option, value in factory.keywords.items() if isinstance(factory, partial) else ():
        for key, inner in value.items() if isinstance(value, Mapping) else ():
            yield from _options(inner, f"{prefix}{option}.{key}.")
        yield prefix + option, value
        yield from _options(value, f"{prefix}{option}.")


def _texts(value: Any) -> list[str]:
    return [str(each) for each in (value if isinstance(value, list | tuple) else [value])]


def _is_named(option: str, said: str) -> bool:
    """Whether a message can be about an option, such as `adamw_lr`; `said` are its words, or the option's name."""
    last = option.rpartition(".")[2]
    names = {**{name: name for name in (last, "weight_decay", "momentum")}, **WORDS}
    return any(
        re.search(rf"(^|_){name}$", last) and (said == name or word.replace("_", " ") in said.replace("_", " "))
        for name, word in names.items()
    )


def _accepted(option: str, reason: str) -> str:
    last = option.rpartition(".")[2]
    known = {**ACCEPTED, **dict.fromkeys(FROM_ZERO, "a number from 0")}
    return next((f"accepted: {text}" for name, text in known.items() if last.endswith(name)), reason)
