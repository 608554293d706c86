"""What functions tell torch.compile, without loading it: its machinery is 900 modules, a second or more of start-up.

torch.compiler has the same decorators, but imports that machinery when a function is decorated. torch's own modules use
these lazy forms, which a test compares with the public ones.
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
    """Never compiles a function, as torch.compiler.disable; its machinery is loaded when the function is called."""
    disabled: Function = _disable(function)
    return disabled


def assume_constant_result(function: Function) -> Function:
    """Takes a function's result for constant while compiling, as torch.compiler.assume_constant_result."""
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function
