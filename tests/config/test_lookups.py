"""Faster lookups: each gives what jsonargparse's own function gives, for all calls that the parse of a config makes.

They replace private functions: a version of jsonargparse in which one has another meaning fails here.
"""

from pathlib import Path

import jsonargparse
import pytest

from bytelm.config.parser import LOOKUPS_OF
from bytelm.parts.contract import MakeBlock

if not jsonargparse.__version__.startswith(LOOKUPS_OF):
    pytest.skip(f"not used with jsonargparse {jsonargparse.__version__}", allow_module_level=True)

from jsonargparse import Namespace, _core, _namespace, _parameter_resolvers, _subcommands, _typehints, _util, typing

from bytelm.config import lookups  # only here: other versions may lack what it replaces

CONFIGS = Path(__file__).resolve().parents[2] / "configs"


@pytest.fixture
def compared(monkeypatch):
    """Has each call of a lookup also call the function that it replaces; returns the numbers of calls."""
    calls = {}

    def compare(replacement, plain, modules, name):
        def both(*args, **kwargs):
            found, expected = outcome(replacement, args, kwargs), outcome(plain, args, kwargs)
            assert found == expected, (name, args)
            calls[name] = calls.get(name, 0) + 1
            if isinstance(found, Failed):
                raise found.error
            return found

        for module in modules:
            assert getattr(module, name) is replacement  # jsonargparse calls it by this name
            monkeypatch.setattr(module, name, both)

    compare(lookups.import_path, lookups._plain_path, (_util, _typehints, typing), "get_import_path")
    compare(lookups.find_action, lookups._plain_find, (_subcommands, _core), "find_action_and_subcommand")
    compare(lookups.is_branch, lookups._plain_is_branch, (_subcommands, _core), "is_branch_key")
    compare(lookups.recreate_branches, lookups._plain_branches, (_namespace, _core), "recreate_branches")
    compare(lookups.parse_key, lookups._plain_parse_key, (Namespace,), "_parse_key")
    return calls


class Failed:
    """An error, which equals another of its type and text."""

    def __init__(self, error):
        self.error = error

    def __eq__(self, other):
        return isinstance(other, Failed) and repr(self.error) == repr(other.error)

    __hash__ = None


def outcome(function, args, kwargs):
    try:
        return function(*args, **kwargs)
    except Exception as error:
        return Failed(error)


@pytest.mark.parametrize("config", ["quickstart.yaml", "gpu/autoresearch.yaml"])
def test_lookups_find_what_jsonargparse_finds(config, parser, compared):
    parsed = parser.parse_args(["--config", str(CONFIGS / config), "--model.gpt.norm.eps", "1e-6"])
    parser.dump(parsed)
    assert all(calls > 100 for calls in compared.values()), compared
    assert len(compared) == 5


def test_the_parameters_of_a_call_are_those_of_jsonargparse():
    found = _parameter_resolvers.get_signature_parameters(MakeBlock, "__call__")
    plain = lookups._plain_parameters(MakeBlock, "__call__")
    assert len(found) > 1
    assert [(each.name, each.kind, each.annotation) for each in found] == [
        (each.name, each.kind, each.annotation) for each in plain
    ]


def test_defaults_that_are_known_are_those_of_a_new_parser(parser):
    known, again = parser.get_defaults(), parser.get_defaults()
    assert known == again
    assert known is not again
    known.trainer.max_epochs = 7  # the caller's own
    assert parser.get_defaults() == again
    parser._known = None
    assert parser.get_defaults() == again


def test_a_new_default_is_seen(parser):
    before = parser.get_defaults().seed_everything
    parser.set_defaults({"seed_everything": 5})
    assert parser.get_defaults().seed_everything == 5
    parser.set_defaults({"seed_everything": before})
    assert parser.get_defaults().seed_everything == before
