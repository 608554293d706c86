"""Config files, read strictly: what YAML or jsonargparse would let pass, or crash on, is refused by file and line.

Of two equal keys YAML takes the last, and a value may contain itself; jsonargparse drops an unknown key whose value is
an empty mapping. The text is checked event by event, as nesting can be too deep for it to be loaded at all.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import yaml
from jsonargparse import ArgumentParser, Namespace, get_loader

import bytelm.config.short_names  # noqa: F401 (among classes of one name, bytelm's is meant)
from bytelm.config.imports import failures_as_import_errors
from bytelm.errors import ConfigError

DEEPEST = 50  # levels of nesting; thousands overflow the stack of libyaml
ACCEPTED = "accepted: a YAML file of keys and values"


class BadText(ValueError):
    """A text that is no config; the message says why and, where there is one, in which line."""


class ConfigFileParser(ArgumentParser):
    """A parser that refuses bad config files, and import paths whose modules fail, with what the user has to know."""

    def get_defaults(self, *args: Any, **kwargs: Any) -> Namespace:
        """Default values; of a class its name alone, its options' defaults being filled in at the end of a parse.

        Otherwise they would count as given: where a config names another class, jsonargparse keeps the options that the
        two have in common, and RMSNorm would begin with LayerNorm's eps, SGD with AdamW's weight decay.
        """
        defaults = super().get_defaults(*args, **kwargs)
        _forget_options(defaults)
        return defaults

    def parse_args(self, *args: Any, **kwargs: Any) -> Namespace:  # type: ignore[override]
        """Parses a command line."""
        with failures_as_import_errors():
            return super().parse_args(*args, **kwargs)

    def parse_path(self, path: Any, *args: Any, **kwargs: Any) -> Namespace:
        """Parses a config file.

        Raises:
            ConfigError: It cannot be read, or is no config.
        """
        try:
            return super().parse_path(path, *args, **kwargs)
        except UnicodeDecodeError as error:
            raise ConfigError("config", str(path), f"it is not UTF-8 ({error.reason}); {ACCEPTED}") from error
        except (OSError, BadText) as error:
            raise ConfigError("config", str(path), str(error)) from error

    def parse_string(self, content: str, path: Any = "", *args: Any, **kwargs: Any) -> Namespace:
        """Parses the text of a config file, or a config that is given in place of a path.

        Raises:
            BadText: It is no config.
        """
        config = read(content)
        if not config:
            if not path:
                raise BadText(f"it is empty; {ACCEPTED}")  # an empty file changes nothing, but this is a slip
            content = "{}"
        known = self.get_defaults(skip_validation=True)
        known.pop("config", None)  # an option, but no key of a file
        if "subcommand" not in known:
            self._check_keys(config, known)
        return super().parse_string(content, path, *args, **kwargs)

    def _check_keys(self, config: Mapping[Any, Any], known: Namespace, prefix: str = "") -> None:
        """Refuses unknown keys, down to where a class has a say on its options."""
        for key, value in config.items():
            name, _, rest = str(key).partition(".")  # `a.b: 3` stands for `a: {b: 3}`, and `a+` appends to a
            name = name.removesuffix("+")
            if name not in vars(known):
                self.error(f"Parser does not accept option '{prefix}{key}'")  # as jsonargparse says it of others
            inner = {rest: value} if rest else value
            group = vars(known)[name]
            if not isinstance(group, Namespace) or "class_path" in group:
                continue
            if isinstance(inner, Mapping):
                self._check_keys(inner, group, f"{prefix}{name}.")
            elif not isinstance(inner, str | None):  # text may be the path of a config for this key
                raise ConfigError(f"{prefix}{name}", inner, f"accepted: a mapping of {', '.join(vars(group))}")


def _forget_options(defaults: Namespace) -> None:
    for value in vars(defaults).values():
        if isinstance(value, Namespace):
            if "class_path" in value:
                value.pop("init_args", None)
            else:
                _forget_options(value)


def read(text: str, aliases: bool = True) -> dict[Any, Any]:
    """What a config says; nothing, if there are but blanks and comments.

    Args:
        text: YAML.
        aliases: Whether values may be written once and named again.

    Raises:
        BadText: It is no YAML, no mapping, says something twice, contains itself, or is nested too deeply.
    """
    try:
        _check(yaml.parse(text, Loader=yaml.SafeLoader), aliases)
        value = get_loader("yaml")(text)
    except BadText:
        raise
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        at = f"line {mark.line + 1}: " if mark else ""
        raise BadText(f"{at}{error.problem}; {ACCEPTED}") from error
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise BadText(f"line {line}: character {error.character:#x} is not allowed; {ACCEPTED}") from error
    except (AttributeError, LookupError, ValueError) as error:  # `!!timestamp abc`, `!!bool abc`, `!!int abc`
        raise BadText(f"a value is not of its kind ({error}); {ACCEPTED}") from error
    if not isinstance(value, dict | None):  # jsonargparse leaves keys without values as the text that they are
        raise BadText(f"{value!r} is no mapping; {ACCEPTED}")
    return value or {}


@dataclass
class _Open:
    """A mapping or sequence that has begun: its anchor, the keys of a mapping, and whether one of them comes next."""

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
            if len(around) == DEEPEST:
                raise BadText(f"{line}: nested too deeply; accepted: up to {DEEPEST} levels")
            around.append(_Open(event.anchor, set() if isinstance(event, yaml.MappingStartEvent) else None))
