"""Values of a config that jsonargparse cannot write, such as a device or a function by default."""

import warnings
from collections.abc import Callable
from typing import Any

_MARK = "Unable to serialize instance "  # jsonargparse writes this and str(value) in the place of the value


def dumped(dump: Callable[[], str]) -> str:
    """The text that jsonargparse writes, without its warnings about values that `written_out` replaces.

    Args:
        dump: Calls jsonargparse.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", rf"\s*{_MARK}")
        return dump()


def written_out(plain: Any) -> Any:
    """A config in which a value that has a text is that text, and one that has none is left to the default.

    Args:
        plain: Plain values: mappings, lists, texts, numbers.
    """
    if isinstance(plain, dict):
        return {key: written_out(value) for key, value in plain.items() if not _has_no_text(value)}
    if isinstance(plain, list):
        return [written_out(value) for value in plain]
    return plain.removeprefix(_MARK) if isinstance(plain, str) else plain


def _has_no_text(value: Any) -> bool:
    return isinstance(value, str) and value.startswith(f"{_MARK}<")
