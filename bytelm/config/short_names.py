"""Short class names: where another package has a class of the same name as one of bytelm's, bytelm's is meant.

`Muon`, say, is torch's and bytelm's. jsonargparse rejects a name that several classes have, and has no option for that.
"""

from collections.abc import Callable
from functools import wraps
from typing import Any

from jsonargparse import _typehints


def ours_first(find: Callable[..., list[str]]) -> Callable[..., list[str]]:
    """Makes a function that lists import paths of classes leave out those whose name one of bytelm's classes has."""

    @wraps(find)
    def found(*args: Any, **kwargs: Any) -> list[str]:
        paths = find(*args, **kwargs)
        ours = {_name(path) for path in paths if path.startswith("bytelm.")}
        return [path for path in paths if path.startswith("bytelm.") or _name(path) not in ours]

    return found


def _name(path: str) -> str:
    return path.rpartition(".")[2]


_typehints.get_all_subclass_paths = ours_first(_typehints.get_all_subclass_paths)
