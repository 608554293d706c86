"""Short class names: a name that bytelm and another package share means bytelm's class.

For example, bytelm and torch both have `Muon`. jsonargparse rejects such a name, and has no option to choose.
"""

from collections.abc import Callable
from functools import wraps
from typing import Any

from jsonargparse import _typehints


def ours_first(find: Callable[..., list[str]]) -> Callable[..., list[str]]:
    """Makes a function that lists import paths of classes omit those whose name is a name of a bytelm class."""

    @wraps(find)
    def found(*args: Any, **kwargs: Any) -> list[str]:
        paths = find(*args, **kwargs)
        ours = {_name(path) for path in paths if path.startswith("bytelm.")}
        return [path for path in paths if path.startswith("bytelm.") or _name(path) not in ours]

    return found


def _name(path: str) -> str:
    return path.rpartition(".")[2]


_typehints.get_all_subclass_paths = ours_first(_typehints.get_all_subclass_paths)
