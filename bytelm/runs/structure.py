"""Checks the structure of a run's checkpoint before anything is built or restored.

Values are those of archive.check, with a Layout for each tensor, or those that torch has loaded.
"""

import itertools
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from bytelm.runs.archive import Layout

LARGEST = 10**15  # of counts and seconds; beyond it floating-point numbers are not exact
LONGEST_TEXT = 10_000  # characters of a value of a config
MOST_VALUES = 100_000  # of a config
VERSION = re.compile(r"\d+\.\d+[\w.+-]{0,50}")


class BadStructure(ValueError):
    """A value of the wrong kind; the message names its place."""


def check_contents(contents: Any) -> None:
    """Checks the required keys of a checkpoint, and the types of the others.

    Args:
        contents: The whole checkpoint.

    Raises:
        BadStructure: A value differs from the format of Lightning and bytelm; the message names the first one.
    """
    _expect(isinstance(contents, dict) and all(isinstance(key, str) for key in contents), "", "a mapping")
    weights = contents.get("state_dict")
    _expect(isinstance(weights, dict), "state_dict", "a mapping")
    for name, tensor in weights.items():
        _expect(isinstance(name, str) and isinstance(tensor, Layout | Tensor), f"state_dict.{name}", "a tensor")
    kinds: dict[str, tuple[type, Callable[[Any], bool]]] = {
        "callbacks": (dict, lambda states: all(isinstance(key, str) for key in states)),
        "loops": (dict, lambda loops: all(isinstance(loop, dict) for loop in loops.values())),
        "optimizer_states": (list, lambda states: all(map(_is_optimizer_state, states))),
        "lr_schedulers": (list, lambda states: True),
        "epoch": (int, lambda number: 0 <= number <= LARGEST),
        "global_step": (int, lambda number: 0 <= number <= LARGEST),
        "pytorch-lightning_version": (str, lambda version: VERSION.fullmatch(version) is not None),
        "bytelm_version": (str, lambda version: VERSION.fullmatch(version) is not None),
    }
    for key, (kind, is_right) in kinds.items():
        if key in contents:
            value = contents[key]
            _expect(type(value) is kind and is_right(value), key, f"{kind.__name__}, as Lightning writes it")
    if contents.get("config") is not None:
        check_config(contents["config"])
    few = itertools.islice(_inside(contents.get("hyper_parameters"), "hyper_parameters"), MOST_VALUES + 1)
    _expect(sum(1 for _ in few) <= MOST_VALUES, "hyper_parameters", f"of at most {MOST_VALUES:,} values")


def check_config(config: Any) -> None:
    """Checks that a value is a config: mappings and lists of plain values, as in YAML.

    Raises:
        BadStructure: A value is not; the message names the first one.
    """
    _expect(isinstance(config, dict), "config", "a mapping")
    for section in ("model", "data"):
        _expect(isinstance(config.get(section), dict | None), f"config.{section}", "a mapping")
    for n_values, (key, value) in enumerate(_inside(config, "config")):
        _expect(n_values < MOST_VALUES, "config", f"at most {MOST_VALUES:,} values")
        _expect(isinstance(value, dict | list | str | bool | int | float | None), key, "a plain value")
        _expect(not isinstance(value, str) or len(value) <= LONGEST_TEXT, key, f"at most {LONGEST_TEXT:,} characters")
        if isinstance(value, dict):
            _expect(all(isinstance(name, str) for name in value), key, "a mapping whose keys are text")
            _expect(isinstance(value.get("class_path", ""), str), f"{key}.class_path", "text")
            _expect(isinstance(value.get("init_args"), dict | None), f"{key}.init_args", "a mapping")


def check_like(value: Any, like: Any, key: str, further: bool = False) -> None:
    """Checks that a saved state has the structure of the state of the object that will load it.

    Args:
        value: The saved state. Keys can be missing or additional.
        like: The current state of the object.
        key: Its place in the checkpoint.
        further: Whether the values of additional keys can be anything; by default they must be plain values.

    Raises:
        BadStructure: A value differs; the message names the first one.
    """
    if isinstance(like, dict):
        _expect(isinstance(value, dict), key, "a mapping")
        for name, inner in value.items():
            if name in like:
                check_like(inner, like[name], f"{key}.{name}", further)
            elif not further:
                _check_plain(inner, f"{key}.{name}")
    elif isinstance(like, tuple):
        _expect(isinstance(value, tuple) and len(value) == len(like), key, f"{len(like)} values")
        for number, (inner, one) in enumerate(zip(value, like, strict=True)):
            check_like(inner, one, f"{key}.{number}", further)
    elif isinstance(like, list):
        _expect(isinstance(value, list), key, "a list")
        for number, inner in enumerate(value):
            if like:
                check_like(inner, like[0], f"{key}.{number}", further)
            else:  # an empty list stands for numbers, or tuples of numbers
                numbers = inner if isinstance(inner, tuple) else (inner,)
                _expect(all(map(_is_number, numbers)), f"{key}.{number}", "a finite number")
    elif isinstance(like, Tensor) and like.ndim == 0:
        _check_plain(value, key)  # a score: its type is that of the metric
    elif isinstance(like, Tensor):
        is_like = isinstance(value, Layout | Tensor) and value.dtype == like.dtype and value.shape == like.shape
        _expect(is_like, key, f"a tensor of the shape {tuple(like.shape)} and the type {like.dtype}")
    elif isinstance(like, bool):
        _expect(isinstance(value, bool), key, "true or false")
    elif isinstance(like, int):
        is_right = type(value) is int and min(like, 0) <= value <= LARGEST
        _expect(is_right, key, f"a whole number from {min(like, 0)} to {LARGEST:.0e}")
    elif isinstance(like, float):
        _expect(_is_number(value), key, "a finite number")
    elif isinstance(like, str):
        _expect(isinstance(value, str), key, "text")
    else:
        _expect(not isinstance(value, list | tuple), key, "a plain value")
        _check_plain(value, key)


