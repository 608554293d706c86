"""The parser of config files and of the options that override them.

Input that YAML or jsonargparse would accept silently, or fail on with a traceback, is an error that names the file and
the key. A file may name its bases (base.py) and use import paths of earlier versions (renamed.py).
"""

import inspect
import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from importlib import import_module
from pathlib import Path
from pydoc import locate
from typing import Any, get_args, get_type_hints

import jsonargparse
from jsonargparse import ActionConfigFile, ArgumentParser, Namespace

import bytelm
import bytelm.config.short_names
from bytelm.config import base, shipped
from bytelm.config.dotted import joined
from bytelm.config.imports import failures_as_import_errors
from bytelm.config.keys import KEYS, METHOD_KEYS
from bytelm.config.messages import NULL, note
from bytelm.config.renamed import current_names
from bytelm.config.suggestions import did_you_mean
from bytelm.config.text import ACCEPTED, BadText, dump, read
from bytelm.config.written import Written
from bytelm.errors import ConfigError

# lookups.py replaces private functions, which these versions of jsonargparse are known to have. With other versions,
# parsing a config takes more time.
LOOKUPS_OF = "4.53."
if jsonargparse.__version__.startswith(LOOKUPS_OF):
    import_module("bytelm.config.lookups")


class ConfigFileParser(ArgumentParser):
    """A parser that rejects invalid config files, and modules that cannot be imported, with the reason.

    Attributes:
        differences: Keys in which the parsed configs differ from their bases and from the first config.
        keys_of_configs: For each `--config`, the keys that it or its bases set.
    """

    _known: tuple[list[tuple[Any, Any]], Namespace] | None = None  # arguments with their defaults, and all defaults
    rejects_null = True  # for options that are not optional; false if most keys accept values of any type

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        kwargs.setdefault("allow_abbrev", False)  # an incomplete key is a typing error
        super().__init__(*args, **kwargs)
        self.dump_header = [f"bytelm=={bytelm.__version__}", *(self.dump_header or [])]  # for --print_config
        self._files: base.BaseFiles | None = None  # of the --config that is being applied
        self._options: list[str] = []
        self._text: str | None = None  # of the file that is being read
        self._configs = 0  # number of times that --config was given
        self.differences: set[str] = set()
        self.keys_of_configs: list[set[str]] = []

    def add_argument(self, *args: Any, **kwargs: Any) -> Any:
        """Adds an argument; for config files, with support for bases."""
        if kwargs.get("action") in ("config", ActionConfigFile):
            kwargs["action"] = ConfigOption
        return super().add_argument(*args, **kwargs)

    def get_defaults(self, *args: Any, **kwargs: Any) -> Namespace:
        """Returns the default values; for a class only its name: its options get their defaults after parsing.

        Otherwise the defaults would count as given: if a config names another class, jsonargparse keeps the options
        that both classes have, and RMSNorm would start with LayerNorm's eps, SGD with AdamW's weight decay.
        """
        # A config's parse asks for them many times; they change only with the arguments and their own defaults.
        given = [(action, action.default) for action in self._actions]
        if args or kwargs.keys() - {"skip_validation"} or self.default_config_files:
            defaults = super().get_defaults(*args, **kwargs)
        elif self._known is not None and _are_the_same(given, self._known[0]):
            return self._known[1].clone()
        else:
            defaults = super().get_defaults(**kwargs)
            self._known = given, defaults.clone()
            _remove_options(self._known[1])
        _remove_options(defaults)
        return defaults

    def parse_args(self, *args: Any, **kwargs: Any) -> Namespace:  # type: ignore[override]
        """Parses a command line."""
        given = args[0] if args else kwargs.get("args")
        self._options, self._text = sys.argv[1:] if given is None else list(given), None
        # A process that trains several times has one parser.
        self._configs, self.differences, self.keys_of_configs = 0, set(), []
        with failures_as_import_errors():
            parsed = super().parse_args(*args, **kwargs)
            if self.rejects_null:
                self._check_nulls(parsed)
        return parsed

    @contextmanager
    def reading(self, files: base.BaseFiles) -> Iterator[None]:
        """Context in which one `--config` is applied.

        Args:
            files: Applies the bases.
        """
        self._files = files
        self._configs += 1
        self.keys_of_configs.append(set())
        try:
            yield
        finally:
            self._files = self._text = None

    def parse_path(self, path: Any, *args: Any, **kwargs: Any) -> Namespace:
        """Parses a config file.

        Raises:
            ConfigError: The file cannot be read, or is not a config.
        """
        assert self._files is not None  # files come only from --config
        name = self._files.name(str(path))
        try:
            with self._files.opened(str(path)):
                return super().parse_path(path, *args, **kwargs)
        except UnicodeDecodeError as error:
            raise ConfigError("config", name, f"it is not UTF-8 ({error.reason}); {ACCEPTED}") from error
        except (OSError, BadText) as error:
            raise ConfigError("config", name, str(error)) from error

    def parse_string(self, content: str, path: Any = "", *args: Any, **kwargs: Any) -> Namespace:
        """Parses the text of a config file, or a config that is passed in place of a path.

        Raises:
            BadText: The text is not a config.
        """
        config = read(content)
        if not config and not path:
            raise BadText(f"it is empty; {ACCEPTED}")
        if not config and self._files is not None:
            note(f"config: {self._files.name(str(path))!r} is empty and changes nothing")
        differs = self._files is not None and (base.KEY in config or self._configs > 1) and not self._files.in_base
        if self._files is not None and base.KEY in config:
            self._files.apply(config.pop(base.KEY))
        self._text = content
        config = _without_empty_options(joined(current_names(config)))
        known = self.get_defaults(skip_validation=True)
        known.pop("config", None)  # an option, not a key of a file
        if "subcommand" not in known:
            config = self._check_keys(config, known)
        if differs:
            self.differences |= set(_keys_in(config))
        if self._files is not None:
            self.keys_of_configs[-1] |= set(_keys_in(config))
        return super().parse_string(dump(config), path, *args, **kwargs)

    def replaced(self, arguments: Sequence[str]) -> list[str]:
        """Returns the options, without `--`, whose values a later `--config` (or `-c`) has replaced.

        Args:
            arguments: The command line that was parsed last.
        """
        found, configs = {}, 0
        for argument in arguments:
            configs += argument.startswith("-c")
            if not argument.startswith("--"):
                continue
            option = argument[2:].partition("=")[0].removesuffix("+")
            if option == "config":
                configs += 1
            else:
                found[option] = configs  # given again after the config, it has an effect
        return [
            option
            for option, earlier in found.items()
            if option.replace(".init_args", "").removesuffix(".class_path")
            in set().union(*self.keys_of_configs[earlier:])
        ]

    @property
    def written(self) -> Written:
        """The options, and the file that is being read."""
        return Written(self._options, self._text)

    def where(self) -> str:
        """Names the file that is being parsed, and the version of bytelm that wrote it, for the end of a message."""
        file = self._files.current if self._files is not None else None
        if self._files is None or file is None:
            return ""
        version = written_by(Path(file))
        by = f", written by bytelm {version}; this is {bytelm.__version__}"
        return f" (in {self._files.name(file)}{by if version not in (None, bytelm.__version__) else ''})"

    def _check_keys(self, config: Mapping[Any, Any], known: Namespace, prefix: str = "") -> dict[Any, Any]:
        """Rejects unknown keys outside the options of classes; returns the config without its empty sections."""
        kept: dict[Any, Any] = {}
        for key, value in config.items():
            name, _, rest = str(key).partition(".")  # `a.b: 3` means `a: {b: 3}`, and `a+` appends to a
            name = name.removesuffix("+")
            if name not in vars(known):
                if not prefix and name in METHOD_KEYS and not set(METHOD_KEYS) & set(vars(known)):
                    continue  # an option of Trainer.fit in the config of a run, of which only the objects are made
                self.error(f"Parser does not accept option '{prefix}{key}'")  # as jsonargparse reports others
            group = vars(known)[name]
            if isinstance(group, Namespace | dict) and value is None and not rest:
                continue  # a section in which all options are commented out
            if isinstance(group, dict) and rest:  # `schedules.momentum.hidden`, whose key is all after the first dot
                kept[name] = {**kept.get(name, {}), rest: value}
                continue
            kept[key] = value
            if not isinstance(group, Namespace) or "class_path" in group:
                continue
            inner = {rest: value} if rest else value
            if isinstance(inner, Mapping):
                inner = self._check_keys(inner, group, f"{prefix}{name}.")
                if rest and rest not in inner:
                    del kept[key]
                else:
                    kept[key] = inner[rest] if rest else inner
            elif not isinstance(inner, str):  # text may be the path of a config for this key
                accepted = f"accepted: a mapping of {', '.join(vars(group))}{self.where()}"
                raise ConfigError(f"{prefix}{name}", inner, accepted)
        return kept

    def _check_nulls(self, value: Any, key: str = "") -> None:
        """Rejects null for an option that is not optional; jsonargparse treats it as an option that is not given."""
        if not isinstance(value, Namespace):
            return
        options = vars(value)
        # Options of a class, or of a section of the command line that consists of a class's options.
        path = options.get("class_path") or (KEYS.get(key) if key in (self.groups or {}) else None)
        if isinstance(options.get("class_path"), str):
            options = vars(value.get("init_args") or Namespace())
        for name, inner in options.items():
            if path is not None and inner is None and not _takes_null(locate(path), name):
                self.error(f'Parser key "{key}.{name}": {NULL}{_default(locate(path), name)}')
        for name, inner in options.items():
            self._check_nulls(inner, f"{key}.{name}" if key else name)


