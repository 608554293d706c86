"""The classes that the keys of a config accept, and the options of these classes, found by annotations and subclasses.

Classes in modules that are not loaded are not known.
"""

import inspect
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import timedelta
from typing import Any, get_args, get_origin, get_type_hints

from jsonargparse._parameter_resolvers import get_signature_parameters


def no_class(cls: type) -> bool:
    """Returns that a class is not left out."""
    return False


def classes_of(
    name: str, roots: Mapping[str, type], nested: Iterable[type], unlisted: Callable[[type], bool] = no_class
) -> list[type]:
    """Returns the loaded classes that a key accepts, by name; empty if there is only its base, or if it takes none.

    Args:
        name: Last part of the key, such as `attention`.
        roots: The class of each top-level key.
        nested: Further classes whose constructors take other classes.
        unlisted: Whether a class is left out.
    """
    found: set[type] = set()
    for owner in [*roots.values(), *nested]:
        for base in bases_for(owner, name, roots):
            # A base class is listed only if it is the default; otherwise it exists to be subclassed.
            classes = [c for c in concrete(base) if c is not base or c is default_of(owner, name)]
            found |= {c for c in classes if not unlisted(c)}
    by_name = {cls.__name__: cls for cls in sorted(found, key=lambda cls: cls.__module__.startswith("bytelm."))}
    return [by_name[name] for name in sorted(by_name)]  # of two with the same name, bytelm's (short_names.py)


def bases_for(owner: type, name: str, roots: Mapping[str, type]) -> list[type]:
    """Returns the classes that a key accepts: as `bases_of` does, or the class of a top-level key."""
    own = [roots[name]] if name in roots and roots[name].__module__ != "builtins" else []
    return bases_of(owner, name) or own


def key_of_class(given: str, roots: Mapping[str, type]) -> str | None:
    """Returns the key of a config that takes a class, such as `lr_schedule` for Cosine."""
    for key, base in roots.items():
        if any(cls.__name__ == given for cls in concrete(base)):
            return key
    return None


def takes_class(name: str, roots: Mapping[str, type], nested: Iterable[type]) -> bool:
    """Returns whether a key accepts classes; see `classes_of`."""
    return name in roots or any(bases_of(owner, name) for owner in [*roots.values(), *nested])


def keys_below(roots: Mapping[str, type]) -> Iterator[str]:
    """Returns the keys below the given ones: options of their classes and, except for the trainer's, of the classes
    that these take.
    """
    for root, cls in roots.items():
        if cls.__module__ == "builtins":
            continue
        for option in dict.fromkeys(name for each in [cls, *concrete(cls)] for name in parameters_of(each)):
            yield f"{root}.{option}"
        for name in inspect.signature(cls).parameters if root != "trainer" else ():
            for base in bases_of(cls, name):
                yield from (f"{root}.{name}.{option}" for each in concrete(base) for option in parameters_of(each))


def parameters_of(owner: Any) -> Iterator[str]:
    """Returns the options of a class: its constructor's parameters with defaults, and those that it passes on."""
    parameters = get_signature_parameters(owner) if inspect.isclass(owner) else []
    yield from (p.name for p in parameters if p.default is not inspect.Parameter.empty)


def options_of(cls: Any, key: str, owners: Iterable[type]) -> list[str]:
    """Returns the options of a class at a key: its constructor's parameters, except those that the key's owner passes.

    Args:
        cls: The class.
        key: The key, such as `model.gpt.attention`.
        owners: Classes whose constructors take other classes, or functions that make them.
    """
    if not inspect.isclass(cls):
        return []
    options = [parameter.name for parameter in get_signature_parameters(cls)]
    hints = [_hints(owner) for owner in owners]
    for name in reversed(key.split(".")):  # the last part can be a key of a mapping, such as a group
        if found := [hint[name] for hint in hints if name in hint]:
            passed = [maker for hint in found for maker in _makers_in(hint) if issubclass(cls, maker[0])]
            n_positional = max((positional for _, positional, _ in passed), default=0)
            named = {option for _, _, names in passed for option in names}
            return [option for option in options[n_positional:] if option not in named]
    return options


def default_of(owner: type, name: str) -> Any:
    """Returns the default of an argument of a class's own constructor; None if it has none."""
    parameter = inspect.signature(owner).parameters.get(name) if "__init__" in vars(owner) else None
    return parameter and parameter.default


def bases_of(owner: type, name: str) -> list[type]:
    """Returns the classes that a class's constructor accepts for an argument."""
    return list(dict.fromkeys(_classes_in(_hints(owner).get(name))))


def _hints(owner: type) -> dict[str, Any]:
    try:
        return get_type_hints(vars(owner)["__init__"])
    except (KeyError, NameError, TypeError):
        return {}


def _makers_in(hint: Any) -> Iterator[tuple[type, int, set[str]]]:
    """Returns the classes that functions in an annotation make, the number of arguments that they pass by position, and
    the names of the others.
    """
    if _is_maker(hint):
        passed = list(inspect.signature(hint.__call__).parameters.values())[1:]  # without `self`
        names = {each.name for each in passed if each.kind is not inspect.Parameter.POSITIONAL_ONLY}
        yield from ((made, len(passed) - len(names), names) for made in _classes_in(hint))
    elif get_origin(hint) is Callable:
        passed, _ = get_args(hint)
        yield from ((made, len(passed) if isinstance(passed, list) else 0, set()) for made in _classes_in(hint))
    else:
        for argument in get_args(hint):
            yield from _makers_in(argument)


def _is_maker(hint: Any) -> bool:
    return getattr(hint, "_is_protocol", False) and "__call__" in vars(hint)


def _classes_in(hint: Any) -> Iterator[type]:
    """Returns the classes that an annotation accepts: X itself, the X of Callable[..., X], of X | None and of list[X],
    and the return type X of a protocol's `__call__`.
    """
    if _is_maker(hint):
        yield from _classes_in(get_type_hints(hint.__call__).get("return"))
    elif inspect.isclass(hint) and not get_args(hint):
        is_tensor = (hint.__module__, hint.__name__) == ("torch", "Tensor")  # torch's optimizers accept one as lr
        if not is_tensor and not issubclass(hint, bool | int | float | str | list | dict | timedelta | None):
            yield hint
    else:
        arguments = get_args(hint)
        for argument in arguments[-1:] if get_origin(hint) is Callable else arguments:
            yield from _classes_in(argument)


def concrete(base: type) -> Iterator[type]:
    """Returns a class and its subclasses that can be instantiated and named, in loaded modules."""
    if not inspect.isabstract(base) and base.__module__ in sys.modules and "<locals>" not in base.__qualname__:
        yield base
    subclass: type
    for subclass in base.__subclasses__():
        if not subclass.__name__.startswith(("_", "Base")):
            yield from concrete(subclass)
