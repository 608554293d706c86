"""Makes jsonargparse's lookups fast: a parse repeats the same few searches thousands of times.

Each function below is equivalent to the one of jsonargparse that it replaces; tests compare them on shipped configs.
With defaults and parsers that are remembered (parser.py, cli.py), a config takes 40% of the calls.
"""

import logging
from typing import Any
from weakref import WeakKeyDictionary

from jsonargparse import (
    Namespace,
    _actions,
    _core,
    _namespace,
    _parameter_resolvers,
    _subcommands,
    _typehints,
    _util,
    typing,
)

_paths: WeakKeyDictionary[type, str | None] = WeakKeyDictionary()
_plain_path = _util.get_import_path


def import_path(value: Any) -> str | None:
    """The shortest import path of an object: that of a class does not change."""
    if not isinstance(value, type):
        return _plain_path(value)
    try:
        return _paths[value]
    except KeyError:
        found = _paths[value] = _plain_path(value)
        return found


_calls: WeakKeyDictionary[type, list[Any]] = WeakKeyDictionary()
_plain_parameters = _parameter_resolvers.get_signature_parameters


def signature_parameters(function_or_class: Any, method_or_property: str | None = None, logger: Any = True) -> Any:
    """Parameters of a function, class or method; those of a call of a kind of part (a protocol) are asked for often."""
    if method_or_property != "__call__" or not isinstance(function_or_class, type):
        return _plain_parameters(function_or_class, method_or_property, logger)
    if function_or_class not in _calls:
        _calls[function_or_class] = _plain_parameters(function_or_class, method_or_property, logger)
    return list(_calls[function_or_class])


_plain_find = _subcommands.find_action_and_subcommand
_plain_is_branch = _subcommands.is_branch_key
_INDEX = "_bytelm_actions"  # of a parser: its list of actions as it was, and its index
_LAST = (_actions._ActionConfigLoad, _actions.ActionFail)  # found only if there is no other


class _Index:
    """The actions of a parser without subcommands by their names, and the keys that have further keys below them."""

    def __init__(self, actions: list[Any]) -> None:
        self.actions: dict[str, list[Any]] = {}
        self.branches: set[str] = set()
        for action in _actions.filter_non_parsing_actions(actions):
            names = {action.dest, *(option[2:] for option in action.option_strings if option.startswith("--"))}
            for name in names:
                self.actions.setdefault(name, []).append(action)
            self.branches |= {action.dest[:end] for end, letter in enumerate(action.dest) if letter == "."}


def _index_of(parser: Any) -> _Index | None:
    """The index of a parser; None for one with subcommands."""
    actions = parser._actions
    known = vars(parser).get(_INDEX)
    if known is None or known[0] != actions:
        if not isinstance(actions, list):
            return None
        has_subcommands = any(isinstance(action, _subcommands.ActionSubCommands) for action in actions)
        known = list(actions), None if has_subcommands else _Index(actions)
        setattr(parser, _INDEX, known)
    return known[1]


def find_action(parser: Any, dest: str, exclude: Any = None) -> tuple[Any, str | None]:
    """The action of a key, by an index instead of a search."""
    index = _index_of(parser)
    if index is None:
        return _plain_find(parser, dest, exclude)
    last = None
    for action in index.actions.get(dest, ()):
        if exclude is not None and isinstance(action, exclude):
            continue
        if not isinstance(action, _LAST):
            return action, None
        last = action
    return last, None


def is_branch(parser: Any, key: str) -> bool:
    """Whether there are keys below a key, by an index instead of a search."""
    index = _index_of(parser)
    return _plain_is_branch(parser, key) if index is None else key in index.branches


_plain_parse_key = Namespace._parse_key


def parse_key(self: Namespace, key: str) -> tuple[str, Namespace | None, str]:
    """Parts of a key; most have one."""
    if type(key) is str and key and "." not in key and " " not in key:
        return _namespace.add_clash_mark(key), self, ""
    return _plain_parse_key(self, key)


_plain_branches = _namespace.recreate_branches


def recreate_branches(data: Any, skip_keys: Any = None) -> Any:
    """A copy of nested namespaces, mappings and lists."""
    if type(data) is not Namespace:
        return _plain_branches(data, skip_keys) if isinstance(data, dict | list | Namespace) else data
    copy = Namespace()
    values = vars(copy)  # their keys have no dots
    for key, value in vars(data).items():
        if skip_keys is None or key not in skip_keys:
            values[key] = recreate_branches(value, skip_keys)
    return copy


module: Any
for module in (_util, _typehints, typing):
    module.get_import_path = import_path
_parameter_resolvers.get_signature_parameters = signature_parameters
for module in (_subcommands, _core):
    module.find_action_and_subcommand = find_action
    module.is_branch_key = is_branch
for module in (_namespace, _core):
    module.recreate_branches = recreate_branches
Namespace._parse_key = parse_key  # type: ignore[method-assign]
# The logger of parsers without one makes a record of each message, and drops it.
logging.getLogger("jsonargparse_null_logger").setLevel(logging.CRITICAL + 1)