class ConfigOption(ActionConfigFile):
    """`--config`: applies the bases of a file before the file itself."""

    def __call__(self, parser: Any, cfg: Any, values: Any, option_string: str | None = None) -> None:
        def apply_base(path: str) -> None:
            self.apply_config(parser, cfg, self.dest, path)
            cfg[self.dest].pop()  # only the files on the command line determine the run's name

        if isinstance(values, str) and not os.path.exists(values):  # a file in the working folder comes first
            found = shipped.find(values)
            if found is None and values and not re.search(r"[:{[\n]", values):  # neither the text of a config nor a URL
                raise ConfigError("config", values, f"there is no such file and {shipped.missing(values)}")
            values = str(found or values)
        if isinstance(values, str) and os.path.isdir(values):
            own = os.path.join(values, "config.yaml")
            meant = did_you_mean([own] if os.path.isfile(own) else [])
            raise ConfigError("config", values, f"it is a directory; {meant}{ACCEPTED}")
        with parser.reading(base.BaseFiles(apply_base)):
            self.apply_config(parser, cfg, self.dest, values)


def header() -> str:
    """Returns the first comment of a config that bytelm writes."""
    return f"# bytelm=={bytelm.__version__}\n"


def written_by(config: Path) -> str | None:
    """Returns the version of bytelm that wrote a config file; None if it is unknown.

    Args:
        config: A config file; before version 0.2.0, the record in the same folder names the version.
    """
    try:
        if match := re.match(r"# bytelm==(\S+)\n", config.read_text(encoding="utf-8")):
            return match[1]
        record = read((config.parent / "record.json").read_text(encoding="utf-8"))
        return str(record["versions"]["bytelm"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _without_empty_options(value: Any) -> Any:
    """A value of a config without `init_args` whose options are all comments."""
    if isinstance(value, list):
        return [_without_empty_options(each) for each in value]
    if not isinstance(value, dict):
        return value
    return {key: _without_empty_options(each) for key, each in value.items() if (key, each) != ("init_args", None)}


def _keys_in(value: Any, key: str = "") -> Iterator[str]:
    """Returns the keys that a config gives, which may be invalid; a class is at its key, and its options below it."""
    if not isinstance(value, Mapping):
        yield key
        return
    if "class_path" in value:
        yield key
    for name, inner in value.items():
        if name != "class_path":
            yield from _keys_in(inner, key if name == "init_args" else f"{key}.{name}" if key else str(name))


@cache
def _takes_null(cls: Any, option: str) -> bool:
    """Returns whether an argument of a class's constructor accepts null, as far as its annotation shows.

    An argument without a default is null if it is not given; that is reported elsewhere.
    """
    for constructor in (vars(owner)["__init__"] for owner in inspect.getmro(cls) if "__init__" in vars(owner)):
        parameter = inspect.signature(constructor).parameters.get(option)
        if parameter is not None:
            try:
                hint = get_type_hints(constructor).get(option, Any)
            except (NameError, TypeError):  # names that are not imported
                return True
            return parameter.default is parameter.empty or hint is Any or type(None) in get_args(hint)
    return True


def _default(cls: Any, option: str) -> str:
    """Returns `, <default>` for an option whose default is a number or a truth value; otherwise nothing."""
    parameter = inspect.signature(cls).parameters.get(option)
    value = None if parameter is None else parameter.default
    return f", {str(value).lower()}" if isinstance(value, bool | int | float) else ""


def _are_the_same(some: list[tuple[Any, ...]], others: list[tuple[Any, ...]]) -> bool:
    """Returns whether two lists have the same objects."""
    return len(some) == len(others) and all(
        one is other for pair in zip(some, others, strict=True) for one, other in zip(*pair, strict=True)
    )


def _remove_options(defaults: Namespace) -> None:
    for value in vars(defaults).values():
        if isinstance(value, Namespace):
            if "class_path" in value:
                value.pop("init_args", None)
            else:
                _remove_options(value)
