"""YAML text: read strictly, and written in a form that every reader reads as the same values.

YAML takes the last of two equal keys, and a value may contain itself: both are errors here. The text is checked event
by event, because nesting can be too deep to load.

jsonargparse reads more strings as numbers than YAML 1.1, the version that PyYAML writes: it reads `1e-3` as a number. A
string is quoted here if either of them would read it as another value.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum
from typing import Any

import yaml
from jsonargparse import get_loader, set_dumper

MAX_DEPTH = 50  # levels of nesting; thousands overflow the stack of libyaml
ACCEPTED = "accepted: a YAML file of keys and values"


class BadText(ValueError):
    """A text that is not a config; the message has the reason and, if known, the line."""


def read(text: str, aliases: bool = True) -> dict[Any, Any]:
    """Reads a config; a text of blanks and comments is an empty config.

    Args:
        text: YAML.
        aliases: Whether a value may be written once and referred to again.

    Raises:
        BadText: The text is not YAML, not a mapping, has a key twice, contains itself, or is nested too deeply.
    """
    try:
        _check(yaml.parse(text, Loader=yaml.SafeLoader), aliases)
        value = get_loader("yaml")(text)
        if isinstance(value, str):  # jsonargparse returns keys without values as text, unless a comment follows them
            value = get_loader("yaml")(f"{text}\n#")
    except BadText:
        raise
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        at = f"line {mark.line + 1}: " if mark else ""
        raise BadText(f"{at}{error.problem}; {ACCEPTED}") from error
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise BadText(f"line {line}: character {error.character:#x} is not allowed; {ACCEPTED}") from error
    except (AttributeError, LookupError, TypeError, ValueError) as error:  # `!!timestamp abc`, `!!int abc`, `1: null`
        raise BadText(f"a value is not of its type ({error}); {ACCEPTED}") from error
    if not isinstance(value, dict | None):
        raise BadText(f"{value!r} is not a mapping; {ACCEPTED}")
    return value or {}


def _represent_text(dumper: Any, text: str) -> yaml.Node:
    breaks = not set("\x85\u2028\u2029\ufeff").isdisjoint(text)  # line breaks to YAML; only double quotes keep them
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style='"' if breaks else None)


class _Dumper(yaml.SafeDumper):
    """Writes lines of any length, and all characters as they are."""


_OfLibyaml: Any = getattr(yaml, "CSafeDumper", yaml.SafeDumper)


class _FastDumper(_OfLibyaml):
    """Takes a quarter of the time, and escapes characters beyond U+FFFF."""


for dumper in (_Dumper, _FastDumper):
    dumper.add_representer(str, _represent_text)
    dumper.add_implicit_resolver(
        "tag:yaml.org,2002:float",
        re.compile(r"[-+]?[0-9][0-9_]*(\.[0-9_]*)?[eE][-+]?[0-9]+$"),  # YAML 1.1 requires the dot and the sign
        list("-+0123456789"),
    )
    # Defaults of Lightning's.
    dumper.add_multi_representer(Enum, lambda dumper, value: dumper.represent_data(value.value))


def dump(values: Any, in_one_line: bool = False) -> str:
    """Writes values as YAML; mappings keep their order.

    Args:
        values: Plain values.
        in_one_line: Whether to write lists and mappings with brackets and braces.
    """
    options: dict[str, Any] = {"sort_keys": False, "allow_unicode": True, "default_flow_style": in_one_line}
    if in_one_line:
        text = yaml.dump(values, Dumper=_Dumper, width=float("inf"), **options)
        return text.removesuffix("\n").removesuffix("\n...")
    text = yaml.dump(values, Dumper=_FastDumper, **options)
    return yaml.dump(values, Dumper=_Dumper, **options) if "\\U" in text else text


set_dumper("yaml", dump)  # --print_config


@dataclass
class _Open:
    """A mapping or sequence that has begun: its anchor, a mapping's keys, and whether a key comes next."""

    anchor: str | None
    keys: set[str] | None
    at_key: bool = True


def _check(events: Iterable[yaml.Event], aliases: bool) -> None:
    around: list[_Open] = []
    for event in events:
        if isinstance(event, yaml.CollectionEndEvent):
            around.pop()
        if not isinstance(event, yaml.NodeEvent):
            continue
        line = f"line {event.start_mark.line + 1}"  # type: ignore[union-attr]
        if around and (keys := around[-1].keys) is not None:
            if around[-1].at_key:
                if not isinstance(event, yaml.ScalarEvent):
                    raise BadText(f"{line}: a list or mapping cannot be a key; {ACCEPTED}")
                if event.value in keys:
                    raise BadText(f"{line}: key {event.value!r} is there twice; keep one of them")
                keys.add(event.value)
            around[-1].at_key = not around[-1].at_key
        if isinstance(event, yaml.AliasEvent) and not aliases:
            raise BadText(f"{line}: '*{event.anchor}' is an alias; accepted here: values that are written out")
        if isinstance(event, yaml.AliasEvent) and event.anchor in [outer.anchor for outer in around]:
            raise BadText(f"{line}: '*{event.anchor}' contains itself; write its values out")
        if isinstance(event, yaml.CollectionStartEvent):
            if len(around) == MAX_DEPTH:
                raise BadText(f"{line}: nested too deeply; accepted: up to {MAX_DEPTH} levels")
            around.append(_Open(event.anchor, set() if isinstance(event, yaml.MappingStartEvent) else None))
