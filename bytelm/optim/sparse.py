"""Finds out whether an optimizer supports sparse gradients."""

from collections.abc import Callable, Mapping

import torch
from torch import nn
from torch.optim import Optimizer

from bytelm.optim.groups import FIXED, ParamGroup, ParamGroups, RowSplits


def takes_sparse_gradients(optimizer: Callable[[ParamGroups], Optimizer], groups: ParamGroups | None = None) -> bool:
    """Whether an optimizer supports a table with a sparse gradient; found by a step on a small one.

    Args:
        optimizer: Makes the optimizer.
        groups: The network's groups, if the optimizer needs their names; default only a table.
    """
    table = nn.Parameter(torch.zeros(2, 2))
    table.grad = torch.sparse_coo_tensor(torch.tensor([[0]]), torch.ones(1, 2), (2, 2), check_invariants=False)
    others = [
        ParamGroup({"name": group["name"], "params": [nn.Parameter(torch.zeros(2, 2))]}, _first(group.row_splits))
        for group in groups or ()
        if group["name"] != "table"
    ]
    try:
        optimizer([*others, ParamGroup({"name": "table", "params": [table], **FIXED["table"]}, {})]).step()
    except Exception:  # an optimizer can raise anything for unsupported gradients
        return False
    return True


def _first(row_splits: Mapping[int, RowSplits]) -> dict[int, RowSplits]:
    """One of a group's declarations, for the one parameter that represents the group."""
    return dict(enumerate(list(row_splits.values())[:1]))
