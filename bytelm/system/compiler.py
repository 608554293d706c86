"""Marks functions for torch.compile without loading it: its 900 modules take a second or more of start-up.

torch.compiler has the same decorators, but loads these modules when a function is decorated. torch's own modules use
the lazy forms below; a test compares them with the public ones.
"""

from collections.abc import Callable
from typing import Any, TypeVar

import torch

Function = TypeVar("Function", bound=Callable[..., Any])

_disable: Callable[[Any], Any]
try:
    from torch._compile import _disable_dynamo as _disable
except ImportError:  # it is private; the public one does the same
    _disable = torch.compiler.disable


def disable(function: Function) -> Function:
    """Excludes a function from compilation, like torch.compiler.disable; loads the compiler only when it is called."""
    disabled: Function = _disable(function)
    return disabled


def assume_constant_result(function: Function) -> Function:
    """Treats a function's result as a constant while compiling, like torch.compiler.assume_constant_result."""
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function