def check_optimizer_state(state: Mapping[str, Any], optimizer: Optimizer, key: str) -> None:
    """Checks that a saved state fits an optimizer and the shapes of its parameters.

    Args:
        state: The saved state, with the same groups of parameters; check_contents has accepted it.
        optimizer: The optimizer, without a state.
        key: Its place in the checkpoint.

    Raises:
        BadStructure: A value does not fit; the message names the first one.
    """
    groups, states = state["param_groups"], state["state"]
    _expect(len(groups) == len(optimizer.param_groups), f"{key}.param_groups", f"{len(optimizer.param_groups)} groups")
    known: dict[Any, Tensor] = {}
    for number, (group, own) in enumerate(zip(groups, optimizer.param_groups, strict=True)):
        name = f"{key}.param_groups.{number}"
        _expect(len(group["params"]) == len(own["params"]), name, f"of {len(own['params'])} parameters")
        known |= dict(zip(group["params"], own["params"], strict=True))
        for option, value in group.items():
            if option != "params":
                is_right = _are_betas(value) if option == "betas" else _is_option(value, own.get(option))
                _expect(is_right, f"{name}.{option}", "a value of this option")
    own_states = {
        number: values for number, values in states.items() if number in known
    }  # others belong to no parameter
    for number, values in own_states.items():
        where = f"{key}.state.{number}"
        _expect(isinstance(values, dict), where, "a mapping")
        if _has_usual_state(optimizer):
            for name, value in values.items():
                _check_state(value, f"{where}.{name}", tuple(known[number].shape))


def _check_state(value: Any, key: str, shape: tuple[int, ...]) -> None:
    """Checks one value of the state of a parameter."""
    if isinstance(value, Layout | Tensor):
        _expect(_fits(tuple(value.shape), shape), key, f"a tensor for a parameter of the shape {shape}")
        _expect(not value.dtype.is_complex, key, "of real numbers")
    else:
        is_step = key.endswith(".step") and _is_number(value)
        _expect(is_step or (value is None and key.endswith(".momentum_buffer")), key, "a tensor")


def _has_usual_state(optimizer: Optimizer) -> bool:
    """Whether an optimizer stores tensors for each parameter, and a count of steps."""
    known = f"{type(optimizer).__module__}.".startswith(("bytelm.", "lion_pytorch.", "torch.optim."))
    return known and not isinstance(optimizer, torch.optim.LBFGS)


def _is_optimizer_state(state: Any) -> bool:
    if not isinstance(state, dict) or not isinstance(state.get("state"), dict):
        return False
    groups = state.get("param_groups")
    return isinstance(groups, list) and all(
        isinstance(group, dict)
        and isinstance(group.get("name", ""), str)
        and isinstance(group.get("params"), list)
        and all(isinstance(param, int | str) for param in group["params"])
        for group in groups
    )


def _are_betas(value: Any) -> bool:
    return isinstance(value, tuple | list) and all(_is_number(beta) and 0 <= beta < 1 for beta in value)


def _is_option(value: Any, own: Any) -> bool:
    """Whether a saved value fits an option whose current value is `own`; a run keeps its optimizer's options."""
    if isinstance(own, bool):
        return isinstance(value, bool)
    if isinstance(own, int | float):
        return _is_number(value)
    if isinstance(value, tuple | list):
        are_numbers = all(each is None or _is_number(each) for each in value)  # Adafactor's eps has None
        return are_numbers and (not isinstance(own, tuple | list) or len(value) == len(own))
    if isinstance(own, tuple | list):
        return isinstance(value, str)
    return value is None or isinstance(value, str | bool) or _is_number(value)


def _fits(shape: Sequence[int], param: Sequence[int]) -> bool:
    """Whether a tensor can be a state of a parameter: one number, or a tensor over some of its dimensions."""
    n, most = math.prod(shape), math.prod(param)
    if len(shape) > len(param):
        return n <= most
    return n == 1 or all(size in (1, full) for size, full in zip(shape, param, strict=False))


def _inside(value: Any, key: str) -> Iterator[tuple[str, Any]]:
    """All values inside a value, with their keys; archive.check has limited the nesting."""
    if isinstance(value, dict):
        children = list(value.items())
    elif isinstance(value, list):
        children = list(enumerate(value))
    else:
        return
    for name, inner in children:
        yield f"{key}.{name}", inner
        yield from _inside(inner, f"{key}.{name}")


def _check_plain(value: Any, key: str) -> None:
    if isinstance(value, Mapping):
        for name, inner in value.items():
            _check_plain(inner, f"{key}.{name}")
    elif isinstance(value, list | tuple):
        for number, inner in enumerate(value):
            _check_plain(inner, f"{key}.{number}")
    elif isinstance(value, Layout | Tensor):  # a score, which Lightning's ModelCheckpoint keeps as a tensor
        _expect(tuple(value.shape) == (), key, "a plain value")
    else:
        _expect(value is None or isinstance(value, str) or _is_number(value), key, "a plain value")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value) and abs(value) <= LARGEST


def _expect(is_right: bool, key: str, what: str) -> None:
    if not is_right:
        raise BadStructure(f"{key or 'it'} is not {what}"[:300])
