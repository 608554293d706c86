"""The context that parts are given, for tests of a part by itself."""

import torch

from bytelm.parts.contract import Context
from bytelm.parts.position import NoPosition


def context(position=None, **values):
    """A Context of a training pass.

    Args:
        position: Position encoding; none by default.
        values: Further attributes.
    """
    tokens = values.pop("tokens", torch.zeros(1, 1, dtype=torch.long))
    return Context(tokens, NoPosition(1, 1, 1) if position is None else position, **values)
