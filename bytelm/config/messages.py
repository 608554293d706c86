"""What users are told: notes, and jsonargparse's reports of a bad config as one line (key, value, what is accepted).

jsonargparse tells what failed at each level of a nested value; a user wants the innermost key and the reason. A report
in a form that is not known here is passed on as it is, and tests hold these forms against the installed version.
"""

import inspect
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from difflib import get_close_matches
from pydoc import locate
from typing import Any, get_args, get_type_hints

from jsonargparse._parameter_resolvers import get_signature_parameters
from tqdm import tqdm

from bytelm.system.process import is_rank_zero

NUMBERS = {
    "PositiveInt": "a whole number above 0",
    "NonNegativeInt": "a whole number from 0",
    "PositiveFloat": "a number above 0",
    "NonNegativeFloat": "a number from 0",
    "ClosedUnitInterval": "a number from 0 to 1",
}


def note(text: str) -> None:
    """Tells the user something that is no error."""
    if is_rank_zero():
        tqdm.write(f"bytelm: note: {text}", file=sys.stderr)  # which makes room for it above a progress bar


def clarify(message: str, roots: Mapping[str, type], nested: Iterable[type] = ()) -> str:
    """One line for a report of jsonargparse.

    Args:
        message: The report.
        roots: Class behind each top-level key.
        nested: Further classes whose constructors take other classes.

    Returns:
        `key: value …; accepted: …`, or the message itself where its form is not known.
    """
    key = ".".join(re.findall(r'Parser key "([^"]+)"', message))
    nested = [*nested, *filter(inspect.isclass, map(locate, re.findall(r"class_path='([\w.]+)'", message)))]
    name = key.rpartition(".")[2]

    if match := re.search(r"^Parser key \"config\": (.*): ('.*')$", message):
        return f"config: {match[2]} cannot be used; {match[1]}"
    if match := re.search(r"does not accept option '([\w.]+)'", message):
        return _unknown_key(match[1], roots)
    if match := re.search(
        r"Option '(\w+)' is not accepted(?:\. Got value: Namespace\(class_path='([\w.]+)')?", message
    ):
        owner = match[2] or re.findall(r"class_path '([\w.]+)'", message[: match.start()])[-1]
        return f"{key}.{match[1]}: unknown key; {_choices(match[1], _parameters(locate(owner)))}"
    if matches := re.findall(r"Not of type Duration: (.*?)\s?is no duration; (.*?\(5%\))", message):
        given, accepted = matches[-1]  # of a list, the last attempt is at its element
        given = given or "".join(re.findall(r"Given value: (.*)", message))
        return f"{key}: {given} is no duration; {accepted}"
    number = rf"Not of type ({'|'.join(NUMBERS)}): "
    number += r"(?:invalid literal.*?: |could not.*?: |does not conform(?s:.*?)Given value: )?(\S+)"
    if match := re.search(number, message):
        return f"{key}: {match[2]} is not accepted; accepted: {NUMBERS[match[1]]}"
    if match := re.search(r"Expected a typing\.Literal\[(.*?)\]\. Got value: (\S+)", message):
        return f"{key}: {match[2]!r} is not accepted; accepted: {match[1]}"
    if match := re.search(r"Expected '([\w.]+)' to be a subclass of", message):
        return f"{key}: {match[1]!r} is not one of its classes; {_class_choices(name, match[1], roots, nested)}"
    failed = r"callable class: (?P<reason>.+?)\. Got value: (?:Namespace\(class_path=')?(?P<path>[\w.]+)"
    failed += r"|Problem with given class_path '(?P<class>[\w.]+)':\s+(?P<why>(?!Parser key)\S.*)$"
    if match := re.search(failed, message, re.MULTILINE):
        path, reason = match["path"] or match["class"], match["reason"] or match["why"]
        return f"{key}: {path!r} cannot be used ({reason}); {_class_choices(name, path, roots, nested)}"
    if match := re.search(
        r"(?:Expected a dot import path string|Unexpected import path format): (\S+?)\.?(?:\s|$)", message
    ):
        return f"{key}: {match[1]!r} is not known; {_class_choices(name, match[1], roots, nested)}"
    if match := re.search(r"Given value: (.*?)(?:\. Got value: .*)?$", message, re.MULTILINE):
        types = re.findall(
            r"Expected (?:a )?(?:<class '(?:\w+\.)*(\w+)'>|typing\.Literal\[(.*?)\]|(tuple with \d+ elements))", message
        )
        if types:
            accepted = ", ".join(dict.fromkeys(map("".join, types))).replace("NoneType", "null")
            return f"{key}: {match[1]!r} is not accepted; accepted: {accepted}"
    if match := re.search(r"Expected a <class '(\w+)'>\. Got value: (.*?)(?:\. Got value|$)", message):
        return f"{key}: {match[2]!r} is not accepted; accepted: {match[1]}"
    return message


def _unknown_key(key: str, roots: Mapping[str, type]) -> str:
    root, _, rest = key.partition(".")
    if root not in roots:
        return f"{root}: unknown key; {_choices(root, roots)}"
    name = rest.partition(".")[0]
    return f"{root}.{name}: unknown key; {_choices(name, inspect.signature(roots[root]).parameters)}"


def _class_choices(name: str, given: str, roots: Mapping[str, type], nested: Iterable[type]) -> str:
    names = set()
    for owner in [*roots.values(), *nested]:
        if base := _class_in(_hints(owner).get(name)) or roots.get(name):
            # The base itself only where it is the default, else it is there to be derived from.
            names |= {c.__name__ for c in _concrete(base) if c is not base or c is _default(owner, name)}
    return _choices(given, sorted(names)) + ", or an import path"


def _choices(given: str, accepted: Iterable[str]) -> str:
    accepted = list(accepted)
    close = get_close_matches(given, accepted, n=1)
    hint = f"did you mean {close[0]}? " if close else ""
    return f"{hint}accepted: {', '.join(accepted) or 'see --help'}"


def _parameters(owner: Any) -> Iterator[str]:
    """Options of a class: constructor parameters with defaults, its own and those of what it passes them on to."""
    parameters = get_signature_parameters(owner) if inspect.isclass(owner) else []
    yield from (p.name for p in parameters if p.default is not inspect.Parameter.empty)


def _default(owner: type, name: str) -> Any:
    parameter = inspect.signature(owner).parameters.get(name) if "__init__" in vars(owner) else None
    return parameter and parameter.default


def _hints(owner: type) -> dict[str, Any]:
    try:
        return get_type_hints(vars(owner)["__init__"])
    except (KeyError, NameError, TypeError):
        return {}


def _class_in(hint: Any) -> type | None:
    """The class that an annotation asks for: X itself, or the X of Callable[..., X], of X | None, and of a protocol
    whose `__call__` returns X.
    """
    if getattr(hint, "_is_protocol", False) and "__call__" in vars(hint):
        return _class_in(get_type_hints(hint.__call__).get("return"))
    if inspect.isclass(hint) and hint is not type(None) and not get_args(hint):
        return hint
    arguments = [argument for argument in get_args(hint) if argument is not type(None)]
    return _class_in(arguments[-1]) if arguments else None


def _concrete(base: type) -> Iterator[type]:
    """A class and those below it that can be used as they are."""
    if not inspect.isabstract(base):
        yield base
    subclass: type
    for subclass in base.__subclasses__():
        if not subclass.__name__.startswith("_"):
            yield from _concrete(subclass)
